"""Answers of another model than the trained one are noticed, and those of itself never."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import random_model

from pipeline.model.sampler import draw_tokens
from pipeline.model.score import Encoded, surprises
from pipeline.watch import drawn
from pipeline.watch.drawn import measure_surplus, surplus_of


def game(logits, temperature=1.0, top_p=1.0, seed=0, both=True):
    """Whether tokens drawn from ``logits`` [tokens, vocabulary], at a temperature, are taken for
    another model's than the one of these logits."""
    uniforms = torch.rand(len(logits), generator=torch.Generator().manual_seed(seed))
    tokens = draw_tokens(logits, temperature, top_p, uniforms)
    logps = logits.double().log_softmax(-1)
    chance = logps.exp()
    mean = -(chance * logps).sum(-1)
    variance = (chance * logps.square()).sum(-1) - mean.square()
    d = -logps.gather(-1, tokens[:, None])[:, 0] - mean
    sums = len(d), d.sum().item(), d.square().sum().item(), variance.sum().item()
    found, limit = surplus_of(*sums, both)
    return found > limit


def skewed(seed, tokens=300, vocabulary=200):
    """Logits of a model that is mostly sure: a few likely tokens, and a long tail."""
    draw = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(tokens, vocabulary, generator=draw)


def test_false_alarms_are_no_more_often_than_derived(monkeypatch):
    monkeypatch.setattr(drawn, "ALARM", 0.05)
    monkeypatch.setattr(drawn, "ROUNDING", 0.0)
    alarms = sum(game(skewed(seed), seed=seed) for seed in range(400))
    assert alarms <= 2 * 0.05 * 400


@pytest.mark.parametrize(("temperature", "top_p"), [(1.6, 1.0), (0.5, 1.0), (0.0, 1.0), (1.0, 0.5)])
def test_tokens_of_another_distribution_are_noticed(temperature, top_p):
    assert all(game(skewed(seed, 2000), temperature, top_p, seed) for seed in range(20))


def test_leaving_out_what_is_unlikely_is_no_other_model_where_that_is_asked_for():
    assert not any(game(skewed(s, 2000), 1.0, 0.5, s, both=False) for s in range(20))
    assert all(game(skewed(s, 2000), 2.0, 0.9, s, both=False) for s in range(20))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_surprise_entropy_and_variance_are_those_of_the_model_at_its_temperature(temperature):
    model, _ = random_model("qwen3")
    texts = [Encoded((5, 6, 7), (8, 9)), Encoded((5, 6), (7, 9, 11, 12))]
    found = {len(each[0]): each for each in surprises(model, texts, temperature)}
    for text in texts:
        ids = torch.tensor([[*text.prompt, *text.answer]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(text.prompt) - 1 : -1] / temperature
        each = torch.distributions.Categorical(logits=logits)
        surprise, entropy, variance = found[len(text.answer)]
        torch.testing.assert_close(surprise, -each.log_prob(torch.tensor(text.answer)))
        torch.testing.assert_close(entropy, each.entropy())
        squares = (each.probs * each.logits.square()).sum(-1)
        torch.testing.assert_close(variance, squares - entropy.square(), rtol=1e-3, atol=1e-4)


def test_the_trained_model_is_measured_and_left_as_it_was():
    model, _ = random_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight *= 40  # few likely tokens
        other = copy.deepcopy(model)
        for weight in other.parameters():
            weight += 0.3 * torch.randn_like(weight)
    args = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=0, min_p=None)
    accelerator = SimpleNamespace(unwrap_model=lambda m: m, reduce=lambda s: s, device="cpu")
    trainer = SimpleNamespace(model=model.train(), args=args, accelerator=accelerator)
    prompts = [[5, 6, 7]] * 32
    state = torch.random.get_rng_state()
    for source, foreign in ((model, False), (other, True)):
        torch.manual_seed(1)
        ids = torch.tensor(prompts)
        for _ in range(20):
            with torch.no_grad():
                logits = source(ids).logits[:, -1]
            ids = torch.cat([ids, logits.softmax(-1).multinomial(1)], 1)
        torch.random.set_rng_state(state)
        found = measure_surplus(trainer, prompts, ids[:, 3:].tolist())
        assert (found["sampling/surplus"] > found["sampling/surplus_limit"]) == foreign
        assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
