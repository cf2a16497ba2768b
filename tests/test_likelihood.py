"""How likely answers are: token by token as one pass a token says, and averaged as by hand."""

import numpy as np
import pytest
import torch
from problems import tier_problems
from running import refusal_of
from tiny import spread_model

from data.prompts import prompt
from eval.answers.likelihood import Scored, encode_row, likeliest, measure, score, summarise
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import render, sample
from pipeline.model.decoding import Decoding
from pipeline.model.score import Encoded, encode

REFERENCES = ("base", "sft")
PROMPTS = ["Zoo visit", "Zoo visit, Vet visit and Yoga class at 09:00", "10:00\n- Swim meet"]


def answers_of(model, tokenizer, prompts, count):
    """Sample rows of each prompt, and the rendered prompts by the ids of the rows."""
    asked = {f"p{i}": render(tokenizer, text) for i, text in enumerate(prompts)}
    decoding = Decoding(max_tokens=12)
    texts, seeds = [*asked.values()], range(len(asked))
    drawn = dict(sample(model, tokenizer, texts, count, decoding, seeds, count * len(texts)))
    return asked, [
        {"id": name, "sample": i, "completion": one.completion, "finish_reason": one.finish_reason,
         "tokens": one.tokens}
        for place, name in enumerate(asked)
        for i, one in enumerate(drawn[place])
    ]  # fmt: skip


def slowly(model, text):
    """Each token by its own forward pass over what stands before it, unpadded, in float64."""
    ids, log_p, entropy = list(text.prompt), [], []
    for token in text.answer:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        p = (logits - logits.logsumexp(0)).exp().numpy()
        log_p.append(np.log(p[token]))
        entropy.append(-sum(q * np.log(q) for q in p if q > 0))
        ids.append(token)
    return log_p, entropy


@pytest.mark.slow
def test_scores_equal_those_of_one_forward_pass_a_token_without_padding(tokenizer):
    model, _ = spread_model()
    asked, rows = answers_of(model, tokenizer, PROMPTS, 4)
    rows[0]["finish_reason"] = "stop"
    texts = [encode_row(tokenizer, asked[row["id"]], row) for row in rows]
    for row, scored, text in zip(rows, score(model, texts), texts, strict=True):
        stopped = row["finish_reason"] == "stop"
        assert (text.answer[-1:] == (tokenizer.eos_token_id,)) == stopped
        log_p, entropy = slowly(model, text)
        np.testing.assert_allclose(scored.log_p, log_p, atol=2e-4)
        np.testing.assert_allclose(scored.entropy, entropy, atol=2e-4)


@pytest.mark.slow
def test_an_end_is_as_likely_as_all_tokens_that_end_an_answer(tokenizer):
    model, _ = spread_model()
    text = encode(tokenizer, render(tokenizer, PROMPTS[0]), "Zoo visit")
    (alone,) = score(model, [text])
    model.generation_config.eos_token_id = ends = [tokenizer.eos_token_id, 7]
    (either,) = score(model, [text])
    np.testing.assert_allclose(either.log_p[:-1], alone.log_p[:-1], atol=1e-5)
    each = [slowly(model, Encoded(text.prompt, (*text.answer[:-1], end)))[0][-1] for end in ends]
    assert either.log_p[-1] == pytest.approx(np.logaddexp(*each), abs=2e-4)


def test_a_reasoning_that_the_template_opens_is_not_scored_twice():
    other = build_tokenizer()
    other.chat_template = other.chat_template.replace(
        "{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}"
    )
    row = {"completion": "<think>Pick a few.", "finish_reason": "length"}
    asked = render(other, "x")
    assert encode_row(other, asked, row).answer == tuple(
        other("Pick a few.", add_special_tokens=False)["input_ids"]
    )


def test_the_summary_equals_a_slow_one_and_every_problem_weighs_the_same():
    rng = np.random.default_rng(1)
    problem, lengths = [0, 0, 0, 1, 2, 2], [3, 5, 2, 7, 4, 1]
    scored = {
        name: [Scored(-rng.random(n), rng.random(n)) for n in lengths] for name in ("rl", "base")
    }
    report = summarise(problem, "rl", scored, np.random.default_rng(0), 300)

    def mean(values):
        groups = [[v for v, p in zip(values, problem, strict=True) if p == j] for j in range(3)]
        return np.mean([np.mean(group) for group in groups])

    own, base = scored["rl"], scored["base"]
    loglik = [answer.log_p.sum() for answer in base]
    kl = [a.log_p.sum() - b for a, b in zip(own, loglik, strict=True)]
    expected = {
        ("entropy", "per_answer"): mean([answer.entropy.sum() for answer in own]),
        ("under", "base", "log_likelihood", "per_answer"): mean(loglik),
        ("under", "base", "log_likelihood", "per_token"): mean(loglik) / mean(lengths),
        ("kl", "base", "per_answer"): mean(kl),
    }
    for path, value in expected.items():
        estimate = report
        for key in path:
            estimate = estimate[key]
        assert estimate["value"] == pytest.approx(value), path
        assert estimate["low"] < value < estimate["high"]
        assert estimate["n"] == 3
    assert (report["problems"], report["answers"]) == (3, 6)
    assert (set(report["kl"]), set(report["under"])) == ({"base"}, {"rl", "base"})


