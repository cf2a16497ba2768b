import random
import time
from itertools import permutations

import pytest
from conftest import CORRUPTIONS, day, minutes, tier_problems, weighted

from data.draw import make_problem
from data.event import Event
from data.problem import Problem
from data.prompts import answer, trace
from data.rows import gold_answer
from data.rules import BASE_RULES, AtMost, Gap
from data.tiers import TIERS
from eval.answers.reasoning import (
    Claim,
    Truth,
    check_trace,
    reasoning_of,
    reasoning_report,
    reflections,
)


def thinking(*lines, schedule=()):
    return answer(schedule, "\n".join(lines))


def claims_of(problem, *lines):
    return dict(check_trace(problem, thinking(*lines)).claims)


@pytest.mark.parametrize("tier", ["blog", "dense", "trap", "rules", "gap", "at_most"])
def test_every_claim_of_a_gold_trace_is_true_and_the_answer_follows_from_it(tier):
    seen = set()
    for index in range(30):
        problem = make_problem(1, "train", tier, TIERS[tier], index)
        found = check_trace(problem, gold_answer(problem, True))
        assert {truth for _, truth in found.claims} == {Truth.TRUE}
        assert found.adds_up is True
        assert found.follows is True
        seen |= {kind for kind, _ in found.claims}
    assert {Claim.VALUE, Claim.TOTAL} <= seen
    assert (Claim.RULE in seen) == (tier in ("rules", "gap", "at_most"))


def test_every_claim_about_a_pair_of_events_agrees_with_the_minutes_they_take():
    for problem in tier_problems("dense", 10):
        for a, b in permutations(problem.events, 2):
            expected = Truth.TRUE if minutes(a) & minutes(b) else Truth.FALSE
            claim = f"{a.name} overlaps {b.name}"
            assert claims_of(problem, claim) == {(Claim.OVERLAP, expected): 1}


def test_every_claim_about_a_value_agrees_with_the_weighted_minutes():
    for problem in tier_problems("dense", 10):
        for event in problem.events:
            for off in (-15, 0, 15):
                claim = f"{event.name} = {weighted(problem, event) + off}"
                expected = Truth.FALSE if off else Truth.TRUE
                assert claims_of(problem, claim) == {(Claim.VALUE, expected): 1}


def test_an_event_does_not_overlap_itself_and_touching_events_do_not_overlap():
    lines = ["Art overlaps Art", "Art overlaps Drill", "Art overlaps Band"]
    assert claims_of(day(), *lines) == {
        (Claim.OVERLAP, Truth.FALSE): 2,
        (Claim.OVERLAP, Truth.TRUE): 1,
    }


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
def test_a_total_is_true_of_the_weighted_minutes_and_adds_up_by_the_values_claimed(
    lines, truth, adds_up
):
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


def test_reasoning_ends_with_its_last_tag_or_with_the_text():
    assert reasoning_of("<schedule></schedule>") == ""
    assert reasoning_of("<think>a</think>b").strip() == "a"
    assert reasoning_of("<think>a</think>b<think>c</think>d").split() == ["a", "b", "c"]
    assert reasoning_of("<think>cut off").strip() == "cut off"
    assert reasoning_of("begun in the prompt</think>x") == "begun in the prompt"


def test_words_of_second_thoughts_are_found_outside_the_schedule_and_the_names_of_events():
    problem = Problem((Event(540, 600, "Wait tables"), Event(600, 660, "Art")), (), optimum=120)
    assert reflections(day(), "<think>Wait, let me re-check. REVALUE.</think>") == {
        "wait",
        "re-check",
    }
    assert reflections(day(), "Double-check it, reconsidering.<schedule>") == {
        "double-check",
        "reconsider",
    }
    assert reflections(day(), "<schedule><name>wait</name></schedule>") == set()
    assert reflections(day(), "The waiter awaits a precheck") == set()
    assert reflections(problem, "Wait tables = 60\nrethink") == {"rethink"}


