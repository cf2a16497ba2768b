import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from data import recipe as recipes
from data.common.errors import UserError, run_main
from data.common.files import MANIFEST
from data.prompts import prompt
from data.recipe import load_recipe
from eval.answers import asker
from eval.day import ask
from eval.day.days import Wanted, read_day
from pipeline.model.decode import Decoding, render, sample_batch
from pipeline.model.load import load_model

ROOT = Path(__file__).parents[1]
TINY = ROOT / "pipeline" / "recipes" / "tiny.yaml"
EMBEDDED = ROOT / "pipeline" / "embedded"
DAY = ("Yoga class 9:00-10:30 !", "Zoo visit 10:00-12:00", "Vet visit 11:00-13:00")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No trained arm, unless a test makes one."""
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs")


@pytest.fixture(scope="module")
def embedded():
    return load_model(str(EMBEDDED), "float32")


def trained(tmp_path, arm: str, run: str = "tiny") -> None:
    """Have an arm that is the embedded base."""
    folder = tmp_path / "runs" / run / arm
    shutil.copytree(EMBEDDED, folder / "model")
    (folder / MANIFEST).write_text("{}")


def run(monkeypatch, capsys, *arguments: object, stdin: str | bytes = "") -> str:
    """What the command prints, run as ``python -m eval.day.ask`` would, with a model's folder beside
    the working folder's."""
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    given = ["ask", "--recipe", TINY, "--model", EMBEDDED, *arguments]
    monkeypatch.setattr(sys, "argv", list(map(str, given)))
    run_main(ask.main)
    return capsys.readouterr().out


def ending(monkeypatch, capsys, *arguments: object, stdin: str | bytes = "") -> str:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, capsys, *arguments, stdin=stdin)
    assert isinstance(ended.value.code, str)
    assert "\n" not in ended.value.code
    return ended.value.code.removeprefix("error: ")


# --- an answer -----------------------------------------------------------------------------


def test_a_typed_day_is_answered_judged_and_drawn(monkeypatch, capsys):
    said = run(monkeypatch, capsys, *DAY)
    assert said.startswith(f"Asking base ({EMBEDDED}), 3 events:\n")
    assert "<schedule>" in said
    assert "09:00-10:30  Yoga class: 180 weighted minutes" in said
    assert "verdict  " in said
    assert said.endswith("optimum  300 weighted minutes, proven\n")


def test_the_same_seed_gives_the_same_answer_and_others_give_others(monkeypatch, capsys):
    answers = [run(monkeypatch, capsys, "--seed", seed, *DAY) for seed in (1, 1, 2, 3, 4)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 2


@pytest.mark.parametrize("way", ["file", "standard input", "dash"])
def test_a_day_is_read_from_a_file_or_standard_input(way, monkeypatch, capsys, tmp_path):
    events = [{"name": "Yoga class", "start": "9:00", "end": "10:30", "priority": True}]
    path = tmp_path / "day"
    path.write_text(json.dumps(events))
    arguments = {"file": ["--day", path], "standard input": [], "dash": ["--day", "-"]}[way]
    stdin = "" if way == "file" else path.read_text()
    said = run(monkeypatch, capsys, *arguments, stdin=stdin)
    assert "Yoga class: 180 weighted minutes" in said


def test_a_calendar_is_asked_for_one_day_with_its_notes(monkeypatch, capsys, tmp_path):
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0"]
    for name, start, category in (
        ("Zoo visit", "20260302T090000", "Fun"),
        ("Vet visit", "20260302T093000", "Duty"),
        ("Swim meet", "20260303T090000", "Fun"),
    ):
        lines += ["BEGIN:VEVENT", f"UID:{name}", f"SUMMARY:{name}", f"DTSTART:{start}",
                  "DURATION:PT1H", f"CATEGORIES:{category}", "END:VEVENT"]  # fmt: skip
    path = tmp_path / "c.ics"
    path.write_text("\r\n".join([*lines, "END:VCALENDAR", ""]))
    said = run(monkeypatch, capsys, "--day", path, "--priorities", "duty")
    assert said.startswith("Asked is Monday, 2026-03-02, the first day with events.\nAsking base")
    assert "Vet visit: 120 weighted minutes" in said
    assert "Swim meet: 60" in run(monkeypatch, capsys, "--day", path, "--date", "2026-03-03")


def test_an_arm_is_asked_with_the_shots_of_its_recipe(monkeypatch, capsys, tmp_path):
    content = yaml.safe_load(TINY.read_text())
    content["eval"]["shots"] = 2
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="`make data` writes it"):
        ask.shots_of(recipe, 2)
    rows = [{"tier": tier, "prompt": tier, "gold": "g"} for tier in ("dense", "trap", "dense")]
    monkeypatch.setattr(asker, "read_split", lambda *_: rows)
    assert ask.shots_of(recipe, 2) == [("dense", "g"), ("dense", "g")]
    assert ask.shots_of(recipe, 0) == []


