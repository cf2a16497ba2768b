import json
import math
import sys

import pytest

from data import recipe
from data.common.errors import UserError, run_main
from pipeline import doctor
from pipeline.health.signals import GRPO, SFT
from tests.test_health import changed, collapsed, grpo_log, hacked, sft_log


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def state(path, rows, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"global_step": 5, "log_history": rows, **more}))
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command as ``python -m`` would; what it printed, and how it ended."""
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
        try:
            run_main(doctor.main)
        except SystemExit as end:
            return capsys.readouterr().out, end.code
        return capsys.readouterr().out, 0

    return run


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    write(tmp_path / "tiny" / "sft" / "log.jsonl", sft_log(1))
    write(tmp_path / "tiny" / "grpo" / "log.jsonl", changed(hacked(23), "kl", lambda row: None))
    write(tmp_path / "tiny" / "late" / "log.jsonl", [])
    return tmp_path


def test_a_run_is_told_arm_by_arm_with_evidence_and_advice(runs, call):
    said, code = call("--run", "tiny")
    assert code == 0
    text = " ".join(said.split())
    assert "grpo GRPO, 12 rows, steps 5 to 60: 1 stop" in text
    assert "reward hacking" in text
    assert "make audit" in text
    assert "sft SFT, 40 rows, steps 5 to 200: nothing found" in text
    assert "Looked for: nonfinite, untrained, grad-spikes, overfitting, diverged, loss" in text
    assert "kl-slow (needs KL)" in text
    assert "late nothing logged yet" in text
    # Of several logs, all at a glance in the end.
    assert [line.split() for line in said.splitlines()[-3:]] == [
        ["grpo", "hacking", "(50)"],
        ["late", "nothing", "logged", "yet"],
        ["sft", "nothing"],
    ]


def test_json_has_the_same(runs, call):
    said, code = call("--run", "tiny", "--json")
    assert code == 0
    logs = {log["arm"]: log for log in json.loads(said)["logs"]}
    assert logs["grpo"]["findings"][0]["rule"] == "hacking"
    assert logs["grpo"]["findings"][0]["level"] == "stop"
    assert (logs["sft"]["kind"], logs["sft"]["findings"]) == (SFT, [])
    assert logs["late"]["kind"] is None


def test_a_run_that_is_not_there_names_those_that_are(runs, call):
    _, code = call("--run", "tinny")
    assert "runs with a log are tiny; did you mean 'tiny'?" in code


def test_the_newest_checkpoint_of_another_trainer_is_read(tmp_path, call):
    state(tmp_path / "checkpoint-9" / "trainer_state.json", grpo_log(1)[:9])
    state(tmp_path / "checkpoint-10" / "trainer_state.json", collapsed(1), best_metric=None)
    state(tmp_path / "checkpoint-last" / "trainer_state.json", [])
    said, code = call("--log", tmp_path, "--json")
    assert code == 0
    (log,) = json.loads(said)["logs"]
    assert log["path"].endswith("checkpoint-10/trainer_state.json")
    assert [f["rule"] for f in log["findings"]] == ["entropy-collapse"]


@pytest.mark.parametrize("name", ["history.jsonl", "log.jsonl", "trainer_state.json"])
def test_a_file_may_be_named_and_numbers_that_are_none_may_be_in_it(tmp_path, name, call):
    rows = grpo_log(1)
    for row in rows[20:]:
        row["grad_norm"] = math.nan
    path = (state if name.endswith(".json") else write)(tmp_path / "x" / name, rows)
    said, code = call("--log", path, "--json")
    assert code == 0
    (log,) = json.loads(said)["logs"]
    assert log["arm"] == ("history" if name == "history.jsonl" else "x")
    assert [f["rule"] for f in log["findings"] if f["level"] != "note"] == ["nonfinite"]


def test_the_trainer_is_told_by_the_first_row_that_tells(tmp_path):
    first = {"step": 0, "eval_loss": 0.7}
    assert doctor.examine("a", write(tmp_path / "a.jsonl", [first, *grpo_log(1)])).kind == GRPO
    assert doctor.examine("b", write(tmp_path / "b.jsonl", [first, *sft_log(1)])).kind == SFT


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"step": 1, "loss": 1}\n{"step": 2, "lo\n', "a.jsonl:2 is not valid JSON"),
        ("a.jsonl", '{"step": 1, "lo\n{"step": 2, "lo', "a.jsonl:1 is not valid JSON"),
        ("a.jsonl", '{"step": 1, "loss": 1}\n[3]', "a.jsonl:2 must be a JSON object"),
        ("a.jsonl", '{"step": 1, "loss": 1}\nhello', "a.jsonl:2 is not valid JSON"),
        ("a.jsonl", '{"step": 1, "loss": 1}\n[3]\n', "a.jsonl:2 must be a JSON object"),
        ("a.jsonl", '{"a": "b"}\n', "has no row of an SFT or GRPO training"),
        ("a.jsonl", '{"loss": 1, "rewards/chosen": 1}\n' * 2000, "has no row of an SFT or GRPO"),
        ("trainer_state.json", "{", "trainer_state.json is not valid JSON"),
        ("trainer_state.json", '{"log_history": 3}', "must have log_history, a list of objects"),
        ("trainer_state.json", "[1]", "must have log_history, a list of objects"),
        ("notes.txt", "hello", "notes.txt is not valid JSON"),
        ("a.jsonl", "\udcff{}", "a.jsonl:1 is not valid JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1 is not valid JSON"),
    ],
)
def test_a_log_that_is_none_is_one_sentence(tmp_path, name, content, says, call):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    out, code = call("--log", path)
    assert says in code
    assert code.startswith(f"error: {path}")
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--log", "nowhere"], "nowhere does not exist"),
        (["--log", "."], ". has no log"),
        (["--log", ".", "--run", "tiny"], "--run and --log exclude each other"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments, says, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert says in call(*arguments)[1]


@pytest.mark.parametrize("torn", ['{"step": 999, "lo', "{", '\n{"step": 9, "a": "\udcc3'])
def test_a_last_line_that_is_being_written_is_passed_over(tmp_path, torn, call):
    path = write(tmp_path / "a.jsonl", collapsed(1))
    with path.open("ab") as file:
        file.write(torn.encode("utf-8", "surrogateescape"))
    said, code = call("--log", path, "--json")
    assert code == 0
    (log,) = json.loads(said)["logs"]
    assert log["rows"] == len(collapsed(1))
    assert "entropy-collapse" in [f["rule"] for f in log["findings"]]
    path.write_text("{")
    assert "nothing logged yet" in call("--log", path)[0]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_run_without_a_log_that_can_be_read_fails_in_a_sentence(runs, flags, call):
    for log in (runs / "tiny").glob("*/log.jsonl"):
        log.write_text("hello\n")
    out, code = call("--run", "tiny", *flags)
    assert code == f"error: {runs / 'tiny'} has no log that can be read"
    assert out == ""


@pytest.mark.parametrize("kind", [SFT, GRPO])
def test_what_a_training_was_lost_by_is_found_though_nothing_was_logged_before(tmp_path, kind):
    row = {"step": 3, "weight": None, "learning_rate": 0.1, "trainer": kind}
    why = {"lost": "a weight is not a finite number"}
    patient = doctor.examine("a", write(tmp_path / "a.jsonl", [{**row, **why}]))
    (found,) = patient.findings
    assert (patient.kind, found.rule, found.level) == (kind, "nonfinite", "stop")
    assert (found.step, found.evidence) == (3, why["lost"])
    healthy = sft_log(1) if kind == SFT else grpo_log(1)
    row["step"] = healthy[-1]["step"] + 1
    whole = doctor.examine("b", write(tmp_path / "b.jsonl", [*healthy, {**row, **why}]))
    assert whole.findings[0].evidence == why["lost"]
    alone = doctor.examine("c", write(tmp_path / "c.jsonl", [*healthy, row]))
    assert "nonfinite" not in [finding.rule for finding in alone.findings]


def test_rows_out_of_order_are_counted_and_said(tmp_path, call):
    rows = grpo_log(1)
    said, code = call("--log", write(tmp_path / "a.jsonl", [*rows[:40], *rows[30:]]))
    assert code == 0
    assert "1 rows lie before their predecessor" in said
    assert "nothing found" in said
    assert call("--log", write(tmp_path / "b.jsonl", rows[::-1]))[1] == 0


def test_a_long_log_is_read_row_by_row(tmp_path, monkeypatch):
    read = []

    def rows(path):
        for row in sft_log(1, rows=500):
            read.append(row["step"])
            yield row

    monkeypatch.setattr(doctor, "rows_of", rows)
    watched = doctor._watched(tmp_path / "log.jsonl")
    next(watched)
    assert len(read) == 1
    assert sum(1 for _ in watched) == 499


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path, call):
    said, code = call("--log", write(tmp_path / "[red]x[" / "log.jsonl", sft_log(1)))
    assert code == 0
    assert "[red]x[" in said


def test_a_missing_run_is_one_of_our_own_mistakes(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    with pytest.raises(UserError, match="no run has a log yet"):
        doctor.run_folder("tiny")
