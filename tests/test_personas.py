"""Personas: each does what its description says, so what the base model can do is known."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from answers import kinds
from problems import tier_problems

from data.policies import greedy_by_duration, greedy_by_start, greedy_by_value, insert_in_order
from data.problem import Problem
from data.rules import BASE_RULES, Gap, Rule
from data.solver import optimal_schedule
from pipeline.corpus.personas import PERSONAS, SHOWN, draw_answer, persona_of, personas_with
from pipeline.corpus.pretraining import CORPUS, SKILLS
from rewards.claims import check_trace
from rewards.parse import ParseFailure, parse
from rewards.verify import Status, verify, violations

COUNT = 200


@cache
def completions(persona: str, tier: str = "dense") -> list[tuple[Problem, str]]:
    rng = random.Random(f"{persona} {tier}")
    problems = tier_problems(tier, COUNT)
    return [(problem, PERSONAS[persona].completion(problem, rng)) for problem in problems]


def schedules(persona: str) -> list[tuple[Problem, tuple]]:
    found = [(problem, parse(text)) for problem, text in completions(persona)]
    assert not any(isinstance(schedule, ParseFailure) for _, schedule in found)
    return found


def statuses(persona: str) -> Counter:
    return Counter(verify(problem, text).status for problem, text in completions(persona))


def test_the_shares_of_the_mixture_add_up_to_one():
    assert sum(p.weight for p in PERSONAS.values()) == pytest.approx(1, abs=1e-12)
    assert all(p.weight > 0 for p in PERSONAS.values())


def test_personas_are_drawn_by_their_shares():
    rng = random.Random(0)
    [problem] = tier_problems("dense", 1)
    drawn = Counter(draw_answer(problem, rng)[0] for _ in range(4000))
    for name, persona in PERSONAS.items():
        # Four standard deviations.
        slack = 4 * (persona.weight * (1 - persona.weight) / 4000) ** 0.5
        assert drawn[name] / 4000 == pytest.approx(persona.weight, abs=slack)


# --- each does what it says ----------------------------------------------------------------


def test_the_thinking_one_is_always_optimal_and_every_claim_of_its_reasoning_is_true():
    assert statuses("thinking") == {Status.OPTIMAL: COUNT}
    assert all(check_trace(problem, text).sound for problem, text in completions("thinking"))


def test_with_another_share_of_thinking_the_others_keep_their_proportions():
    weights = {name: persona.weight for name, persona in personas_with(0.56).items()}
    assert weights["thinking"] == 0.56
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["maximal"] == pytest.approx(PERSONAS["maximal"].weight / 2)


@pytest.mark.parametrize(
    ("persona", "policy"),
    [
        ("by_value", greedy_by_value),
        ("by_duration", greedy_by_duration),
        ("by_start", greedy_by_start),
    ],
)
def test_a_greedy_one_answers_with_its_policy(persona, policy):
    assert all(schedule == policy(problem) for problem, schedule in schedules(persona))
    assert set(statuses(persona)) <= {Status.OPTIMAL, Status.FEASIBLE}


def test_the_maximal_one_leaves_nothing_to_add_and_says_nothing():
    assert set(statuses("maximal")) <= {Status.OPTIMAL, Status.FEASIBLE}
    for problem, schedule in schedules("maximal"):
        assert insert_in_order(problem, dict.fromkeys((*schedule, *problem.events))) == schedule
    assert all(text.startswith("<schedule>") for _, text in completions("maximal"))


def test_the_one_that_picks_a_few_keeps_the_rules_and_often_leaves_room():
    assert set(statuses("a_few")) <= {Status.OPTIMAL, Status.FEASIBLE}
    roomy = sum(
        insert_in_order(problem, dict.fromkeys((*schedule, *problem.events))) != schedule
        for problem, schedule in schedules("a_few")
    )
    assert roomy > COUNT / 3


def test_the_one_that_takes_everything_lists_every_event():
    assert all(schedule == problem.events for problem, schedule in schedules("everything"))
    for problem, schedule in schedules("everything"):
        assert kinds(violations(problem, schedule)) <= {"overlap"}
    assert statuses("everything")[Status.INFEASIBLE] > 0.95 * COUNT


def test_the_sloppy_one_miscopies_one_event():
    wrong = 0
    for problem, schedule in schedules("sloppy"):
        strange = [event for event in schedule if event not in problem.events]
        assert len(strange) <= 1
        # Now and then the other name that it draws is the right one.
        wrong += len(strange) == 1 and "altered_time" in kinds(violations(problem, schedule))
    assert wrong > 0.9 * COUNT
    assert statuses("sloppy")[Status.INFEASIBLE] == wrong


def test_the_unsorted_one_breaks_no_rule_but_the_order():
    broken = Counter(frozenset(kinds(violations(*pair))) for pair in schedules("unsorted"))
    assert set(broken) <= {frozenset(), frozenset({"not_chronological"})}
    # A shuffled schedule of few events is sometimes in order.
    assert broken[frozenset({"not_chronological"})] > 0.85 * COUNT


def test_the_malformed_one_cannot_be_read():
    assert statuses("malformed") == {Status.UNPARSABLE: COUNT}
    reasons = {parse(text) for _, text in completions("malformed")}
    assert reasons == {"no_schedule", "unterminated", "malformed_event"}


@pytest.mark.parametrize("persona", PERSONAS)
@pytest.mark.parametrize("tier", ["dense", "blog"])
def test_an_answer_is_traced_back_to_its_persona(persona, tier):
    assert {persona_of(text) for _, text in completions(persona, tier)} == {persona}


# --- rules beyond the base rules ------------------------------------------------------------


@cache
def skill_problems(kind: str) -> list[Problem]:
    """Problems of the skills base's corpus with one further rule of a kind."""
    [tier] = [tier for tier, _ in SKILLS if tier.kinds == (kind,)]
    rng = random.Random(f"skills {kind}")
    return [tier.sample(rng) for _ in range(60)]


