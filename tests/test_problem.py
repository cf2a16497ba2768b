"""The record: its fingerprint, its JSON form, and what is said of a bad one."""

import json
from dataclasses import replace

import pytest
from problems import day, tier_problems
from running import refusal_of

from data.clock import CLOCK, DAY, MINUTE
from data.event import Event, event_from_json
from data.problem import Problem, problem_from_text
from data.rules import BASE_RULES, Chronological
from data.tiers import TIERS


def test_clock_and_minute_are_inverse_and_hold_every_minute_of_the_day():
    assert len(CLOCK) == len(MINUTE) == DAY == 1440
    assert (CLOCK[0], CLOCK[605], CLOCK[-1]) == ("00:00", "10:05", "23:59")
    assert all(MINUTE[text] == minute and text.isascii() for minute, text in enumerate(CLOCK))


def test_priorities_count_twice():
    problem = day()
    assert problem.value == {"Art": 60, "Band": 90, "Drill": 30, "Echo": 30, "Chess": 60}
    assert problem.objective(problem.events[:2]) == 150
    assert problem.objective(()) == 0


@pytest.mark.parametrize("tier", TIERS)
def test_a_problem_survives_its_json_form(tier):
    for problem in tier_problems(tier, 50):
        text = problem.text
        again = Problem.from_json(json.loads(text))
        assert again == problem
        assert again.fingerprint == problem.fingerprint
        assert problem_from_text(text) == problem
    foreign = Problem((Event(0, 1, "Überraschung & café 茶 🎻"),), (), (Chronological(),), 1)
    assert problem_from_text(foreign.text) == foreign


def test_the_fingerprint_changes_with_times_priorities_and_rules():
    problem = day()
    art, *rest = problem.events
    others = [
        replace(problem, events=(Event(541, 600, "Art"), *rest)),
        replace(problem, events=(Event(540, 601, "Art"), *rest)),
        replace(problem, events=tuple(rest)),
        replace(problem, events=(*problem.events, Event(0, 5, "Yoga"))),
        replace(problem, events=(*problem.events, Event(art.start, art.end, "Yoga"))),
        replace(problem, priorities=()),
        replace(problem, priorities=("Art",)),
        replace(problem, priorities=("Art", "Chess")),
        replace(problem, rules=BASE_RULES[:2]),
        replace(problem, rules=()),
    ]
    assert len({p.fingerprint for p in [problem, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("key", "names", "values"),
    [
        ("events", '"events"', [None, {}, []]),
        ("events", "an event must be", [["Art"], [["Art", "09:00"]], [["Art", "09:00", None]]]),
        ("events", "'24:00'", [[["Art", "09:00", "24:00"]]]),
        ("events", "is not a time", [[["Art", "０9:00", "10:00"]]]),
        ("events", "'Art' ends", [[["Art", "10:00", end]] for end in ("10:00", "09:00")]),
        (
            "events",
            "event name",
            [[[name, "09:00", "10:00"]] for name in ("", " Art", "Art\nclass", "<b>Art", "\ud83d")],
        ),
        ("events", "the same name", [[["Art", "09:00", "10:00"]] * 2]),
        ("priorities", '"priorities"', [None, "Art"]),
        ("priorities", "is not one of the events", [["Yoga"], [1], [["Art"]], [None]]),
        ("priorities", "twice", [["Chess", "Chess"]]),
        ("rules", '"rules"', [None]),
        ("rules", "not_empty", [["no_overlap"], [{"rule": "no_such"}], [{"rule": ["gap"]}], [{}]]),
        ("rules", "'Yoga'", [[{"rule": "must_include", "event": "Yoga"}]]),
        ("rules", "'X'", [[{"rule": "at_most_one", "group": ["Art", "X"]}]]),
        ("optimum", '"optimum"', [None, "180", 180.0, True, 0, -5]),
    ],
)
def test_a_bad_field_is_named_in_one_sentence(key, names, values):
    for value in values:
        record = {**day().to_json(), key: value}
        refusal_of(lambda record=record: Problem.from_json(record), names)


@pytest.mark.parametrize("record", [None, [], "problem"])
def test_what_is_no_object_is_refused(record):
    refusal_of(lambda: Problem.from_json(record), "must be a JSON object")


def test_an_event_takes_the_first_and_the_last_minute():
    assert event_from_json(["Night", "00:00", "23:59"]) == Event(0, 1439, "Night")
    assert Event(0, 1439, "Night").to_json() == ["Night", "00:00", "23:59"]
