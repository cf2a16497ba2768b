import itertools

import numpy as np
import pytest
import torch
from conftest import tier_problems
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from data.common.errors import UserError
from data.prompts import prompt
from eval.answers import likelihood
from eval.answers.likelihood import Scored, encode_row, k1, k3, measure, score, summarise
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import Decoding, render, sample_batch
from pipeline.model.sampler import draw_tokens

PROMPTS = ["Zoo visit", "Zoo visit, Vet visit and Yoga class at 09:00", "10:00\n- Swim meet"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def _model(tokenizer, architecture="qwen3", seed=0, spread=0.3):
    torch.manual_seed(seed)
    ends = dict(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=spread,
    )  # fmt: skip
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **ends)).eval()
    size = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **ends,
    )  # fmt: skip
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=8, **size)).eval()
    return LlamaForCausalLM(LlamaConfig(**size)).eval()


def _texts(tokenizer, model, count=4):
    """Prompts and sampled answers of different lengths."""
    texts, rows = [], []
    rendered = [render(tokenizer, p) for p in PROMPTS]
    found = sample_batch(model, tokenizer, rendered, count, Decoding(max_tokens=12), [1, 2, 3])
    for asked, answers in zip(rendered, found, strict=True):
        for one in answers:
            row = {"completion": one.completion, "finish_reason": one.finish_reason}
            texts.append(encode_row(tokenizer, asked, row))
            rows.append(one)
    return texts, rows


def _slowly(model, text, top_p):
    """Each token by its own forward pass over what stands before it, unpadded, in float64."""
    ids, log_p, entropy, outside = list(text.prompt), [], [], []
    for token in text.answer:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        p = (logits - logits.logsumexp(0)).exp().numpy()
        log_p.append(np.log(p[token]))
        entropy.append(-sum(q * np.log(q) for q in p if q > 0))
        nucleus, mass = set(), 0.0
        for candidate in np.argsort(-p, kind="stable"):
            if mass >= top_p:
                break
            nucleus.add(int(candidate))
            mass += p[candidate]
        outside.append(token not in nucleus)
        ids.append(token)
    return log_p, entropy, outside


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
def test_scores_equal_those_of_one_forward_pass_a_token_without_padding(tokenizer, architecture):
    model = _model(tokenizer, architecture)
    texts, _ = _texts(tokenizer, model, 2)
    assert len({len(text.answer) for text in texts}) > 1
    for found, text in zip(score(model, texts, 0.6), texts, strict=True):
        log_p, entropy, outside = _slowly(model, text, 0.6)
        np.testing.assert_allclose(found.log_p, log_p, atol=2e-4)
        np.testing.assert_allclose(found.entropy, entropy, atol=2e-4)
        assert found.outside.tolist() == outside


def test_scores_do_not_depend_on_the_size_of_the_batches(tokenizer):
    model = _model(tokenizer)
    texts, _ = _texts(tokenizer, model)
    together, alone = score(model, texts), score(model, texts, budget=1)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.log_p, b.log_p, atol=1e-4)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-4)


def test_sampled_answers_get_their_own_tokens_back_and_an_end_only_where_they_stopped(tokenizer):
    model = _model(tokenizer)
    texts, rows = _texts(tokenizer, model, 16)
    assert {row.finish_reason for row in rows} >= {"length"}
    for text, row in zip(texts, rows, strict=True):
        assert (text.answer[-1:] == (tokenizer.eos_token_id,)) == (row.finish_reason == "stop")
    gold = encode_row(tokenizer, "x", {"completion": "Zoo visit", "finish_reason": "stop"})
    assert len(gold.answer) == 2


def test_a_reasoning_that_the_template_opens_is_not_scored_twice(tokenizer):
    other = build_tokenizer()
    other.chat_template = other.chat_template.replace(
        "{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}"
    )
    row = {"completion": "<think>Pick a few.", "finish_reason": "length"}
    asked = render(other, "x")
    assert encode_row(other, asked, row).answer == tuple(
        other("Pick a few.", add_special_tokens=False)["input_ids"]
    )


