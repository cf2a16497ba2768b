"""The verifier: gold accepted, every corruption rejected for its own reason, CP-SAT at one."""

import json
import random
from collections import Counter

import pytest
from conftest import CORRUPTIONS, HARMLESS, day, tier_problems

from data.event import Event
from data.problem import Problem
from data.prompts import answer, schedule_xml, trace
from data.rules import BASE_RULES, NoOverlap
from data.solver import interval_optimum, optimal_schedule, prove
from data.tiers import TIERS
from rewards import verify as module
from rewards.parse import parse
from rewards.verify import (
    DisagreementError,
    Status,
    Verdict,
    confirm,
    verify,
    verify_schedule,
    verify_text,
    violations,
)

#: More than 10,000 problems in all, fewer of the tiers whose further rules take a solver.
GOLD = {name: 400 if tier.rules[1] else 2200 for name, tier in TIERS.items()}


def kinds(broken: tuple[str, ...]) -> set[str]:
    return {text.partition(":")[0] for text in broken}


@pytest.mark.parametrize("tier", TIERS)
def test_gold_is_accepted_on_fresh_problems(tier):
    for i, problem in enumerate(tier_problems(tier, GOLD[tier], seed=1)):
        gold = optimal_schedule(problem)
        text = answer(gold, trace(problem, gold) if i % 2 else None)
        assert verify(problem, text) == Verdict(
            Status.OPTIMAL, (), problem.optimum, problem.optimum
        )
        if i < 100:
            proven = prove(problem)
            assert confirm(problem, gold).status == confirm(problem, proven).status == "optimal"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_of_gold_is_rejected_for_its_own_reason(name):
    met = 0
    for tier in TIERS:
        for problem in tier_problems(tier, 40):
            made = CORRUPTIONS[name](problem, optimal_schedule(problem))
            if made is None:
                continue
            completion, broken = made
            verdict = verify(problem, completion)
            # A corruption may break further rules besides; what they say is theirs to test.
            further = {rule.kind for rule in problem.rules if rule not in BASE_RULES}
            found = (v for v in verdict.violations if not kinds((v,)) & further)
            assert tuple(found) == broken, completion
            schedule = parse(completion)
            unread = not isinstance(schedule, tuple)
            assert verdict.status == (Status.UNPARSABLE if unread else Status.INFEASIBLE)
            assert verdict.objective == verdict.ratio == 0
            if not unread:
                assert confirm(problem, schedule) == verdict
            met += 1
    assert met >= 40, "a corruption must apply to many problems"


def test_at_least_15_kinds_of_corruption_and_every_violation_are_covered():
    assert len(CORRUPTIONS) >= 15
    found = set()
    for make in CORRUPTIONS.values():
        problem = day()
        _, broken = make(problem, interval_optimum(problem))
        found |= kinds(broken)
    assert found >= {
        "unknown_event", "altered_time", "duplicate", "not_chronological", "overlap", "empty",
        "too_many_events", "no_schedule", "unterminated", "unterminated_reasoning",
        "multiple_schedules", "malformed_event", "malformed_time",
    }  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_stands_around_the_final_schedule_does_no_harm(name):
    for tier in TIERS:
        for problem in tier_problems(tier, 40):
            text = HARMLESS[name](problem, optimal_schedule(problem))
            assert verify(problem, text).status == Status.OPTIMAL, text


def test_touching_events_are_feasible():
    art, _, drill, *_ = day().events
    assert verify_schedule(day(), (art, drill)).status == Status.FEASIBLE
    assert confirm(day(), (art, drill)).status == Status.FEASIBLE


def test_every_violation_is_named_not_just_the_first():
    problem = day()
    art, band, _, _, chess = problem.events
    late = Event(art.start + 1, art.end, "Art")
    found = violations(problem, (chess, band, late, Event(0, 1, "Yoga"), band))
    assert found == (
        "altered_time: Art",
        "unknown_event: Yoga",
        "duplicate: Band",
        "not_chronological: Chess / Band",
        "not_chronological: Band / Art",
        "not_chronological: Art / Yoga",
        "overlap: Band / Art",
        "overlap: Art / Band",
    )


