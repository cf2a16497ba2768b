"""Changed reasoning: what is changed, what stays, and what an answer that follows must say."""

import random

import pytest
from problems import tier_problems

from data.rows import gold_answer
from data.solver import interval_optimum
from eval.answers.interventions import Intervention, openings
from rewards.claims import Truth, check_trace


@pytest.fixture(scope="module")
def days():
    return {f"p{i}": problem for i, problem in enumerate(tier_problems("dense", 20))}


@pytest.fixture(scope="module")
def opened(days):
    golds = {name: gold_answer(problem, "computed") for name, problem in days.items()}
    return openings(days, golds, random.Random(0))


def of_kind(opened, intervention):
    return [one for one in opened if one.intervention == intervention]


def test_kept_reasoning_is_the_answers_own_up_to_its_end(days, opened):
    kept = of_kind(opened, Intervention.KEPT)
    assert len(kept) == len(days)
    for one in kept:
        gold = gold_answer(days[one.problem], "computed")
        assert gold.startswith(one.text)
        assert gold.removeprefix(one.text).startswith("<schedule>")


def test_cut_reasoning_claims_nothing(days, opened):
    cut = of_kind(opened, Intervention.CUT)
    assert len(cut) == len(days)
    assert not any(check_trace(days[one.problem], one.text).claims for one in cut)


def test_exchanged_reasoning_is_true_of_another_problem(days, opened):
    exchanged = of_kind(opened, Intervention.EXCHANGED)
    assert len(exchanged) == len(days)
    for one in exchanged:
        assert not check_trace(days[one.problem], one.text).sound
        assert any(check_trace(problem, one.text).sound for problem in days.values())


def test_altered_reasoning_has_one_false_total_and_leads_to_another_schedule(days, opened):
    altered = of_kind(opened, Intervention.ALTERED)
    assert len(altered) >= len(days) / 2
    for one in altered:
        problem = days[one.problem]
        claims = check_trace(problem, one.text).claims
        false = {str(claim): n for (claim, truth), n in claims.items() if truth == Truth.FALSE}
        assert false == {"sum": 1, "best": 1}
        assert one.follows != interval_optimum(problem)
        assert problem.is_feasible(one.follows)


def test_reasoning_that_is_not_wholly_true_is_not_altered(days):
    texts = {
        name: gold_answer(problem, "computed").replace(" once ", " twice ", 1)
        for name, problem in days.items()
    }
    assert not of_kind(openings(days, texts, random.Random(0)), Intervention.ALTERED)


def test_narrated_reasoning_is_cut_and_exchanged_but_not_altered(days):
    texts = {name: gold_answer(problem, "narrated") for name, problem in days.items()}
    kinds = {one.intervention for one in openings(days, texts, random.Random(0))}
    assert kinds == set(Intervention) - {Intervention.ALTERED}


def test_one_answer_alone_has_no_other_reasoning_to_take(days):
    [(name, problem)] = list(days.items())[:1]
    made = openings({name: problem}, {name: gold_answer(problem, "computed")}, random.Random(0))
    assert not of_kind(made, Intervention.EXCHANGED)
