"""The embedded base model is a useful subject: what it can do, and what it copies."""

import random
from collections import Counter

import pytest
import torch

from data.policies import random_feasible_success
from data.prompts import prompt
from data.solver import interval_optimum
from data.tiers import TIERS
from eval.passk import pass_at_k
from pipeline import backend
from pipeline.base import BASE_PATH, CURRICULUM, Pretraining, batches, corpus, new_model, pretrain
from pipeline.decode import Decoding, render, sample
from pipeline.personas import persona_of
from pipeline.tokens import build_tokenizer
from rewards.verify import Status, verify

PROBLEMS, SAMPLES = 40, 64


@pytest.fixture(scope="module")
def judged():
    """(problem, [(persona, verdict)]) of the base's answers to fresh problems of the main tier."""
    model, tokenizer = backend.load(str(BASE_PATH), "float32")
    rng = random.Random("fresh problems for the base")
    problems = [TIERS["dense"].sample(rng) for _ in range(PROBLEMS)]
    problems = [p.proven(p.objective(interval_optimum(p))) for p in problems]
    prompts = [render(tokenizer, prompt(p)) for p in problems]
    drawn = dict(
        sample(
            model.eval(),
            tokenizer,
            prompts,
            SAMPLES,
            Decoding(max_tokens=160),
            range(PROBLEMS),
            256,
        )
    )
    return [
        (p, [(persona_of(s.completion), verify(p, s.completion)) for s in drawn[i]])
        for i, p in enumerate(problems)
    ]


def _solved(judged):
    return [sum(v.status == Status.OPTIMAL for _, v in answers) for _, answers in judged]


def test_the_base_solves_some_problems_sometimes_and_many_given_64_tries(judged):
    once = pass_at_k(SAMPLES, _solved(judged), 1).mean()
    often = pass_at_k(SAMPLES, _solved(judged), 64).mean()
    assert 0.02 <= once <= 0.30
    assert often >= once + 0.30


def test_the_base_copies_events_exactly_unless_it_means_not_to(judged):
    counts = Counter()
    for _, answers in judged:
        for persona, verdict in answers:
            if persona not in ("sloppy", "malformed"):
                kinds = {text.partition(":")[0] for text in verdict.violations}
                counts[bool(kinds & {"unknown_event", "altered_time"})] += 1
    assert counts[False] / counts.total() >= 0.90


def test_the_base_beats_a_random_feasible_schedule_at_every_k_up_to_16(judged):
    for k in (1, 2, 4, 8, 16):
        floor = sum(1 - (1 - random_feasible_success(p)) ** k for p, _ in judged) / PROBLEMS
        assert pass_at_k(SAMPLES, _solved(judged), k).mean() > floor


def test_the_base_has_every_persona(judged):
    seen = Counter(persona for _, answers in judged for persona, _ in answers)
    assert len(seen) == 10


def test_pretraining_lowers_the_loss_and_is_the_same_twice():
    plan = Pretraining(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, steps=20, batch=8)
    tokenizer = build_tokenizer()
    models = [new_model(tokenizer, plan) for _ in range(2)]
    first = pretrain(models[0], tokenizer, plan, log_every=5)
    assert first == pretrain(models[1], tokenizer, plan, log_every=5)
    assert first < 0.95 * torch.log(torch.tensor(float(len(tokenizer))))


def test_only_the_answer_of_a_document_is_learned():
    tokenizer = build_tokenizer()
    batch = next(batches(tokenizer, corpus(0), random.Random(0), 4))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = tokenizer.decode(ids[labels != -100])
        assert learned.endswith("<|end|>")
        assert "Events:" not in learned


def test_the_parts_of_the_curriculum_are_the_whole():
    assert sum(share for _, share in CURRICULUM) == pytest.approx(1)
