"""The embedded base model is a useful subject: what it can do, and what it copies."""

import os
import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from answers import kinds
from running import RECIPES

from data.policies import random_feasible_success
from data.prompts import prompt
from data.recipe import RUNS, load_recipe
from data.solver import interval_optimum
from data.tiers import TIERS
from eval.stats.passk import pass_at_k
from pipeline import base
from pipeline.base import BASE_PATH, card
from pipeline.corpus.personas import PERSONAS, SHOWN, persona_of
from pipeline.corpus.pretraining import (
    CORPUS,
    CURRICULUM,
    SKILLS,
    Pretraining,
    corpus,
    lessons,
    new_model,
    pretrain,
    token_batches,
    weighted_loss,
)
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import render, sample
from pipeline.model.decoding import Decoding
from pipeline.model.load import load_model
from rewards.verify import Status, verify

PROBLEMS, SAMPLES = 40, 64


@pytest.fixture(scope="module")
def judged():
    """(problem, [(persona, verdict)]) of the base's answers to fresh problems of the main tier."""
    model, tokenizer = load_model(str(BASE_PATH), "float32")
    rng = random.Random("fresh problems for the base")
    problems = [TIERS["dense"].sample(rng) for _ in range(PROBLEMS)]
    problems = [p.proven(p.objective(interval_optimum(p))) for p in problems]
    prompts = [render(tokenizer, prompt(p)) for p in problems]
    asked = (prompts, SAMPLES, Decoding(max_tokens=160), range(PROBLEMS), 256)
    drawn = dict(sample(model.eval(), tokenizer, *asked))
    return [
        (p, [(persona_of(s.completion), verify(p, s.completion)) for s in drawn[i]])
        for i, p in enumerate(problems)
    ]


def passed(judged, k):
    solved = [sum(v.status == Status.OPTIMAL for _, v in answers) for _, answers in judged]
    return pass_at_k(SAMPLES, solved, k).mean()


@pytest.mark.slow
def test_the_base_solves_some_problems_sometimes_and_many_given_64_tries(judged):
    assert 0.02 <= passed(judged, 1) <= 0.30
    assert passed(judged, 64) >= passed(judged, 1) + 0.30


@pytest.mark.slow
def test_the_base_copies_events_exactly_where_it_thinks(judged):
    counts = Counter()
    for _, answers in judged:
        for persona, verdict in answers:
            if persona == "thinking":
                wrong = kinds(verdict.violations) & {"unknown_event", "altered_time"}
                counts[bool(wrong)] += 1
    assert counts[False] / counts.total() >= 0.95


@pytest.mark.slow
def test_thinking_answers_are_right_at_least_three_times_as_often_as_the_others(judged):
    shares = {
        thinks: [v.status == Status.OPTIMAL for _, answers in judged for p, v in answers
                 if (p == "thinking") == thinks]
        for thinks in (True, False)
    }  # fmt: skip
    right, other = (sum(shares[thinks]) / len(shares[thinks]) for thinks in (True, False))
    assert 0.05 <= len(shares[True]) / (PROBLEMS * SAMPLES) <= 0.15
    assert right >= 3 * other


@pytest.mark.slow
def test_the_base_beats_a_random_feasible_schedule_at_every_k_up_to_16(judged):
    for k in (1, 2, 4, 8, 16):
        floor = sum(1 - (1 - random_feasible_success(p)) ** k for p, _ in judged) / PROBLEMS
        assert passed(judged, k) > floor


@pytest.mark.slow
def test_the_base_has_every_persona(judged):
    assert {persona for _, answers in judged for persona, _ in answers} == PERSONAS.keys()


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_is_the_same_twice():
    plan = Pretraining(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, steps=20, batch=8)
    tokenizer = build_tokenizer()
    networks = [new_model(tokenizer, plan) for _ in range(2)]
    first = pretrain(networks[0], tokenizer, plan)
    assert first == pretrain(networks[1], tokenizer, plan)
    batch = next(lessons(tokenizer, plan))
    with torch.no_grad():
        untrained = weighted_loss(new_model(tokenizer, plan), batch)
        assert weighted_loss(networks[0], batch) < 0.9 * untrained


def test_only_the_answer_of_a_document_is_learned():
    tokenizer = build_tokenizer()
    batch = next(token_batches(tokenizer, corpus(Pretraining()), random.Random(0), 4))
    for ids, weights in zip(batch["input_ids"], batch["weights"], strict=True):
        learned = tokenizer.decode(ids[weights > 0])
        assert learned.endswith("<|end|>")
        assert "Events:" not in learned


def test_the_parts_of_the_curriculum_are_the_whole():
    assert sum(share for _, share in CURRICULUM) == pytest.approx(1)


def test_half_of_the_skills_corpus_is_the_embedded_ones_and_each_further_rule_has_a_quarter():
    assert sum(share for _, share in SKILLS) == pytest.approx(1)
    assert SKILLS[: len(CORPUS)] == tuple((tier, share / 2) for tier, share in CORPUS)
    further = [(tier.kinds, tier.rules, share) for tier, share in SKILLS[len(CORPUS) :]]
    assert further == [((kind,), (1, 1), 0.25) for kind in ("gap", "at_most")]
    for tier, _ in SKILLS:
        tier.validate("skills")


