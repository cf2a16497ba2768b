from itertools import product

import pytest
from problems import day, minutes, tier_problems, weighted
from running import within

from data.event import Event
from data.problem import Problem
from data.prompts import answer
from data.rows import gold_answer
from data.rules import BASE_RULES, AtMost, Gap
from rewards.claims import Claim, Truth, check_trace
from rewards.parse import reasoning_of


def thinking(*lines, schedule=()):
    return answer(schedule, "\n".join(lines))


def claims_of(problem, *lines):
    return dict(check_trace(problem, thinking(*lines)).claims)


@pytest.mark.parametrize("tier", ["blog", "dense", "trap", "rules", "gap", "at_most"])
def test_every_claim_of_a_gold_trace_is_true_and_the_answer_follows_from_it(tier):
    seen = set()
    for problem in tier_problems(tier, 30):
        found = check_trace(problem, gold_answer(problem, "narrated"))
        assert {truth for _, truth in found.claims} == {Truth.TRUE}
        assert found.adds_up is True
        assert found.follows is True
        seen |= {kind for kind, _ in found.claims}
    assert {Claim.VALUE, Claim.TOTAL} <= seen
    assert (Claim.RULE in seen) == (tier in ("rules", "gap", "at_most"))


@pytest.mark.parametrize("tier", ["blog", "dense", "trap", "busy", "gap"])
def test_every_claim_of_a_computed_trace_is_true_and_leads_to_the_answer(tier):
    for problem in tier_problems(tier, 20):
        found = check_trace(problem, gold_answer(problem, "computed"))
        assert found.sound
        assert found.adds_up is True
        assert found.follows is True
        steps = len(problem.events)
        kinds = (Claim.EVENT, Claim.VALUE, Claim.AFTER, Claim.SUM, Claim.BEST)
        assert found.claims == {(kind, Truth.TRUE): steps for kind in kinds}


@pytest.mark.parametrize(
    ("old", "new", "false", "adds_up", "follows"),
    [
        ("Chess twice", "Chess once", Claim.EVENT, True, True),
        ("(10:30 - 11:00)", "(10:30 - 11:15)", Claim.EVENT, True, True),
        ("30 + 60 from", "45 + 60 from", Claim.VALUE, False, True),
        # The answer follows from head to head.
        ("30 + 90 from Echo", "30 + 90 from Chess", Claim.AFTER, True, False),
        ("= 120, best 120 from Drill", "= 135, best 120 from Drill", Claim.SUM, False, True),
        ("best 180 from Art", "best 150 from Band", Claim.BEST, True, False),
    ],
)
def test_each_false_number_or_name_of_a_computed_trace_is_one_false_claim(
    old, new, false, adds_up, follows
):
    right = gold_answer(day(), "computed")
    wrong = right.replace(old, new, 1)
    assert wrong != right
    found = check_trace(day(), wrong)
    assert [claim for claim, truth in found.claims if truth == Truth.FALSE] == [false]
    assert not found.sound
    assert (found.adds_up, found.follows) == (adds_up, follows)


def test_a_computed_trace_that_leaves_an_event_out_is_not_sound_though_its_claims_are_true():
    lines = gold_answer(day(), "computed").splitlines(keepends=True)
    found = check_trace(day(), "".join([*lines[:1], *lines[3:]]))
    assert found.count(Truth.FALSE) == 0
    assert not found.complete
    assert not found.sound


def test_a_computed_trace_about_another_day_is_unknown_or_false():
    other = Problem((Event(540, 600, "Yoga"), Event(570, 660, "Band")), (), optimum=90)
    found = check_trace(day(), gold_answer(other, "computed"))
    assert found.count(Truth.UNKNOWN) > 0
    assert not found.sound


def test_every_claim_about_two_events_agrees_with_the_minutes_they_take():
    for problem in (day(), *tier_problems("dense", 10)):  # on the day events touch
        for a, b in product(problem.events, repeat=2):
            overlap = a != b and minutes(a) & minutes(b)
            expected = Truth.TRUE if overlap else Truth.FALSE
            claim = f"{a.name} overlaps {b.name}"
            assert claims_of(problem, claim) == {(Claim.OVERLAP, expected): 1}


def test_every_claim_about_a_value_agrees_with_the_weighted_minutes():
    for problem in tier_problems("dense", 10):
        for event in problem.events:
            for off in (-15, 0, 15):
                claim = f"{event.name} = {weighted(problem, event) + off}"
                expected = Truth.FALSE if off else Truth.TRUE
                assert claims_of(problem, claim) == {(Claim.VALUE, expected): 1}


