"""``make try``: the best plan for a day, and a model's answer, judged and drawn."""

import io
import json
import random
import shutil
import sys
from datetime import UTC, timedelta
from itertools import combinations

import pytest
import yaml
from icalendar import Calendar
from problems import random_problem
from running import EMBEDDED, TINY

from data import recipe as recipes
from data.clock import MINUTE
from data.common.files import MANIFEST
from data.names import EVENT_NAMES
from data.prompts import schedule_xml
from data.recipe import load_recipe
from eval.day.ask import known_names, known_words
from eval.day.days import left_out, read_day, with_rules

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
def run(monkeypatch, run_command):
    """What the command says when it is given these arguments and this standard input: what it
    prints, or the sentence of a mistake."""

    def call(*arguments: object, stdin: str = "") -> str:
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", given)
        said, ended = run_command("eval.try", "--recipe", TINY, "--model", EMBEDDED, *arguments)
        return said if ended == 0 else ended

    return call


@pytest.mark.slow
def test_a_typed_day_is_answered_judged_and_drawn_the_same_for_the_same_seed(run):
    answers = [run("--seed", seed, *DAY) for seed in (1, 1, 2, 3, 4)]
    assert answers[0].startswith(
        "The best plan, 300 weighted minutes, proven:\n  09:00–10:30  180!"
    )
    assert f"\nAsking base ({EMBEDDED}) for 8 answers, 3 events:\n" in answers[0]
    assert "<schedule>" in answers[0]
    assert "09:00–10:30  180 Yoga class" in answers[0]
    assert answers[0].endswith("optimum  300 weighted minutes, proven\n")
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


@pytest.mark.slow
def test_a_day_is_read_from_standard_input(run):
    assert "  90 Yoga class" in run(stdin=json.dumps([["Yoga class", "9:00", "10:30"]]))


@pytest.mark.slow
def test_a_calendar_is_asked_for_one_day_with_its_notes(run, tmp_path):
    (tmp_path / "c.ics").write_text(CALENDAR)
    said = run("--day", "c.ics", "--priorities", "duty")
    assert said.startswith("Asked is Monday, 2026-03-02, the first day with events.\nThe best plan")
    assert " 120 Vet visit" in said
    assert "  60 Swim meet" in run("--day", "c.ics", "--date", "2026-03-03")


def test_an_arm_is_asked_with_the_shots_of_its_recipe(run, tmp_path):
    content = yaml.safe_load(TINY.read_text())
    content["eval"]["shots"] = 2
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    says = run("--recipe", tmp_path / "r.yaml", *DAY)
    assert f"`make data RECIPE={tmp_path / 'r.yaml'} MODEL={EMBEDDED}` writes it" in says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "asked_as"),
    [
        ("Standup 09:00-09:30", "Standup as"),
        ("Vet visit 8:50-9:30", "08:50 as 08:45"),
        ("Vet visit 9-10", ""),
    ],
)
def test_a_small_model_is_asked_in_its_words_and_answers_in_the_days(line, asked_as, run):
    said = run("--seed", 1, line, "Yoga class 11:00-12:30")
    assert ("Asked in words" in said) == bool(asked_as)
    assert asked_as in said
    assert "verdict  ✓ optimal" in said or "verdict  ○ feasible" in said


def by_words(text, add_special_tokens):
    """A tokenizer that knows event names and quarter hours as single tokens."""
    known = text in EVENT_NAMES or (text in MINUTE and MINUTE[text] % 15 == 0)
    return {"input_ids": [0] if known else [0, 0]}


@pytest.mark.parametrize("seed", range(20))
def test_other_words_keep_what_overlaps_and_what_touches_and_lead_back(seed):
    problem = random_problem(random.Random(seed), most=30)
    words = known_words(by_words, problem, EVENT_NAMES)
    there = words.put(problem)
    for (a, b), (x, y) in zip(
        combinations(problem.events, 2), combinations(there.events, 2), strict=True
    ):
        assert a.overlaps(b) == x.overlaps(y)
        assert (a.end == b.start) == (x.end == y.start)
    assert known_words(by_words, there, EVENT_NAMES) is None
    assert words.back(schedule_xml(there.events)) == schedule_xml(problem.events)


def test_rules_are_asked_in_other_words_too():
    rules = ["before STANDUP, Lunch", "must_include lunch", "break 30 12:10-14:00"]
    problem = with_rules(read_day(b"Standup 9-10\nLunch 12:05-13", "d").problem, rules)
    there = known_words(by_words, problem, EVENT_NAMES).put(problem)
    there.check()
    assert there.rules[-1].sentence().endswith("free between 12:15 and 14:00.")