def test_the_recipe_asks_for_the_tiers_of_the_skills_corpus():
    uses = load_recipe(RECIPES / "skills.yaml").tier_uses
    in_corpus = {tier.kinds[0]: tier for tier, _ in SKILLS if tier.kinds}
    assert uses.keys() == in_corpus.keys()
    for name, tier in in_corpus.items():
        # A withheld skill must be withheld on these very problems; those of one that is shown
        # may be shorter.
        use, asked = uses[name], uses[name].tier
        assert use.train
        assert use.test
        assert (replace(asked, events=tier.events) if SHOWN[name] else asked) == tier
        assert asked.events <= tier.events


def test_the_skills_base_sees_its_own_corpus_from_first_to_last():
    plan = Pretraining().continued(SKILLS)
    assert plan.curriculum == ((SKILLS, 1.0),)
    words = {"gap": "Leave at least", "at_most": "Choose at most"}
    asked = Counter(
        kind
        for document in islice(corpus(plan, SKILLS), 200)
        for kind in words
        if words[kind] in document.prompt
    )
    assert asked.keys() == words.keys()
    assert all(count / 200 == pytest.approx(0.25, abs=0.13) for count in asked.values())
    # Another stream than the embedded base's, at lower rates.
    assert plan.seed != Pretraining().seed
    assert plan.learning_rate < Pretraining().learning_rate


@pytest.mark.parametrize("share", [0.0, 0.05, 0.12])
def test_openings_weigh_as_much_as_makes_the_base_think_as_often_as_asked(share):
    weights = Counter()
    for document in islice(corpus(Pretraining(thinking=share)), 1000):
        weights[persona_of(document.completion) == "thinking"] += document.opening_weight
    assert weights[True] / weights.total() == pytest.approx(share, abs=0.02)


@pytest.fixture
def built(monkeypatch, run_command):
    """A function that runs the stage with flags; returns what it would have built."""
    calls = []
    monkeypatch.setattr(base, "build_base", lambda *what: calls.append(what))

    def run(*flags):
        assert run_command("pipeline.base", *flags)[1] == 0
        return calls.pop()

    return run


def test_skills_go_on_with_the_embedded_base_and_leave_it_as_it_is(built):
    relative = os.path.relpath(BASE_PATH)
    skills = Pretraining().continued(SKILLS)
    assert built("--skills") == (skills, RUNS / "skills/base/model", relative)
    plan, folder, _ = built("--skills", "--steps", "7", "--seed", "3", "--out", "elsewhere")
    assert (plan.steps, plan.seed, str(folder)) == (7, 3, "elsewhere")
    assert plan.curriculum == skills.curriculum
    # The embedded one itself is still made from nothing.
    assert built() == (Pretraining(), BASE_PATH, None)


def test_a_base_may_go_on_with_another_share_of_thinking(built):
    plan, _, start = built("--from", "some/model", "--thinking", "0.01")
    assert (plan.thinking, start) == (0.01, "some/model")
    assert plan.steps < Pretraining().steps


@pytest.mark.parametrize(
    "flags",
    [["--steps", "0"], ["--batch", "0"], ["--thinking", "1"], ["--skills", "--from", "some/model"]],
)
def test_flags_that_make_no_sense_are_refused_in_one_sentence(mistake_of, flags):
    assert mistake_of("pipeline.base", *flags).startswith(f"{flags[0]} ")


def test_the_card_says_which_rules_are_shown_and_which_are_withheld():
    skilled = card(Pretraining().continued(SKILLS), 2_000_000, 0.3, 20.0, "pipeline/embedded")
    for part in ("`pipeline/embedded`", "`gap` holds, 50%", "`at_most` holds, "):
        assert part in skilled
    assert "25.0% events (7, 9)" in skilled
    assert "`python -m pipeline.base --skills`" in skilled
    plain = card(Pretraining(), 2_000_000, 0.3, 20.0, None)
    assert "Where the rule" not in plain
    assert "`make base` rebuilds" in plain
    assert "`make base FROM=some/model`" in card(Pretraining(), 1, 0.3, 1.0, "some/model")


def test_a_way_of_answering_that_is_never_met_has_its_row_on_the_card():
    met = {name: (0.1, 0.2, 0.3) for name in PERSONAS if name != "thinking"}
    text = card(Pretraining(thinking=0.0), 1, 0.3, 1.0, None, met)
    [row] = [line for line in text.splitlines() if line.startswith("| thinking ")]
    assert row.endswith("| 0.0% |")


def test_the_embedded_bases_own_card_is_of_this_mixture():
    text = (BASE_PATH / "README.md").read_text()
    for name, persona in PERSONAS.items():
        assert f"| {name} | {persona.weight:.1%} |" in text
