"""A training's log: what is written, what is said, and what is kept of an interrupted one."""

import math
from types import SimpleNamespace

import pytest

from data.common.files import read_jsonl
from pipeline.health.diagnosis import diagnose
from pipeline.watch.live import Lines
from pipeline.watch.log import Log, Stopped
from tests.synthetic import collapsed, grpo_log, hacked


@pytest.fixture
def began(tmp_path):
    """A function that begins a training at a step, and returns its log."""

    def begin(step=0, kind="grpo", stop=(), main=True):
        log = Log(tmp_path, kind, Lines("arm"), stop)
        log.state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=main)
        log.on_train_begin(None, log.state, None)
        return log

    return begin


def take(log, rows):
    for row in rows:
        log.state.global_step = row["step"]
        log.on_log(None, log.state, None, {key: row[key] for key in row if key != "step"})


def rows_of(path):
    return [row for _, row in read_jsonl(path)]


def test_every_signal_is_written_and_what_is_no_number_is_null(began):
    log = began()
    take(log, [{"step": 5, "loss": 0.5, "reward": math.nan, "note": "text"}])
    take(log, [{"step": 5, "train_runtime": 3.0}])
    assert rows_of(log.path) == [
        {"step": 5, "loss": 0.5, "reward": None, "note": "text"},
        {"step": 5, "train_runtime": 3.0},
    ]


def test_what_is_wrong_is_said_once_in_two_lines_and_written(began, capsys):
    log = began()
    take(log, collapsed(1))
    (found,) = (one for one in rows_of(log.findings) if one["level"] != "note")
    assert found["symptom"] == "entropy-collapse"
    said = capsys.readouterr().out.splitlines()
    (first,) = (line for line in said if "entropy-collapse" in line)
    name = f"{found['level']} ({found['symptom']}, step {found['step']})"
    assert first == f"{name}: {found['title']}: {found['evidence']}"
    assert said[said.index(first) + 1] == f"  {found['advice']}"


def test_a_healthy_training_is_not_spoken_of(began, capsys):
    log = began()
    take(log, grpo_log(1))
    assert all(line.startswith(("step ", "note ")) for line in capsys.readouterr().out.splitlines())


def test_a_finding_ends_the_training_only_where_it_is_asked_for(began):
    rows = collapsed(1)
    take(began(), rows)
    take(began(stop=("hacking",)), rows)
    log = began(stop=("entropy-collapse",))
    with pytest.raises(Stopped, match="entropy-collapse") as ended:
        take(log, rows)
    assert rows_of(log.path)[-1]["step"] == ended.value.finding.step


def test_the_row_at_which_a_training_is_lost_says_why(began, capsys):
    log = began(stop=("nonfinite",))  # it ends in any case
    log.end(3, {"grad_norm": math.nan}, "the gradient norm is not a finite number")
    (row,) = rows_of(log.path)
    assert (row["step"], row["grad_norm"], "loss" in row) == (3, None, False)
    (found,) = rows_of(log.findings)
    assert (found["symptom"], found["level"], found["step"]) == ("nonfinite", "stop", 3)
    assert found["evidence"] == row["lost"] == "the gradient norm is not a finite number"
    assert f": {row['lost']}" in capsys.readouterr().out


def test_a_note_ends_nothing(began):
    rows = grpo_log(1)
    assert [found.symptom for found in diagnose(rows, "grpo")] == ["loss-near-zero"]
    take(began(stop=("loss-near-zero",)), rows)


def test_a_training_that_goes_on_keeps_what_lies_before_and_says_nothing_twice(began, capsys):
    rows = collapsed(1)
    log = began()
    take(log, rows)
    whole, written = rows_of(log.findings), rows_of(log.path)
    with log.path.open("a") as file:
        file.write('{"step": 999, "rew')  # torn
    middle = max(row["step"] for row in whole)
    capsys.readouterr()
    again = began(middle)
    assert [row["step"] for row in rows_of(again.path)] == [
        row["step"] for row in rows if row["step"] <= middle
    ]
    assert capsys.readouterr().out == ""
    take(again, [row for row in rows if row["step"] > middle])
    assert middle < rows[-1]["step"]
    assert rows_of(again.path) == written
    assert rows_of(again.findings) == whole
    said = capsys.readouterr().out
    assert "step " in said
    assert not any(f"({row['symptom']}, " in said for row in whole)


def test_what_became_worse_is_in_the_same_order_after_an_interruption(began):
    rows = grpo_log(1)
    for n, row in enumerate(rows):
        row["frac_reward_zero_std"] = 0.85 if n < 30 else 1.0
    log = began()
    take(log, rows)
    whole = rows_of(log.findings)
    assert [row["symptom"] for row in whole].count("zero-variance") == 2
    assert rows_of(began(rows[-1]["step"]).findings) == whole


def test_a_rule_that_is_named_after_an_interruption_ends_what_it_had_passed_over(began):
    rows = collapsed(1)
    take(began(), rows)
    step = rows[-1]["step"]
    began(step, stop=("hacking", "loss-near-zero"))  # not found, or a note
    with pytest.raises(Stopped, match="entropy-collapse"):
        began(step, stop=("entropy-collapse",))
    begun = began(step)  # what was written then is kept
    assert [row["step"] for row in rows_of(begun.path)] == [row["step"] for row in rows]
    assert "entropy-collapse" in {row["symptom"] for row in rows_of(begun.findings)}


def test_only_the_main_process_writes_and_speaks(began, tmp_path, capsys):
    take(began(main=False), hacked(23))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