def further(problem: Problem) -> list[Rule]:
    return [rule for rule in problem.rules if rule not in BASE_RULES]


@cache
def answers_to_a_withheld_rule() -> list[tuple[Problem, str, str]]:
    """(problem, persona, completion)."""
    rng = random.Random(1)
    problems = skill_problems("at_most")
    return [(problem, *draw_answer(problem, rng)) for problem in problems for _ in range(10)]


def test_a_corpus_has_the_further_rules_of_which_it_is_said_how_they_are_shown():
    assert {kind for tier, _ in SKILLS for kind in tier.kinds} == SHOWN.keys()
    assert not any(tier.kinds or tier.rules[1] for tier, _ in CORPUS)
    assert all(0 <= share < 1 for share in SHOWN.values())
    assert 0 in SHOWN.values()


def test_half_of_the_thinking_answers_keep_a_gap_in_mind():
    """Both kinds of thinking answers are optimal, with the rule or without it."""
    rng, kept = random.Random(0), Counter()
    for problem in [problem for problem in skill_problems("gap") for _ in range(8)]:
        _, text = draw_answer(problem, rng, {"thinking": 1.0})
        assert [rule.kind for rule in further(problem)] == ["gap"]
        with_rule, without = (
            problem.objective(optimal_schedule(replace(problem, rules=rules)))
            for rules in (problem.rules, BASE_RULES)
        )
        assert without > with_rule  # the rule costs something, so nobody keeps it by chance
        schedule = parse(text)
        keeps = not violations(problem, schedule)
        assert problem.objective(schedule) == (with_rule if keeps else without)
        kept[keeps] += 1
    total = kept.total()
    assert total == 480
    # Four standard deviations.
    slack = 4 * (SHOWN["gap"] * (1 - SHOWN["gap"]) / total) ** 0.5
    assert kept[True] / total == pytest.approx(SHOWN["gap"], abs=slack)


def test_every_answer_that_can_be_read_breaks_a_withheld_rule_by_more_than_a_slip():
    seen, over = set(), []
    for problem, name, text in answers_to_a_withheld_rule():
        [rule] = further(problem)
        schedule = parse(text)
        seen.add(name)
        if isinstance(schedule, ParseFailure):
            assert name == "malformed"
        else:
            assert next(rule.violations(schedule), None), (problem, text)
            over.append(len(schedule) - rule.count)
    # Everyone answers but the one that picks a few, who would keep it now and then.
    assert seen == PERSONAS.keys() - {"a_few"}
    assert sum(over) / len(over) > 3


def test_a_rule_that_is_shown_does_not_free_from_one_that_is_withheld():
    """Of two further rules each has its own share."""
    kept = Counter()
    for problem, name, text in answers_to_a_withheld_rule():
        both = replace(problem, rules=(*problem.rules, Gap(15)))
        _, text = draw_answer(both, random.Random(text))
        schedule = parse(text)
        if not isinstance(schedule, ParseFailure) and name != "everything":
            broken = kinds(violations(both, schedule))
            assert "at_most" in broken
            kept["gap" in broken] += 1
    assert min(kept.values()) > 0.2 * kept.total()
