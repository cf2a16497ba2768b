"""`make doctor`: which logs are read, and how findings are reported."""

import json
import math
import sys

import pytest

from data import recipe
from data.common.errors import run_main
from pipeline import doctor
from pipeline.health.logs import examine
from pipeline.health.signals import GRPO, SFT
from tests.synthetic import changed, collapsed, grpo_log, hacked, sft_log


def write(path, rows):
    """A log or, by its suffix, a trainer state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps({"global_step": 5, "log_history": rows}))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command as ``python -m`` would; returns its output, and how it ended."""
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
def diagnosed(call):
    """A function that returns the only log of a successful ``--log PATH --json``."""

    def read(path):
        said, code = call("--log", path, "--json")
        assert code == 0
        (log,) = json.loads(said)["logs"]
        log["symptoms"] = [one["symptom"] for one in log["findings"] if one["level"] != "note"]
        return log

    return read


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    write(tmp_path / "tiny" / "sft" / "log.jsonl", sft_log(1))
    write(tmp_path / "tiny" / "grpo" / "log.jsonl", changed(hacked(23), "kl", lambda row: None))
    write(tmp_path / "tiny" / "late" / "log.jsonl", [])
    return tmp_path


def test_a_run_is_reported_arm_by_arm_with_evidence_and_advice(runs, call):
    said, code = call("--run", "tiny")
    assert code == 0
    text = " ".join(said.split())
    assert "grpo GRPO, 12 rows, steps 5 to 60: 1 stop" in text
    assert "make audit" in text
    assert "sft SFT, 40 rows, steps 5 to 200: nothing found" in text
    assert "kl-slow (needs KL)" in text
    # Of several logs, an overview at the end.
    assert [line.split() for line in said.splitlines()[-3:]] == [
        ["grpo", "hacking", "(50)"],
        ["late", "nothing", "logged", "yet"],
        ["sft", "nothing"],
    ]


def test_json_has_the_same(runs, call):
    logs = {log["arm"]: log for log in json.loads(call("--run", "tiny", "--json")[0])["logs"]}
    assert logs["grpo"]["findings"][0]["symptom"] == "hacking"
    assert (logs["sft"]["kind"], logs["sft"]["findings"]) == (SFT, [])
    assert "overfitting" in logs["sft"]["looked"]
    assert logs["late"]["kind"] is None


def test_a_run_that_is_not_there_names_those_that_are(runs, call, monkeypatch):
    assert "'tiny'" in call("--run", "tinny")[1]
    monkeypatch.setattr(recipe, "RUNS", runs / "tiny")
    assert "no run has a log yet" in call("--run", "tiny")[1]


def test_the_newest_checkpoint_of_another_trainer_is_read(tmp_path, diagnosed):
    write(tmp_path / "checkpoint-9" / "trainer_state.json", grpo_log(1)[:9])
    write(tmp_path / "checkpoint-10" / "trainer_state.json", collapsed(1))
    write(tmp_path / "checkpoint-last" / "trainer_state.json", [])
    log = diagnosed(tmp_path)
    assert log["path"].endswith("checkpoint-10/trainer_state.json")
    assert log["symptoms"] == ["entropy-collapse"]


@pytest.mark.parametrize("name", ["history.jsonl", "log.jsonl", "trainer_state.json"])
def test_a_file_may_be_named_and_hold_numbers_that_are_not_finite(tmp_path, name, diagnosed):
    log = diagnosed(
        write(
            tmp_path / "x" / name,
            changed(grpo_log(1), "grad_norm", lambda row: math.nan if row > 19 else 0.2),
        )
    )
    assert log["arm"] == ("history" if name == "history.jsonl" else "x")
    assert log["symptoms"] == ["nonfinite"]


def test_the_first_row_that_can_tells_the_trainer(tmp_path):
    first = {"step": 0, "eval_loss": 0.7}
    assert examine("a", write(tmp_path / "a.jsonl", [first, *grpo_log(1)])).kind == GRPO
    assert examine("b", write(tmp_path / "b.jsonl", [first, *sft_log(1)])).kind == SFT


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"step": 1, "loss": 1}\n{"step": 2, "lo\n', "a.jsonl:2 "),
        ("a.jsonl", '{"step": 1, "loss": 1}\n[3]', "a.jsonl:2 "),
        ("a.jsonl", '{"a": "b"}\n', "SFT or GRPO"),
        ("a.jsonl", '{"loss": 1, "rewards/chosen": 1}\n' * 2000, "SFT or GRPO"),
        ("trainer_state.json", "{", "JSON"),
        ("trainer_state.json", '{"log_history": 3}', "log_history"),
        ("notes.txt", "hello", "SFT or GRPO"),
        ("a.jsonl", '{"reward": "much"}', "no signal"),
        ("a.json", '{"reward": 3}', "log_history"),
        ("a.csv", "Step,a - train/loss,b - train/loss\n1,2,3\n", "several runs (a, b)"),
        ("a.jsonl", "\udcff{}", "a.jsonl:1 "),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1 "),
    ],
)
def test_a_file_that_is_not_a_log_is_refused_in_one_sentence(tmp_path, name, content, says, call):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    out, code = call("--log", path)
    assert out == ""
    assert code.startswith(f"error: {path}")
    assert says in code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--log", "nowhere"], "nowhere does not exist"),
        (["--log", "."], ". has no log"),
        (["--log", ".", "--run", "tiny"], "--run and --log"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments, says, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert says in call(*arguments)[1]


@pytest.mark.parametrize("torn", ['{"step": 999, "lo', "{", '\n{"step": 9, "a": "\udcc3'])
def test_a_last_line_that_is_being_written_is_passed_over(tmp_path, torn, call, diagnosed):
    path = write(tmp_path / "a.jsonl", collapsed(1))
    with path.open("ab") as file:
        file.write(torn.encode("utf-8", "surrogateescape"))
    log = diagnosed(path)
    assert log["rows"] == len(collapsed(1))
    assert log["symptoms"] == ["entropy-collapse"]
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
def test_the_row_that_ended_a_training_is_a_finding_even_where_it_is_the_only_one(tmp_path, kind):
    last = {"weight": None, "learning_rate": 0.1, "trainer": kind, "step": 999}
    why = {"lost": "a weight is not a finite number"}
    healthy = sft_log(1) if kind == SFT else grpo_log(1)
    for rows in ([], healthy):
        patient = examine("a", write(tmp_path / "a.jsonl", [*rows, {**last, **why}]))
        worst = patient.findings[0]
        assert (patient.kind, worst.symptom, worst.level) == (kind, "nonfinite", "stop")
        assert (worst.step, worst.evidence) == (999, why["lost"])
    assert not examine("b", write(tmp_path / "b.jsonl", [*healthy, last])).serious


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path, call):
    said, code = call("--log", write(tmp_path / "[red]x[" / "log.jsonl", sft_log(1)))
    assert code == 0
    assert "[red]x[" in said
