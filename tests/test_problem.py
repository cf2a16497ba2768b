"""The record: its fingerprint, its JSON form, and what is said of a bad one."""

import json
import random
from dataclasses import replace

import pytest
from conftest import day, random_problem, tier_problems

from data.clock import CLOCK, DAY, MINUTE
from data.common.errors import UserError
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


def test_names_of_any_script_survive_the_json_form():
    problem = Problem((Event(0, 1, "Überraschung & café 茶 🎻"),), (), optimum=1)
    assert Problem.from_json(json.loads(problem.text)) == problem


def test_the_fingerprint_ignores_names_and_order():
    rng = random.Random(5)
    for _ in range(100):
        problem = random_problem(rng)
        called = dict(zip(problem.by_name, rng.sample("abcdefgh", 8), strict=False))
        events = [Event(e.start, e.end, called[e.name]) for e in problem.events]
        priorities = [called[name] for name in problem.priorities]
        rng.shuffle(events)
        rng.shuffle(priorities)
        rules = rng.sample(problem.rules, len(problem.rules))
        other = Problem(tuple(events), tuple(priorities), tuple(rules), optimum=1)
        assert other.fingerprint == problem.fingerprint


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


def test_fresh_problems_have_fresh_fingerprints():
    problems = tier_problems("blog", 500)
    assert len({p.fingerprint for p in problems}) == 500


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("events", None, '"events", a JSON list'),
        ("events", {}, '"events", a JSON list'),
        ("events", [], '"events" is empty'),
        ("events", ["Art"], 'an event must be ["name", "HH:MM", "HH:MM"], not "Art"'),
        ("events", [["Art", "09:00"]], "an event must be"),
        ("events", [["Art", "09:00", 600]], "an event must be"),
        ("events", [["Art", "09:00", None]], "an event must be"),
        ("events", [["Art", "09:00", "24:00"]], "'24:00' is not a time .* (event 'Art')"),
        ("events", [["Art", "9:00", "10:00"]], "'9:00' is not a time"),
        ("events", [["Art", "09:00", "10:60"]], "'10:60' is not a time"),
        ("events", [["Art", "０9:00", "10:00"]], "is not a time"),
        ("events", [["Art", "10:00", "10:00"]], "'Art' ends at 10:00, not after its start"),
        ("events", [["Art", "10:00", "09:00"]], "'Art' ends at 09:00, not after its start"),
        ("events", [["", "09:00", "10:00"]], "event name '' is blank"),
        ("events", [[" Art", "09:00", "10:00"]], "outer blanks"),
        ("events", [["Art\nclass", "09:00", "10:00"]], "a line break"),
        ("events", [["<b>Art", "09:00", "10:00"]], "has <, >"),
        ("events", [["Art", "09:00", "10:00"]] * 2, "two events have the same name"),
        ("priorities", None, '"priorities", a JSON list'),
        ("priorities", "Art", '"priorities", a JSON list'),
        ("priorities", ["Yoga"], "priority 'Yoga' is not one of the events"),
        ("priorities", [1], "priority 1 is not one of the events"),
        ("priorities", [["Art"]], "priority ['Art'] is not one of the events"),
        ("priorities", [None], "priority None is not one of the events"),
        ("priorities", ["Chess", "Chess"], "a priority is listed twice"),
        ("rules", None, '"rules", a JSON list'),
        ("rules", ["no_overlap"], 'a rule must be {"rule": one of not_empty, '),
        ("rules", [{"rule": "no_such"}], 'a rule must be {"rule": one of not_empty, '),
        ("rules", [{"rule": ["no_overlap"]}], 'a rule must be {"rule": one of not_empty, '),
        ("rules", [{}], 'a rule must be {"rule": one of not_empty, '),
        ("rules", [{"rule": "no_overlap", "gap": 5}], "rule 'no_overlap' takes no fields, not gap"),
        ("rules", [{"rule": "must_include", "event": "Yoga"}], "rule 'must_include' names 'Yoga'"),
        ("rules", [{"rule": "at_most_one", "group": ["Art", "X"]}], "names 'X', not one of the"),
        ("optimum", None, '"optimum", a whole number'),
        ("optimum", "180", '"optimum", a whole number'),
        ("optimum", 180.0, '"optimum", a whole number'),
        ("optimum", True, '"optimum", a whole number'),
        ("optimum", 0, '"optimum", a whole number'),
        ("optimum", -5, '"optimum", a whole number'),
    ],
)
def test_a_bad_field_is_named_in_one_sentence(key, value, says):
    record = {**day().to_json(), key: value}
    with pytest.raises(UserError) as error:
        Problem.from_json(record)
    for part in says.split(" .* "):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["events", "priorities", "rules", "optimum"])
def test_a_missing_field_is_named(key):
    record = day().to_json()
    del record[key]
    with pytest.raises(UserError, match=f'"{key}"'):
        Problem.from_json(record)


@pytest.mark.parametrize("record", [None, [], "problem", 3])
def test_what_is_no_object_is_refused(record):
    with pytest.raises(UserError, match="must be a JSON object"):
        Problem.from_json(record)


def test_an_event_takes_the_first_and_the_last_minute():
    assert event_from_json(["Night", "00:00", "23:59"]) == Event(0, 1439, "Night")
    assert Event(0, 1439, "Night").to_json() == ["Night", "00:00", "23:59"]


def test_rules_come_back_as_they_were():
    problem = replace(day(), rules=(Chronological(),))
    assert Problem.from_json(problem.to_json()).rules == (Chronological(),)
