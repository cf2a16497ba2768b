"""``make try``: a day is asked, the answer streamed, judged and drawn."""

import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from data import recipe as recipes
from data.common.errors import run_main
from data.common.files import MANIFEST
from data.prompts import prompt
from data.recipe import load_recipe
from eval.day.ask import spelled_out, stream
from eval.day.days import Wanted, read_day
from pipeline.model.decode import Decoding, render, sample_batch
from pipeline.model.load import load_model

command = import_module("eval.try")  # no name of a statement

ROOT = Path(__file__).parents[1]
TINY = ROOT / "pipeline" / "recipes" / "tiny.yaml"
EMBEDDED = ROOT / "pipeline" / "embedded"
DAY = ("Yoga class 9:00-10:30 !", "Zoo visit 10:00-12:00", "Vet visit 11:00-13:00")
CALENDAR = """BEGIN:VCALENDAR
BEGIN:VEVENT
UID:1
SUMMARY:Vet visit
CATEGORIES:Duty
DTSTART:20260302T093000
DURATION:PT1H
END:VEVENT
BEGIN:VEVENT
UID:2
SUMMARY:Swim meet
DTSTART:20260303T090000
DURATION:PT1H
END:VEVENT
END:VCALENDAR
"""


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No trained arm, unless a test makes one."""
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch, capsys):
    """What the command prints when it is given these arguments and this standard input."""

    def call(*arguments: object, stdin: str = "") -> str:
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", given)
        argv = ["try", "--recipe", TINY, "--model", EMBEDDED, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        run_main(command.main)
        return capsys.readouterr().out

    return call


def trained(folder: Path, arm: str) -> None:
    """Have an arm that is the embedded base."""
    shutil.copytree(EMBEDDED, folder / "runs" / "tiny" / arm / "model")
    (folder / "runs" / "tiny" / arm / MANIFEST).write_text("{}")


# --- an answer -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_typed_day_is_answered_judged_and_drawn_the_same_for_the_same_seed(run):
    answers = [run("--seed", seed, *DAY) for seed in (1, 1, 2, 3, 4)]
    assert answers[0].startswith(f"Asking base ({EMBEDDED}), 3 events:\n")
    assert "<schedule>" in answers[0]
    assert "09:00–10:30  180 Yoga class" in answers[0]
    assert answers[0].endswith("optimum  300 weighted minutes, proven\n")
    assert answers[0] == answers[1]
    assert len(set(answers)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "standard input", "dash"])
def test_a_day_is_read_from_a_file_or_standard_input(way, run, tmp_path):
    day = tmp_path / "day"
    day.write_text(json.dumps([["Yoga class", "9:00", "10:30"]]))
    arguments = {"file": ["--day", day], "standard input": [], "dash": ["--day", "-"]}[way]
    assert "  90 Yoga class" in run(*arguments, stdin="" if way == "file" else day.read_text())


@pytest.mark.slow
def test_a_calendar_is_asked_for_one_day_with_its_notes(run, tmp_path):
    (tmp_path / "c.ics").write_text(CALENDAR)
    said = run("--day", "c.ics", "--priorities", "duty")
    assert said.startswith("Asked is Monday, 2026-03-02, the first day with events.\nAsking base")
    assert " 120 Vet visit" in said
    assert "  60 Swim meet" in run("--day", "c.ics", "--date", "2026-03-03")


def test_an_arm_is_asked_with_the_shots_of_its_recipe(run, tmp_path):
    content = yaml.safe_load(TINY.read_text())
    content["eval"]["shots"] = 2
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match="`make data` writes it"):
        run("--recipe", tmp_path / "r.yaml", *DAY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "strange"),
    [("Standup 09:00-09:30", "Standup"), ("Vet visit 8:50-9:30", "08:50"), ("Vet visit 9-10", "")],
)
def test_a_small_model_says_beforehand_what_it_has_to_spell(line, strange, run):
    said = run("--seed", 1, line, "Yoga class 9:00-10:30")
    assert ("Note:" in said) == bool(strange)
    assert f"here {strange}, it spells letter by letter" in said or not strange
    before, _, _ = said.partition("<")  # the answer
    assert ("Note:" in before) == bool(strange)


def test_a_tokenizer_that_has_no_tokens_for_whole_names_needs_no_note():
    def in_pieces(text, add_special_tokens):
        return {"input_ids": [text[i : i + 4] for i in range(0, len(text), 4)]}

    assert spelled_out(in_pieces, read_day(b"Standup 9-10", "d", Wanted()).problem) is None


# --- streaming -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    """The embedded model, its tokenizer and a rendered prompt."""
    model, tokenizer = load_model(str(EMBEDDED), "float32")
    day = read_day("\n".join(DAY).encode(), "d", Wanted())
    return model, tokenizer, render(tokenizer, prompt(day.problem))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_streamed_is_the_completion(asked, temperature):
    shown: list[str] = []
    decoding = Decoding(120, temperature)
    sample = stream(*asked, decoding, 3, shown.append)
    assert "".join(shown) == sample.completion
    assert len([text for text in shown if text]) > 3
    assert sample.finish_reason == "stop"
    cut = stream(*asked, Decoding(4, temperature), 3, lambda text: None)
    assert (cut.finish_reason, cut.tokens) == ("length", 4)
    if not temperature:
        model, tokenizer, rendered = asked
        (expected,) = sample_batch(model, tokenizer, [rendered], 1, decoding, [0])
        assert sample == expected[0]


@pytest.mark.slow
def test_a_models_own_sampling_defaults_do_not_reach_the_answer(asked):
    def answers() -> list[str]:
        samples = (stream(*asked, Decoding(60), seed, lambda text: None) for seed in range(4))
        return [sample.completion for sample in samples]

    plain = answers()
    asked[0].generation_config.top_k = 1
    asked[0].generation_config.repetition_penalty = 5.0
    assert answers() == plain


# --- which model -----------------------------------------------------------------------------


def test_the_last_trained_arm_is_asked_and_else_the_base(tmp_path):
    run = load_recipe(TINY).run
    chosen = [run.chosen(None)]
    for arm in ("sft", "grpo"):
        trained(tmp_path, arm)
        chosen.append(run.chosen(None))
    assert chosen == ["base", "sft", "grpo"]
    assert run.chosen("sft") == "sft"


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--arm", "gpro"], "'gpro'; did you mean 'grpo'"),
        (["--arm", "grpo"], "`make grpo` trains it"),
        (["--day", "nowhere.ics"], "--day: nowhere.ics does not exist"),
        (["--day", "."], "--day: . is a folder"),
        (["--day", "Yoga class 9-10, " * 20], "--day: Yoga class 9-10, "),
        (["--day", "x", "A 9-10"], "give events or --day, not both"),
        (["A"], "the command line:1: 'A' is not an event"),
        ([b"\xff 9-10".decode(errors="surrogateescape")], "the command line:1 is not UTF-8 text"),
        ([], "standard input has no events"),
        (["--date", "2.3.2026", "A 9-10"], "--date: '2.3.2026'"),
        (["--seed", "-1", "A 9-10"], "--seed must be 0 to 4294967295, not -1"),
        (["--temperature", "-1", "A 9-10"], "--temperature must be 0 or more"),
        (["--model", "/nowhere", "A 9-10"], "model folder /nowhere does not exist"),
        (["A 9-10", "--priorities", "B"], "--priorities: 'B' is no event"),
        pytest.param(
            [f"Event {i} 9:00-10:00" for i in range(500)], "the 1024 that this model can hold",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments, says, run):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert says in ended.value.code
    assert "\n" not in ended.value.code


@pytest.mark.slow
def test_at_a_terminal_events_are_asked_for_one_by_one_and_the_day_is_drawn(tmp_path):
    """Under a real terminal: a line that cannot be read is asked for again, bars are drawn."""
    master, slave = pty.openpty()
    argv = [sys.executable, "-m", "eval.try", "--recipe", str(TINY), "--model", str(EMBEDDED)]
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(slave)
    os.write(master, b"Yoga class 9-10:30 !\nYoga\nZoo visit 10-12\n\n")
    said, until = b"", time.monotonic() + 300
    try:
        while time.monotonic() < until:
            try:
                said += os.read(master, 65536)
            except OSError:  # the terminal is closed
                break
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        os.close(master)
    text = said.decode()
    for part in (
        "event> ",
        "this line: 'Yoga' is not an event",
        "Asking base",
        "█",
        "180 weighted",
    ):
        assert part in text
    assert "Traceback" not in text