def _hostile(size):
    a, b = (event.name for event in day().events[:2])
    return [
        "<think>" + text * (size // len(text))
        for text in (
            f"{a} breaks no_overlap\n", f"{a} overlaps {b}\n", " overlaps ", " = 1", "\n", "9",
            "Total 5\n", "<think>", "</think>", "re-", "double ", "<schedule>", f"{a} = ", " ",
        )
    ]  # fmt: skip


def test_hostile_text_costs_no_more_than_its_length():
    for text in [*_hostile(300_000), "".join(f"x{i} = 3\n" for i in range(30_000))]:
        for whole in (text, text + "</think><schedule></schedule>"):
            started = time.process_time()
            check_trace(day(), whole)
            reflections(day(), whole)
            assert time.process_time() - started < 1.0, whole[:40]


def test_no_corrupt_answer_stops_the_checks():
    rng = random.Random(0)
    for problem in tier_problems("dense", 5):
        gold = tuple(sorted(rng.sample(problem.events, 3)))
        for corrupt in CORRUPTIONS.values():
            if found := corrupt(problem, gold):
                check_trace(problem, found[0])
                reflections(problem, found[0])


# --- the report ------------------------------------------------------------------------------


def verdicts(problem_id, *answers):
    return [{"id": problem_id, "status": status, "completion": text} for status, text in answers]


def test_the_report_counts_what_the_answers_say():
    problem = day()
    best = tuple(problem.by_name[n] for n in ("Art", "Drill", "Echo", "Chess"))
    sound, silent = answer(best, trace(problem, best)), answer(best, None)
    wrong = thinking("Wait, Art = 45", "Art = 45", "Total 45", schedule=best[:1])
    rows = [
        *verdicts("p", ("optimal", sound), ("optimal", silent), ("feasible", wrong)),
        *verdicts("p", ("feasible", wrong)),
        *verdicts("q", ("optimal", sound), ("feasible", wrong)),
    ]
    found = reasoning_report({"p": problem, "q": problem}, rows, seed=0, resamples=200)
    assert (found["problems"], found["answers"]) == (2, 6)
    assert found["reasoning"]["value"] == pytest.approx((3 / 4 + 1) / 2)
    assert found["sound"]["answers"] == 2
    assert found["sound"]["share"]["value"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found["sound"]["optimal"]["value"] == 1
    assert found["unsound"]["optimal"]["value"] == 0
    assert found["untraced"]["answers"] == 1
    assert found["untraced"]["optimal"] is None  # q has none, and some resample has only q
    assert found["sound_minus_unsound"]["value"] == 1
    # One sound trace has 4 true values, a wrong one 1 false and 1 about "Wait, Art".
    value = found["claims"]["value"]
    assert value["made"] == 2 * 4 + 3 * 2
    assert value["true"]["value"] == pytest.approx((4 / 4 + 4 / 2) / (6 / 4 + 5 / 2))
    assert value["unknown"]["value"] == pytest.approx((2 / 4 + 1 / 2) / (8 / 4 + 6 / 2))
    assert found["claims"]["rule"] == {"made": 0, "true": None, "unknown": None}
    reflection = found["reflection"]
    assert reflection["keywords"] == {"wait": 3}
    assert reflection["with"]["answers"] == 3
    assert reflection["with"]["optimal"]["value"] == 0
    assert reflection["within_problem"]["value"] == -1
    assert reflection["within_problem"]["n"] == 2


def test_an_arm_that_never_reasons_is_reported_without_a_division_by_nothing():
    rows = verdicts("p", ("feasible", answer((day().events[0],), None)))
    found = reasoning_report({"p": day()}, rows, seed=0, resamples=50)
    assert found["reasoning"]["value"] == 0
    assert found["follows"] is None
    assert found["reflection"]["with"]["optimal"] is None
    assert found["reflection"]["within_problem"] is None
