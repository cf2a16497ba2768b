"""Answers that the page shows: which are chosen, and how a day is drawn."""

import json
import random
from collections import Counter

import pytest
from problems import day

from data.event import Event
from data.problem import Problem
from data.prompts import schedule_xml
from data.rows import new_row
from data.rules import BASE_RULES, MustInclude
from eval.show.showcase import CUT, MOST, PER_CELL, choose_answers, drawn_answer, drawn_problem
from rewards.verify import Status, verify

ARMS = ("base", "sft", "grpo.1", "grpo.2")


def judged_rows(names, samples, rng):
    return [
        {"id": name, "sample": i, "status": str(rng.choice(tuple(Status)))}
        for name in names
        for i in range(samples)
    ]


def test_the_choice_is_balanced_and_the_same_for_any_order_of_problems():
    tier_of = {f"p{i}": "dense" if i < 30 else "trap" for i in range(40)}
    rows = {arm: judged_rows(tier_of, 4, random.Random(arm)) for arm in ARMS}
    shown = choose_answers(rows, tier_of, 1)
    assert (shown.each, shown.total) == (PER_CELL, 40 * 4 * len(ARMS))
    cells = Counter((r["arm"], tier_of[r["id"]], r["status"]) for r in shown.answers)
    assert min(cells.values()) == PER_CELL, "more where one solves what the other never does"
    assert len(cells) == len(ARMS) * 2 * 4
    again = {arm: sorted(r, key=lambda row: (row["id"], row["sample"])) for arm, r in rows.items()}
    assert choose_answers(again, dict(sorted(tier_of.items())), 1) == shown
    assert choose_answers(rows, tier_of, 2) != shown


def test_many_arms_share_the_limit():
    tier_of = dict.fromkeys((f"p{i}" for i in range(50)), "dense")
    rows = {f"arm{i}": judged_rows(tier_of, 8, random.Random(i)) for i in range(50)}
    shown = choose_answers(rows, tier_of, 1)
    assert shown.each == 1
    assert len(shown.answers) == 200 <= MOST


def drawn(problem, text):
    verdict = {"arm": "a", "sample": 0, **verify(problem, text).to_json()}
    return drawn_answer(problem, {**verdict, "completion": text})


ART, BAND, _, _, CHESS = day().events


@pytest.mark.parametrize(
    ("text", "chosen", "overlapping", "broken"),
    [
        (schedule_xml([ART, BAND]), [0, 1], [0, 1], [0, 1]),
        (schedule_xml([BAND, CHESS]), [1, 4], [], []),
        ("I would rather not.", [], [], []),
    ],
)
def test_chosen_overlapping_and_broken_events_are_marked(text, chosen, overlapping, broken):
    found = drawn(day(), text)
    assert (found["chosen"], found["overlapping"], found["broken"]) == (chosen, overlapping, broken)
    assert found["strays"] == []


def test_events_not_as_they_were_asked_are_strays_and_overlap_like_others():
    answered = [Event(540, 570, "Art"), Event(560, 600, "Arts"), CHESS, CHESS]
    found = drawn(day(), schedule_xml(answered))
    assert [(name, what, *marks[:2]) for name, _, _, what, *marks in found["strays"]] == [
        ("Art", "other times", True, True),
        ("Arts", "no such event", True, True),
        ("Chess", "listed again", False, True),
    ]
    assert (found["chosen"], found["broken"]) == ([4], [4]), "Art itself was not chosen"


def test_an_event_that_a_rule_demands_is_marked_though_not_chosen():
    rules = (*BASE_RULES, MustInclude("Echo"))
    problem = Problem(day().events, day().priorities, rules, 150)
    assert drawn(problem, schedule_xml([ART]))["broken"] == [3]


def test_a_drawn_answer_stays_small_whatever_is_in_it():
    assert 6 * MOST * CUT < 5e6, "every character may be escaped to six bytes"
    found = drawn(day(), "<" * 10 * CUT + schedule_xml(day().events[:1] * 50_000))
    assert len(json.dumps(found)) < 6000
    assert (len(found["strays"]), found["more_strays"]) == (9, 50_000 - 10)


def test_a_problem_is_drawn_with_priorities_and_the_optimal_schedule():
    found = drawn_problem(new_row("x", "test", "t", day(), "computed"))
    assert (found["from"], found["to"]) == (540, 720)
    by_name = {name: rest for name, *rest in found["events"]}
    assert [name for name, rest in by_name.items() if rest[3]] == ["Chess"]
    assert [n for n, rest in by_name.items() if rest[4]] == ["Art", "Drill", "Echo", "Chess"]
    assert by_name["Chess"][:3] == [660, 690, 60]