@pytest.mark.parametrize(
    ("line", "strange"),
    [
        ("Standup 09:00-09:30 !", "Standup"),
        ("Vet visit 8:50-9:30", "08:50"),
        ("Vet visit 9-10", ""),
    ],
)
def test_a_small_model_says_beforehand_what_it_has_to_spell(line, strange, monkeypatch, capsys):
    said = run(monkeypatch, capsys, "--seed", 1, line, "Yoga class 9:00-10:30")
    asking, note, answer = said.split("\n\n")[:3]
    if not strange:
        assert "Note:" not in said
        return
    assert asking.startswith("Asking base")
    assert "\n" not in note
    assert note.startswith("Note: this small model knows 55 names of events (Archery lesson, ")
    assert f"anything else, here {strange}, it spells letter by letter" in note
    assert answer.startswith(("<think>", "<schedule>"))


def test_a_tokenizer_that_has_no_tokens_for_whole_names_needs_no_note():
    day = read_day(b"Standup 09:00-09:30", "d", Wanted())

    def in_pieces(text, add_special_tokens):
        return {"input_ids": [text[i : i + 4] for i in range(0, len(text), 4)]}

    assert ask.spelled_out(in_pieces, day.problem) is None


# --- streaming -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_streamed_is_the_completion(embedded, temperature):
    model, tokenizer = embedded
    day = read_day("\n".join(DAY).encode(), "d", Wanted())
    rendered = render(tokenizer, prompt(day.problem))
    shown: list[str] = []
    decoding = Decoding(120, temperature)
    found = ask.stream(model, tokenizer, rendered, decoding, 3, shown.append)
    assert "".join(shown) == found.completion
    assert len([text for text in shown if text]) > 3
    assert found.finish_reason == "stop"
    if not temperature:
        (expected,) = sample_batch(model, tokenizer, [rendered], 1, decoding, [0])
        assert found == expected[0]


def test_an_answer_that_is_cut_off_says_so(embedded):
    model, tokenizer = embedded
    day = read_day("\n".join(DAY).encode(), "d", Wanted())
    rendered = render(tokenizer, prompt(day.problem))
    found = ask.stream(model, tokenizer, rendered, Decoding(4), 3, lambda text: None)
    assert (found.finish_reason, found.tokens) == ("length", 4)


def test_a_models_own_sampling_defaults_do_not_reach_the_answer(embedded):
    model, tokenizer = embedded
    day = read_day("\n".join(DAY).encode(), "d", Wanted())
    rendered = render(tokenizer, prompt(day.problem))

    def answers() -> list[str]:
        return [
            ask.stream(model, tokenizer, rendered, Decoding(60), seed, lambda text: None).completion
            for seed in range(4)
        ]

    plain = answers()
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    assert answers() == plain


def test_a_prompt_longer_than_the_context_is_refused_before_the_model_is_asked(monkeypatch, capsys):
    monkeypatch.setattr(ask, "stream", None)
    lines = "\n".join(f"Event {i} 9:00-10:00" for i in range(500))
    said = ending(monkeypatch, capsys, stdin=lines)
    assert said.startswith("the prompt has ")
    assert "more than the 1024 that this model can hold" in said