@pytest.fixture(scope="module")
def asked():
    return [
        {"id": f"p{i}", "tier": tier, "prompt": prompt(problem)}
        for i, (tier, problem) in enumerate(
            zip(["blog", "blog", "dense"], tier_problems("blog", 3), strict=True)
        )
    ]


def saved(path, model, tokenizer):
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.slow
def test_every_arm_is_held_against_itself_and_the_references(tokenizer, asked, tmp_path):
    arms = ("base", "sft", "grpo")
    networks = {name: spread_model(seed=seed)[0] for seed, name in enumerate(arms)}
    models = {name: saved(tmp_path / name, one, tokenizer) for name, one in networks.items()}
    prompts = [row["prompt"] for row in asked]
    rows = {name: answers_of(one, tokenizer, prompts, 3)[1] for name, one in networks.items()}
    rows["sft"][3] |= {"completion": "", "finish_reason": "length"}  # has no token to score
    report = measure(models, {name: iter(drawn) for name, drawn in rows.items()}, asked, REFERENCES)
    for tier, problems in (("blog", 2), ("dense", 1)):
        assert list(report[tier]) == ["base", "sft", "grpo"]
        arm = report[tier]["grpo"]
        assert (arm["problems"], arm["answers"]) == (problems, 2 * problems)
    assert report["blog"]["sft"]["answers"] == 3
    assert set(report["blog"]["grpo"]["under"]) == {"base", "sft", "grpo"}
    assert set(report["blog"]["base"]["under"]) == {"base", "sft"}
    assert set(report["blog"]["base"]["kl"]) == {"sft"}
    # One problem, two answers: the mean of their likelihoods.
    rendered = render(tokenizer, prompts[2])
    taken = [row for row in rows["grpo"] if row["id"] == "p2" and row["sample"] < 2]
    texts = [encode_row(tokenizer, rendered, row) for row in taken]
    expected = np.mean([np.sum(slowly(networks["base"], text)[0]) for text in texts])
    under = report["dense"]["grpo"]["under"]["base"]["log_likelihood"]
    assert under["per_answer"]["value"] == pytest.approx(expected, abs=1e-3)
    assert 0 <= report["blog"]["grpo"]["tokens_as_drawn"] <= 1


@pytest.mark.slow
def test_of_k_answers_the_likeliest_by_all_its_tokens_is_chosen(tokenizer, asked, tmp_path):
    one, _ = spread_model()
    model = saved(tmp_path / "base", one, tokenizer)
    prompts, rows = answers_of(one, tokenizer, [row["prompt"] for row in asked], 4)
    best, worst = {}, {}
    for name, prompt_text in prompts.items():
        mine = [row for row in rows if row["id"] == name]
        texts = [encode_row(tokenizer, prompt_text, row) for row in mine]
        sums = [np.sum(slowly(one, text)[0]) for text in texts]
        best[name], worst[name] = int(np.argmax(sums)), int(np.argmin(sums))

    def optimal_where(which):
        judged = [
            {**row, "status": "optimal" if which[row["id"]] == row["sample"] else "feasible"}
            for row in rows
        ]
        return likeliest(model, iter(judged), asked)["blog"]

    assert [optimal_where(best)[k]["value"] for k in ("1", "4")] == pytest.approx([0.25, 1])
    assert [optimal_where(worst)[k]["value"] for k in ("1", "4")] == pytest.approx([0.25, 0])


@pytest.mark.slow
def test_arms_whose_tokenizers_differ_are_refused_by_name(tokenizer, asked, tmp_path):
    other = build_tokenizer()
    other.add_tokens(["Zoo visit (09:"])
    models = {
        name: saved(tmp_path / name, spread_model()[0], one)
        for name, one in (("base", tokenizer), ("grpo", other))
    }
    row = {"sample": 0, "completion": "Zoo visit (09:", "finish_reason": "stop", "tokens": 3}
    rows = {arm: [{**row, "id": "p0"}] for arm in models}
    refusal_of(lambda: measure(models, rows, asked, REFERENCES, resamples=50), "'grpo'", "'base'")
