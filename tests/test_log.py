"""A training's log: what is written and said, and what is kept of an interrupted one."""

import math
from types import SimpleNamespace

import pytest
from running import rows_in

from pipeline.health.symptom import Level
from pipeline.watch.log import Log, Stopped
from tests.synthetic import collapsed, grpo_log


@pytest.fixture
def began(tmp_path):
    """A function that begins a training at a step, and returns its log."""

    def begin(step=0, stop=(), main=True):
        log = Log(tmp_path, "grpo", stop)
        log.state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=main)
        log.on_train_begin(None, log.state, None)
        return log

    return begin


def take(log, rows):
    for row in rows:
        log.state.global_step = row["step"]
        log.on_log(None, log.state, None, {key: row[key] for key in row if key != "step"})


def test_every_signal_is_written_and_a_number_that_is_not_finite_is_null(began):
    log = began()
    take(log, [{"step": 5, "loss": 0.5, "reward": math.nan, "note": "text"}])
    take(log, [{"step": 5, "train_runtime": 3.0}])
    assert rows_in(log.path) == [
        {"step": 5, "loss": 0.5, "reward": None, "note": "text"},
        {"step": 5, "train_runtime": 3.0},
    ]


@pytest.fixture
def still(monkeypatch):
    """No time passes but what a test takes off a start: 15 ms more would be another second left."""
    monkeypatch.setattr("time.monotonic", lambda: 0.0)


def test_a_long_training_says_after_three_steps_what_all_take(began, still, capsys):
    for seconds, said in ((2.0, "about 0:03:20 for 100 steps"), (0.01, "")):
        log = began()
        for step in (1, 2, 3, 4):
            log.state.global_step = step
            log.on_step_end(None, log.state, None)
            log.warm -= seconds
        assert capsys.readouterr().out.strip() == said


def test_each_step_is_a_line_with_the_time_left(began, still, capsys):
    log = began(10)
    log.started -= 20
    take(log, [{"step": 10, "val/optimal": 0.5}])
    take(log, [{"step": 20, "loss": 0.1234, "reward": 0.5, "truth/optimal": 0.25, "memory": 3}])
    take(log, [{"step": 30, "memory": 1.0}, {"step": 100, "loss": 0.5}])
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert steps == [
        "step 10/100  val optimal 50.0%",
        "step 20/100  loss 0.1234  reward 0.500  optimal 25.0%  0:02:40 left",
        "step 100/100  loss 0.5000",
    ]


def test_a_finding_is_said_once_in_two_lines(began, capsys):
    log = began()
    take(log, collapsed(1))
    (finding,) = (one for one in log.watch.findings if one.level != Level.NOTE)
    assert finding.symptom == "entropy-collapse"
    said = capsys.readouterr().out.splitlines()
    (first,) = (line for line in said if "entropy-collapse" in line)
    name = f"{finding.level} ({finding.symptom}, step {finding.step})"
    assert first == f"{name}: {finding.title}: {finding.evidence}"
    assert said[said.index(first) + 1] == f"  {finding.advice}"


def test_a_healthy_training_has_nothing_but_steps_and_notes_said(began, capsys):
    take(began(), grpo_log(1))
    assert all(line.startswith(("step ", "note ")) for line in capsys.readouterr().out.splitlines())


def test_a_finding_ends_the_training_only_where_it_is_named_and_not_a_note(began):
    rows = collapsed(1)
    take(began(), rows)
    take(began(stop=("hacking",)), rows)
    take(began(stop=("loss-near-zero",)), grpo_log(1))  # which is noted
    log = began(stop=("entropy-collapse",))
    with pytest.raises(Stopped) as ended:
        take(log, rows)
    assert ended.value.finding.symptom == "entropy-collapse"
    assert rows_in(log.path)[-1]["step"] == ended.value.finding.step


def test_the_row_at_which_a_training_is_lost_says_why(began, capsys):
    log = began(stop=("nonfinite",))  # it ends in any case
    log.end(3, {"grad_norm": math.nan}, "the gradient norm is not a finite number")
    (row,) = rows_in(log.path)
    assert (row["step"], row["grad_norm"], "loss" in row) == (3, None, False)
    (finding,) = log.watch.findings
    assert (finding.symptom, finding.level, finding.step) == ("nonfinite", Level.STOP, 3)
    assert finding.evidence == row["lost"]
    assert row["lost"] in capsys.readouterr().out


def test_a_training_that_resumes_keeps_the_rows_before_and_says_nothing_twice(began, capsys):
    rows = collapsed(1)
    log = began()
    take(log, rows)
    whole, written = log.watch.findings, rows_in(log.path)
    with log.path.open("a") as file:
        file.write('{"step": 999, "rew')  # torn
    middle = max(finding.step for finding in whole)
    assert middle < rows[-1]["step"]
    capsys.readouterr()
    again = began(middle)
    assert [row["step"] for row in rows_in(again.path)] == [
        row["step"] for row in rows if row["step"] <= middle
    ]
    take(again, [row for row in rows if row["step"] > middle])
    assert (rows_in(again.path), again.watch.findings) == (written, whole)
    said = capsys.readouterr().out
    assert not any(f"({finding.symptom}, " in said for finding in whole)


@pytest.mark.parametrize("line", ["{", "7", "[" * 9999, '{"loss": 1}', '{"step": "2"}', "\udcff"])
def test_a_training_that_resumes_keeps_the_rows_before_a_spoilt_one(began, tmp_path, line):
    rows = [b'{"step": 1, "loss": 3.0}', line.encode(errors="surrogateescape"), b'{"step": 2}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    assert rows_in(began(4).path) == [{"step": 1, "loss": 3.0}]


def test_a_symptom_that_is_named_after_an_interruption_ends_the_training_that_had_it(began):
    rows = collapsed(1)
    take(began(), rows)
    step = rows[-1]["step"]
    began(step, stop=("hacking", "loss-near-zero"))  # not found, or a note
    with pytest.raises(Stopped, match="entropy-collapse"):
        began(step, stop=("entropy-collapse",))
    begun = began(step)  # all that was written is kept
    assert [row["step"] for row in rows_in(begun.path)] == [row["step"] for row in rows]


def test_only_the_main_process_writes_and_speaks(began, tmp_path, capsys):
    take(began(main=False), collapsed(1))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