def test_less_than_the_optimum_is_feasible_with_its_ratio():
    problem = day()
    _, band, _, _, chess = problem.events
    verdict = verify(problem, schedule_xml((band, chess)))
    assert verdict == Verdict(Status.FEASIBLE, (), 150, 180)
    assert verdict.ratio == 150 / 180


def test_another_schedule_of_the_optimal_value_is_optimal_too():
    problem = Problem((Event(0, 30, "A"), Event(10, 40, "B")), (), optimum=30)
    assert verify(problem, schedule_xml(problem.events[:1])).status == Status.OPTIMAL
    assert verify(problem, schedule_xml(problem.events[1:])).status == Status.OPTIMAL


def test_an_answer_to_another_problem_is_not_an_answer_to_this_one():
    mine, *others = tier_problems("blog", 50)
    for other in others:
        text = answer(interval_optimum(other), None)
        assert verify(mine, text).status == Status.INFEASIBLE
        assert verify(other, text).status == Status.OPTIMAL


def test_the_name_of_a_violation_is_cut_when_it_is_long():
    verdict = verify(day(), schedule_xml([Event(0, 5, "x" * 5000)]))
    assert verdict.violations == (("unknown_event: " + "x" * 5000)[:200],)


def test_a_verdict_has_a_json_form_that_names_the_pair():
    row = verify(day(), schedule_xml(day().events[:2])).to_json()
    assert json.loads(json.dumps(row)) == {
        "status": "infeasible",
        "violations": ["overlap: Art / Band"],
        "objective": 0,
        "optimum": 180,
        "ratio": 0.0,
    }


def test_a_wrong_optimum_is_our_bug_and_is_raised():
    problem = day()
    gold = interval_optimum(problem)
    with pytest.raises(AssertionError, match="beats the proven optimum 179"):
        verify_schedule(problem.proven(179), gold)


def test_a_problem_without_a_proven_optimum_is_not_judged():
    problem = Problem(day().events, ())
    for completion in ("", "<schedule></schedule>"):
        with pytest.raises(AssertionError):
            verify(problem, completion)


def test_text_and_record_give_the_same_verdict():
    problem = day()
    text = problem.text
    for completion in ("", answer(interval_optimum(problem), "so"), schedule_xml(problem.events)):
        assert verify_text(text, completion) == verify(problem, completion)


def test_the_plain_checks_and_cp_sat_agree_on_random_answers_of_every_tier():
    rng = random.Random(7)
    met = Counter()
    for tier in TIERS:
        for problem in tier_problems(tier, 120):
            size = rng.randint(1, len(problem.events))
            schedule = rng.sample(problem.events, size)
            if rng.random() < 0.8:
                schedule.sort()
            if rng.random() < 0.6:
                keep = []
                for event in schedule:
                    if not keep or keep[-1].end <= event.start:
                        keep.append(event)
                schedule = keep
            met[confirm(problem, tuple(schedule)).status] += 1
    assert min(met[s] for s in (Status.OPTIMAL, Status.FEASIBLE, Status.INFEASIBLE)) >= 10, met


@pytest.mark.parametrize(
    ("owner", "name", "weakened", "count"),
    [
        (NoOverlap, "violations", lambda rule, schedule: iter(()), 2),
        (NoOverlap, "constrain", lambda rule, model: None, 2),
        (module, "admits", lambda problem, schedule: False, 1),
    ],
    ids=["weaker check", "weaker constraint", "stricter constraint"],
)
def test_a_disagreement_with_cp_sat_is_raised(owner, name, weakened, count, monkeypatch):
    confirm.cache_clear()
    monkeypatch.setattr(owner, name, weakened)
    with pytest.raises(DisagreementError, match=r"Art.*problem: "):
        confirm(day(), day().events[:count])


def test_each_distinct_schedule_is_confirmed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "admits", lambda *pair: calls.append(pair) or True)
    confirm.cache_clear()
    for _ in range(5):
        confirm(day(), day().events[:1])
    confirm.cache_clear()
    assert len(calls) == 1