def test_a_token_is_outside_just_where_sampling_at_top_p_cannot_draw_it():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 9, generator=rng) * 2
    for top_p in (0.3, 0.7, 0.95):
        uniforms = torch.linspace(0, 1 - 1e-6, 2000)
        for row in logits:
            drawn = set(draw_tokens(row.expand(2000, -1), 1.0, top_p, uniforms).tolist())
            _, _, outside = likelihood.token_statistics(row.expand(9, -1), torch.arange(9), top_p)
            inside = {token for token in range(9) if not outside[token]}
            assert drawn <= inside
            p = torch.softmax(row, -1)
            assert all(p[token] < 1 / 500 for token in inside - drawn)


def test_probabilities_of_zero_give_finite_entropies():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    _, entropy, outside = likelihood.token_statistics(logits, torch.tensor([1]), 0.95)
    assert entropy.item() == pytest.approx(np.log(2))
    assert not outside.item()


def _chain(rng):
    """A random model of three tokens a step, two steps: first [3], second [3, 3]."""
    return rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), size=3)


def test_sums_of_token_estimates_have_the_entropy_and_kl_of_whole_answers_as_their_means():
    rng = np.random.default_rng(0)
    (p1, p2), (q1, q2) = _chain(rng), _chain(rng)
    entropy = kl = 0.0
    sums = dict.fromkeys(("entropy", "k1", "k3"), 0.0)
    for a, b in itertools.product(range(3), range(3)):
        p, q = p1[a] * p2[a, b], q1[a] * q2[a, b]
        entropy -= p * np.log(p)
        kl += p * np.log(p / q)
        log_p, log_q = np.log([p1[a], p2[a, b]]), np.log([q1[a], q2[a, b]])
        sums["entropy"] += p * -(p1 @ np.log(p1) + p2[a] @ np.log(p2[a]))
        sums["k1"] += p * k1(log_p, log_q).sum()
        sums["k3"] += p * k3(log_p, log_q).sum()
        assert (k3(log_p, log_q) >= 0).all()
    assert sums["entropy"] == pytest.approx(entropy)
    assert sums["k1"] == pytest.approx(kl)
    assert sums["k3"] == pytest.approx(kl)


def _scored(rng, tokens):
    log_p = -rng.exponential(size=tokens)
    return Scored(log_p, rng.exponential(size=tokens), rng.random(tokens) < 0.2)


def test_the_summary_equals_a_slow_one_and_every_problem_weighs_the_same():
    rng = np.random.default_rng(1)
    problem = [0, 0, 0, 1, 2, 2]
    lengths = [3, 5, 2, 7, 4, 1]
    scored = {name: [_scored(rng, n) for n in lengths] for name in ("rl", "base")}
    found = summarise(problem, "rl", scored, np.random.default_rng(0), 300)

    def mean(values):
        return np.mean(
            [np.mean([values[i] for i in range(6) if problem[i] == j]) for j in range(3)]
        )

    own, base = scored["rl"], scored["base"]
    under = found["under"]["base"]
    assert (found["problems"], found["answers"]) == (3, 6)
    assert found["entropy"]["per_answer"]["value"] == pytest.approx(
        mean([a.entropy.sum() for a in own])
    )
    assert under["log_likelihood"]["per_answer"]["value"] == pytest.approx(
        mean([a.log_p.sum() for a in base])
    )
    assert under["log_likelihood"]["per_token"]["value"] == pytest.approx(
        mean([a.log_p.sum() for a in base]) / mean(lengths)
    )
    assert under["least_likely_token"]["value"] == pytest.approx(mean([min(a.log_p) for a in base]))
    assert under["tokens_outside"]["value"] == pytest.approx(
        mean([a.outside.sum() for a in base]) / mean(lengths)
    )
    assert under["answers_outside"]["value"] == pytest.approx(mean([a.outside.any() for a in base]))
    difference = mean([a.log_p.sum() - b.log_p.sum() for a, b in zip(own, base, strict=True)])
    assert found["kl"]["base"]["k1"]["per_answer"]["value"] == pytest.approx(difference)
    assert set(found["kl"]) == {"base"}
    assert set(found["under"]) == {"rl", "base"}
    low, high = (under["log_likelihood"]["per_token"][key] for key in ("low", "high"))
    assert low < under["log_likelihood"]["per_token"]["value"] < high
    assert found["tokens"]["n"] == 3


