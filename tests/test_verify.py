"""The verifier: gold accepted, every corruption rejected for its own reason, CP-SAT at one."""

import json

import pytest
from answers import CORRUPTIONS, HARMLESS, kinds
from problems import day, gold_of, tier_problems

from data.event import Event
from data.problem import Problem
from data.prompts import answer, narration, schedule_xml
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
    violations,
)

#: More than 10,000 problems in all, fewer of the tiers whose further rules take a solver.
GOLD = {name: 400 if tier.rules[1] else 2200 for name, tier in TIERS.items()}


@pytest.mark.parametrize("tier", TIERS)
def test_gold_is_accepted_on_fresh_problems(tier):
    for i, problem in enumerate(tier_problems(tier, GOLD[tier], seed=1)):
        gold = optimal_schedule(problem)
        text = answer(gold, narration(problem, gold) if i % 2 else None)
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
            made = CORRUPTIONS[name](problem, gold_of(problem))
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


@pytest.mark.parametrize("name", HARMLESS)
def test_what_stands_around_the_final_schedule_does_no_harm(name):
    for tier in TIERS:
        for problem in tier_problems(tier, 40):
            text = HARMLESS[name](problem, gold_of(problem))
            assert verify(problem, text).status == Status.OPTIMAL, text


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


def test_less_than_the_optimum_is_feasible_and_every_schedule_of_its_value_optimal():
    art, band, drill, _, chess = day().events
    verdict = verify(day(), schedule_xml((band, chess)))
    assert verdict == Verdict(Status.FEASIBLE, (), 150, 180)
    assert verdict.ratio == 150 / 180
    assert confirm(day(), (art, drill)).status == Status.FEASIBLE  # they touch
    tied = Problem((Event(0, 30, "A"), Event(10, 40, "B")), (), optimum=30)
    assert all(verify_schedule(tied, (event,)).status == Status.OPTIMAL for event in tied.events)


def test_a_verdict_has_a_json_form_in_which_long_names_are_cut():
    row = verify(day(), schedule_xml([Event(0, 5, "x" * 5000)])).to_json()
    assert json.loads(json.dumps(row)) == {
        "status": "infeasible",
        "violations": [("unknown_event: " + "x" * 5000)[:200]],
        "objective": 0,
        "optimum": 180,
        "ratio": 0.0,
    }


def test_a_wrong_or_missing_optimum_is_our_bug_and_is_raised():
    with pytest.raises(AssertionError, match="beats the proven optimum 179"):
        verify_schedule(day().proven(179), interval_optimum(day()))
    for completion in ("", "<schedule></schedule>"):
        with pytest.raises(AssertionError):
            verify(day().proven(0), completion)


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