# --- which model ---------------------------------------------------------------------------


def test_the_last_trained_arm_is_asked_and_else_the_base(tmp_path):
    recipe = load_recipe(TINY)
    assert ask.chosen_arm(recipe, None, False) == "base"
    trained(tmp_path, "sft")
    assert ask.chosen_arm(recipe, None, False) == "sft"
    trained(tmp_path, "grpo")
    assert ask.chosen_arm(recipe, None, False) == "grpo"
    assert ask.chosen_arm(recipe, "sft", False) == "sft"
    assert recipe.run.model("grpo") == str(tmp_path / "runs" / "tiny" / "grpo" / "model")
    # A model that is named is meant.
    assert ask.chosen_arm(recipe, None, True) == "base"


def test_a_trained_arm_answers(monkeypatch, capsys, tmp_path):
    trained(tmp_path, "grpo")
    said = run(monkeypatch, capsys, "--arm", "grpo", *DAY)
    assert said.startswith(f"Asking grpo ({tmp_path}/runs/tiny/grpo/model), 3 events:\n")


# --- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--arm", "gpro"],
            "--arm must be one of base, sft, grpo, not 'gpro'; did you mean 'grpo'",
        ),
        (["--arm", "grpo"], "grpo/model is not finished; `make grpo` trains it"),
        (["--day", "nowhere.ics"], "--day: nowhere.ics does not exist"),
        (["--day", "."], "--day: . is a folder"),
        (["--day", "x", "A 9-10"], "give events or --day, not both"),
        (["A"], "the command line:1: 'A' is not an event"),
        ([b"\xff 9-10".decode(errors="surrogateescape")], "the command line:1 is not UTF-8 text"),
        ([], "standard input has no events"),
        (["--date", "2.3.2026", "A 9-10"], "--date: '2.3.2026' is no date such as 2026-03-02"),
        (["--date", "2026-03-02", "A 9-10"], "--date chooses from a calendar"),
        (["--id", "x", "A 9-10"], "--id chooses from rows of JSON"),
        (["--day", "Yoga class 9-10, " * 20], "--day: Yoga class 9-10, "),
        (["--seed", "-1", "A 9-10"], "--seed must be 0 to 4294967295, not -1"),
        (["--temperature", "-1", "A 9-10"], "--temperature must be 0 or more"),
        (["--temperature", "nan", "A 9-10"], "--temperature must be 0 or more"),
        (["--model", "/nowhere", "A 9-10"], "model folder /nowhere does not exist"),
        (["A 9-10", "--priorities", "B"], "--priorities: 'B' is no event"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert says in ending(monkeypatch, capsys, *arguments)


def test_what_is_typed_has_no_date_to_choose(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("events are asked for"))
    monkeypatch.setattr(sys, "argv", ["ask", "--recipe", str(TINY), "--date", "2026-03-02"])
    with pytest.raises(UserError, match=r"--date chooses from a calendar, and a day that is typed"):
        ask.main()


# --- a terminal ----------------------------------------------------------------------------


def test_at_a_terminal_events_are_asked_for_one_by_one_and_the_day_is_drawn(tmp_path):
    """Under a real terminal: a line that cannot be read is asked for again, bars are drawn."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "eval.try", "--recipe", TINY, "--model", EMBEDDED]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        list(map(str, command)), stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    os.write(
        master, "\n".join(["Yoga class 9-10:30 !", "Yoga", "Zoo visit 10-12", "", ""]).encode()
    )
    said, until = b"", time.monotonic() + 120
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
    assert "Type your day, one event a line" in text
    assert "this line: 'Yoga' is not an event; write NAME HH:MM-HH:MM" in text
    assert "Asking base" in text
    assert "█" in text
    assert "optimum  180 weighted minutes, proven" in text
    assert "Traceback" not in text