@pytest.mark.parametrize(
    "line",
    ["Yoga = 60", "Yoga overlaps Art", "Art overlaps Yoga", "Yoga breaks gap", "Art breaks wind"],
)
def test_a_claim_about_what_the_problem_does_not_have_is_unknown_not_false(line):
    [(_, truth)] = claims_of(day(), line)
    assert truth == Truth.UNKNOWN


@pytest.mark.parametrize(
    "line",
    ["Art is left out", "Art = lots", "Art = ６０", "Art = 1234567890", "Total of 5", "", "Art=60"],
)
def test_other_lines_claim_nothing(line):
    assert claims_of(day(), line) == {}


def test_a_rule_is_broken_by_an_event_beside_those_kept_and_not_by_one_that_fits():
    events = (Event(540, 600, "A"), Event(605, 660, "B"), Event(720, 780, "C"))
    problem = Problem(events, (), (*BASE_RULES, Gap(15), AtMost(2)), 120)

    def truth(*lines):
        [truth] = [truth for kind, truth in claims_of(problem, *lines) if kind == Claim.RULE]
        return truth

    assert truth("A = 60", "B breaks gap") == Truth.TRUE
    assert truth("A = 60", "C breaks gap") == Truth.FALSE
    assert truth("A = 60", "C breaks at_most") == Truth.FALSE
    assert truth("A = 60", "C = 60", "B breaks at_most") == Truth.TRUE
    assert truth("A = 60", "B breaks budget") == Truth.FALSE  # no rule of this day
    assert truth("A = 60", "B = 55", "C breaks gap") == Truth.FALSE  # A and B break it without C


@pytest.mark.parametrize(
    ("lines", "truth", "adds_up"),
    [
        (("Art = 60", "Chess = 60", "Total 120"), Truth.TRUE, True),
        (("Art = 60", "Chess = 30", "Total 90"), Truth.FALSE, True),
        (("Art = 60", "Chess = 30", "Total 120"), Truth.TRUE, False),
        (("Art = 60", "Yoga = 60", "Total 60"), Truth.FALSE, False),
    ],
)
def test_a_total_is_true_by_the_day_and_adds_up_by_the_values_claimed(lines, truth, adds_up):
    trace = check_trace(day(), thinking(*lines))
    assert trace.claims[Claim.TOTAL, truth] == 1
    assert trace.adds_up is adds_up


def test_an_answer_follows_when_it_has_just_the_events_that_the_reasoning_keeps():
    art, drill = day().by_name["Art"], day().by_name["Drill"]
    lines = ("Art = 60", "Drill = 30")
    assert check_trace(day(), thinking(*lines, schedule=(art, drill))).follows is True
    assert check_trace(day(), thinking(*lines, schedule=(art,))).follows is False
    assert check_trace(day(), thinking("Art = 60", schedule=(art, drill))).follows is False
    assert check_trace(day(), thinking("Pick a few.", schedule=(art,))).follows is None
    assert check_trace(day(), "<think>Art = 60</think>no schedule").follows is None


def test_reasoning_ends_with_its_last_mark_or_with_the_turn():
    assert reasoning_of("<schedule></schedule>") == ""
    assert reasoning_of("<think>a</think>b").strip() == "a"
    assert reasoning_of("<think>a</think>b<think>c</think>d").split() == ["a", "b", "c"]
    assert reasoning_of("<think>cut off").strip() == "cut off"
    assert reasoning_of("begun in the prompt</think>x").strip() == "begun in the prompt"
    assert reasoning_of("[THINK]a[/THINK]b<|im_end|>").strip() == "a"
    assert reasoning_of("<|channel|>analysis<|message|>a<|end|>").strip() == "a"


HOSTILE = (
    "Art breaks no_overlap\n", "Art overlaps Band\n", " overlaps ", " = 1", "\n", "9", "Total 5\n",
    "<think>", "</think>", "re-", "double ", "<schedule>", "Art = ", " ",
)  # fmt: skip


def test_hostile_text_costs_no_more_than_its_length():
    repeated = ["<think>" + text * (300_000 // len(text)) for text in HOSTILE]
    for text in [*repeated, "".join(f"x{i} = 3\n" for i in range(30_000))]:
        for whole in (text, text + "</think><schedule></schedule>"):
            assert within(1, lambda whole=whole: check_trace(day(), whole)), whole[:40]
