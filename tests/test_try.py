"""``make try``: a day is asked, the answer streamed, judged and drawn."""

import io
import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from data import recipe as recipes
from data.common.errors import run_main
from data.common.files import MANIFEST
from data.recipe import load_recipe
from eval.day.ask import spelled_out
from eval.day.days import read_day

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
def test_a_day_is_read_from_standard_input(run):
    assert "  90 Yoga class" in run(stdin=json.dumps([["Yoga class", "9:00", "10:30"]]))


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

    assert spelled_out(in_pieces, read_day(b"Standup 9-10", "d").problem) is None


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
        (["--day", "nowhere.ics"], "--day: nowhere.ics is no file"),
        (["--day", "Yoga class 9-10, " * 20], "--day: Yoga class 9-10, "),
        (["--day", "x", "A 9-10"], "give events or --day, not both"),
        (["A"], "the command line:1: 'A' is not an event"),
        ([], "standard input has no events"),
        (["--date", "2.3.2026", "A 9-10"], "--date: '2.3.2026'"),
        (["--seed", "-1", "A 9-10"], "--seed must be 0 to 4294967295, not -1"),
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