def _asked():
    problems = tier_problems("blog", 3)
    tiers = ["blog", "blog", "dense"]
    return [
        {"id": f"p{i}", "tier": tier, "prompt": prompt(problem)}
        for i, (problem, tier) in enumerate(zip(problems, tiers, strict=True))
    ]


def _folder(path, model, tokenizer):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def _sampled(model, tokenizer, arm):
    asked = _asked()
    prompts = [render(tokenizer, row["prompt"]) for row in asked]
    found = sample_batch(model, tokenizer, prompts, 3, Decoding(max_tokens=10), [4, 5, 6])
    return [
        {"id": row["id"], "arm": arm, "sample": i, "completion": one.completion,
         "finish_reason": one.finish_reason, "tokens": one.tokens}
        for row, group in zip(asked, found, strict=True)
        for i, one in enumerate(group)
    ]  # fmt: skip


def test_every_arm_is_held_against_itself_and_the_references(tokenizer, tmp_path):
    networks = {"base": _model(tokenizer), "sft": _model(tokenizer, seed=1)}
    networks["grpo"] = _model(tokenizer, seed=2)
    models = {n: _folder(tmp_path / n, m, tokenizer) for n, m in networks.items()}
    rows = {name: _sampled(model, tokenizer, name) for name, model in networks.items()}
    found = measure(models, rows, _asked(), per_problem=2, resamples=100)
    assert list(found) == ["blog", "dense"]
    for tier, problems in (("blog", 2), ("dense", 1)):
        assert list(found[tier]) == ["base", "sft", "grpo"]
        assert found[tier]["grpo"]["problems"] == problems
        assert found[tier]["grpo"]["answers"] == problems * 2
    assert set(found["blog"]["grpo"]["under"]) == {"base", "sft", "grpo"}
    assert set(found["blog"]["base"]["under"]) == {"base", "sft"}
    assert set(found["blog"]["base"]["kl"]) == {"sft"}
    # One problem, two answers: the mean of what each model says of them.
    taken = [row for row in rows["grpo"] if row["id"] == "p2" and row["sample"] < 2]
    asked = render(tokenizer, _asked()[2]["prompt"])
    texts = [encode_row(tokenizer, asked, row) for row in taken]
    expected = np.mean([np.sum(_slowly(networks["base"], text, 0.95)[0]) for text in texts])
    under = found["dense"]["grpo"]["under"]["base"]["log_likelihood"]
    assert under["per_answer"]["value"] == pytest.approx(expected, abs=1e-3)
    assert 0 <= found["blog"]["grpo"]["tokens_as_drawn"] <= 1


def test_arms_whose_tokenizers_differ_are_refused_by_name(tokenizer, tmp_path):
    other = build_tokenizer()
    other.add_tokens(["Zoo visit (09:"])
    model = _model(other)
    models = {
        "base": _folder(tmp_path / "base", model, tokenizer),
        "grpo": _folder(tmp_path / "grpo", model, other),
    }
    row = {"sample": 0, "completion": "Zoo visit (09:", "finish_reason": "stop", "tokens": 3}
    rows = {arm: [{**row, "id": "p0"}] for arm in models}
    with pytest.raises(UserError, match=r"tokenizer of 'grpo' .* that of 'base'"):
        measure(models, rows, _asked(), resamples=50)


def test_an_answer_without_any_token_is_left_out(tokenizer, tmp_path):
    models = {"base": _folder(tmp_path / "base", _model(tokenizer), tokenizer)}
    row = {"sample": 0, "completion": "", "finish_reason": "length", "tokens": 3}
    rows = {"base": [{**row, "id": "p0"}, {**row, "id": "p1", "completion": "Zoo visit"}]}
    found = measure(models, rows, _asked(), resamples=50)
    assert found["blog"]["base"]["answers"] == 1
    assert found["dense"] == {}