def test_a_tokenizer_that_has_no_tokens_for_whole_names_is_asked_as_it_is():
    def in_pieces(text, add_special_tokens):
        return {"input_ids": [text[i : i + 4] for i in range(0, len(text), 4)]}

    assert known_names(in_pieces) == []
    assert known_words(in_pieces, read_day(b"Standup 9-10", "d").problem, []) is None


@pytest.mark.slow
def test_the_best_plan_stands_first_with_what_it_leaves_out_and_is_saved(run, tmp_path):
    zoned = CALENDAR.replace("DTSTART:", "DTSTART;TZID=Europe/Berlin:").replace("0303", "0302")
    (tmp_path / "c.ics").write_text(zoned)
    said = run("--day", "c.ics", "--rule", "at_most 1", "--answers", 1, "--out", "plan.ics")
    plan, _, rest = said.partition("Left out:")
    assert "09:30–10:30   60  Vet visit" in plan or "09:00–10:00   60  Swim meet" in plan
    assert "overlaps" in rest
    [event] = Calendar.from_ical((tmp_path / "plan.ics").read_bytes()).events
    assert event.start.astimezone(UTC).isoformat() in (
        "2026-03-02T08:30:00+00:00", "2026-03-02T08:00:00+00:00",
    )  # fmt: skip
    assert event.duration == timedelta(hours=1)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("at_most 1", "Choose at most 1 events."),
        ("break 12:00–13:00", "Keep 60 minutes in a row free between 12:00 and 13:00."),
        ("travel standup / Lunch, Gym / 30", "Standup and the place of Lunch and Gym takes 30"),
        ("at_most_one gym, lunch", "Choose at most one of Gym and Lunch."),
    ],
)
def test_rules_are_given_in_words(rule, sentence):
    problem = read_day(b"Standup 9-10\nLunch 12-13\nGym 14-15", "d").problem
    assert sentence in with_rules(problem, [rule]).rules[-1].sentence()


def test_what_a_rule_leaves_out_is_said_with_the_rule():
    problem = with_rules(read_day(b"A 9-10\nB 9-11\nC 12-13", "d").problem, ["at_most 1"])
    reasons = {e.name: why for e, why in left_out(problem, (problem.by_name["B"],))}
    assert reasons == {"A": "overlaps B", "C": "would break: Choose at most 1 events."}


def test_the_last_trained_arm_is_asked_and_else_the_base(tmp_path):
    run = load_recipe(TINY).run
    chosen = [run.chosen(None)]
    for arm in ("sft", "grpo"):
        folder = tmp_path / "runs" / "tiny" / arm
        shutil.copytree(EMBEDDED, folder / "model")
        (folder / MANIFEST).write_text("{}")
        chosen.append(run.chosen(None))
    assert chosen == ["base", "sft", "grpo"]
    assert run.chosen("sft") == "sft"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--arm", "gpro"], "'gpro'; did you mean 'grpo'"),
        (["--arm", "grpo"], "train.jsonl does not exist or is not finished; `make data RECIPE="),
        (["--day", "nowhere.ics"], "DAY= (--day): nowhere.ics is no file"),
        (["--day", "Yoga class 9-10, " * 20], "DAY= (--day): Yoga class 9-10, "),
        (["--day", "x", "A 9-10"], "give events or DAY= (--day), not both"),
        (["A"], "the command line:1: 'A' is not an event"),
        ([], "standard input has no events"),
        (["--date", "2.3.2026", "A 9-10"], "DATE= (--date): '2.3.2026'"),
        (["--seed", "-1", "A 9-10"], "--seed must be 0 to 4294967295, not -1"),
        (["--model", "/nowhere", "A 9-10"], "model folder /nowhere does not exist"),
        (["A 9-10", "--priorities", "B"], "--priorities: 'B' is no event"),
        (["A 9-10", "--rule", "atmost 4"], "did you mean 'at_most'"),
        (["A 9-10", "--rule", "gap"], "minutes must be a whole number"),
        (["Lunch 9-10", "--rule", "must_include lunsh"], "did you mean 'Lunch'"),
        (["A 9-10", "--rule", "travel A / 30"], "write travel HERE / THERE / MINUTES"),
        (["A 9-10", "--answers", "0"], "--answers must be 1 or more"),
        pytest.param(
            [f"Event {i} 9:00-10:00" for i in range(500)], "the 1024 that this model can hold",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments, says, run):
    said = run(*arguments)
    assert said.startswith("error: ")
    assert says in said
    assert "\n" not in said
