"""The likelihood of each arm's answers: under itself, under the base, under the SFT model.

If RL only elicits, its answers are ones that the base gives too: likely under the base, token by
token. Everything is measured on an arm's own answers, drawn at temperature 1 and top_p 1; answers
drawn otherwise are not samples of the model whose probabilities these are. Nats throughout.

Per answer with tokens x_1 … x_T, drawn from p, with a reference q:

- log-likelihood ``sum log q(x_t | …)``;
- entropy: ``H_t`` of p at each token; their sum is an unbiased estimate of the entropy of the whole
  answer, by the chain rule;
- KL(p || q) by Monte Carlo: ``log p - log q``, unbiased (k1 of Schulman 2020,
  joschu.net/blog/kl-approx.html); summed over an answer, it estimates the KL of answers.

A sample is kept as text, so its tokens are made anew, and may differ from those drawn. All models
see the same tokens, so likelihoods compare; KL and entropy are then those of tokens not drawn.
``tokens_as_drawn`` is the share of answers with as many tokens as were drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.common.console import paced
from data.common.errors import UserError
from data.common.seeds import seed_of
from data.rows import Row
from data.sections import RESAMPLES
from eval.answers.files import AnsweredRow, SampleRow
from eval.stats.estimate import Values, bootstrap_weights, by_name, mean_interval, ratio_interval
from eval.stats.passk import best_of_k, ks_for
from pipeline.model.decode import reasoning_prefix, render
from pipeline.model.load import load_model
from pipeline.model.score import Encoded, answer_logits, encode, surprise
from rewards.verify import Status

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Answers to each problem that are scored, the first ones.
PER_PROBLEM = 2
#: Logits held at a time; a few copies of as many are made.
_BUDGET = 1 << 24


@dataclass(frozen=True)
class Scored:
    """One answer under one model, [tokens] each.

    Attributes:
        log_p: log-probability of each token given those before it.
        entropy: of the distribution that the token is drawn from.
    """

    log_p: Values
    entropy: Values


# --- the model part --------------------------------------------------------------------------


def encode_row(tokenizer: PreTrainedTokenizerBase, prompt: str, row: SampleRow) -> Encoded:
    """The tokens of a rendered prompt and of a sampled answer to it."""
    text = row["completion"].removeprefix(reasoning_prefix(tokenizer))
    return encode(tokenizer, prompt, text, row["finish_reason"] == "stop")


def score(model: PreTrainedModel, texts: Sequence[Encoded]) -> list[Scored]:
    """Score answers under a model."""
    from pipeline.model.sampler import reads_once

    model.eval()
    scored = {}
    each = answer_logits(model, texts, _BUDGET, left=reads_once(model))
    for i, logits, tokens in paced(each, len(texts), "likelihood", " answers"):
        unlikely, entropy, _ = surprise(logits, tokens)
        scored[i] = Scored(-unlikely.double().cpu().numpy(), entropy.double().cpu().numpy())
    return [scored[i] for i in range(len(texts))]


class _Answer(NamedTuple):
    """One answer of an arm: in tokens, and as the models score it, by the arm that each is."""

    row: SampleRow
    text: Encoded
    scored: dict[str, Scored]


def measure(
    models: Mapping[str, str],
    rows: Mapping[str, Iterable[SampleRow]],
    asked: Sequence[Row],
    references: Sequence[str],
    dtype: str = "float32",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, dict[str, object]]]:
    """Likelihood, entropy and KL of every arm's answers, ``{tier: {arm: …}}``, ready for JSON.

    Args:
        models: folder or hub id of each arm, in the order to be shown.
        rows: each arm's samples, drawn at temperature 1 and top_p 1 from the bare prompt.
        asked: the problems.
        references: arms whose models all answers are held against; those not in ``models`` are
            left out.
        seed: hashed with the tier; all arms get the same resamples.

    Raises:
        UserError: when two arms' tokenizers disagree about an answer.
    """
    answers = _scored(models, rows, {row["id"]: row["prompt"] for row in asked}, dtype, references)
    report: dict[str, dict[str, dict[str, object]]] = {}
    for tier in dict.fromkeys(row["tier"] for row in asked):
        places = {row["id"]: i for i, row in enumerate(r for r in asked if r["tier"] == tier)}
        report[tier] = {}
        for arm in models:
            # The text of an answer that was cut off may be empty.
            here = [one for one in answers[arm] if one.row["id"] in places and one.text.answer]
            if not here:
                continue
            as_drawn = [len(one.text.answer) == one.row["tokens"] for one in here]
            report[tier][arm] = {
                "per_problem": PER_PROBLEM,
                "tokens_as_drawn": float(np.mean(as_drawn)),
                **summarise(
                    [places[one.row["id"]] for one in here],
                    arm,
                    {name: [one.scored[name] for one in here] for name in here[0].scored},
                    np.random.default_rng(seed_of(seed, "likelihood", tier)),
                    resamples,
                ),
            }
    return report


def _scored(
    models: Mapping[str, str],
    rows: Mapping[str, Iterable[SampleRow]],
    prompts: Mapping[str, str],
    dtype: str,
    references: Sequence[str],
) -> dict[str, list[_Answer]]:
    """Each arm's answers, scored by its own model and by the references. One model is in memory at
    a time."""
    taken = {
        arm: [row for row in rows[arm] if row["sample"] < PER_PROBLEM and row["id"] in prompts]
        for arm in models
    }
    answers: dict[str, list[_Answer]] = {}
    for name, folder in models.items():
        model, tokenizer = load_model(folder, dtype)
        rendered = {identity: render(tokenizer, prompt) for identity, prompt in prompts.items()}
        for arm in taken if name in references else [name]:
            texts = [encode_row(tokenizer, rendered[row["id"]], row) for row in taken[arm]]
            pairs = zip(taken[arm], texts, strict=True)
            mine = answers.setdefault(arm, [_Answer(row, text, {}) for row, text in pairs])
            if [one.text for one in mine] != texts:
                raise UserError(
                    f"the tokenizer of {name!r} splits the answers of {arm!r} in another way than "
                    f"that of {next(iter(mine[0].scored))!r}, so their probabilities do not compare"
                )
            for one, scored in zip(mine, score(model, texts), strict=True):
                one.scored[name] = scored
        del model  # before the next one is loaded
    return answers


def likeliest(
    model: str,
    rows: Iterable[AnsweredRow],
    asked: Sequence[Row],
    dtype: str = "float32",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Share of problems where the likeliest of k answers is optimal, ``{tier: {k: Estimate}}``: a
    model's gain by choosing among its own answers, with no training and no judge.

    An answer is as likely as all its tokens together are; of equally likely ones the first one
    drawn is taken.

    Args:
        model: folder or hub id of the model that drew them.
        rows: its answers, equally many to each problem.
        asked: the problems.
    """
    loaded, tokenizer = load_model(model, dtype)
    prompts = {row["id"]: render(tokenizer, row["prompt"]) for row in asked}
    answers = list(rows)
    texts = [encode_row(tokenizer, prompts[row["id"]], row) for row in answers]
    ranked: dict[str, list[tuple[float, bool]]] = {name: [] for name in prompts}
    for row, scored in zip(answers, score(loaded, texts), strict=True):
        total = scored.log_p.sum() if scored.log_p.size else -np.inf  # cut off before any text
        ranked[row["id"]].append((total, row["status"] == Status.OPTIMAL))
    shares = {}
    for tier in dict.fromkeys(row["tier"] for row in asked):
        of_tier = [ranked[row["id"]] for row in asked if row["tier"] == tier]
        ordered = (sorted(of, key=itemgetter(0), reverse=True) for of in of_tier)  # stably
        right = [[one for _, one in of] for of in ordered]
        ks = ks_for(len(right[0]))
        weights = bootstrap_weights(len(right), resamples, seed_of(seed, "likeliest", tier))
        shares[tier] = by_name(ks, mean_interval(best_of_k(right, ks), weights))
    return shares


# --- the pure part ---------------------------------------------------------------------------


def summarise(
    problem: Sequence[int],
    own: str,
    scored: Mapping[str, Sequence[Scored]],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Estimates from one arm's answers to one tier, with intervals that resample problems.

    Every problem weighs the same; ``per_token`` is the mean sum over the mean number of tokens.

    Args:
        problem: of each answer, as a number.
        own: the arm's name in ``scored``.
        scored: of each model, the answers as it scores them, each with a token or more.
    """
    _, index, answers = np.unique(problem, return_inverse=True, return_counts=True)
    weights = bootstrap_weights(len(answers), resamples, rng)
    mine = scored[own]

    def over_problems(of_answers: Iterable[float]) -> Values:
        return np.bincount(index, np.array(list(of_answers))) / answers

    tokens = over_problems(len(answer.log_p) for answer in mine)
    divided_by = np.stack([tokens, np.ones_like(tokens)], axis=1)

    def estimates(of_tokens: Iterable[Values]) -> dict[str, dict[str, float] | None]:
        sums = np.stack([over_problems(values.sum() for values in of_tokens)] * 2, axis=1)
        each = sums / divided_by  # nothing is claimed beyond what was seen
        bounds = each.min(axis=0), each.max(axis=0)
        means = ratio_interval(sums, divided_by, weights, bounds=bounds)
        return by_name(("per_token", "per_answer"), means)

    return {
        "unit": "nats",
        "problems": len(answers),
        "answers": len(problem),
        "tokens": estimates(np.ones_like(answer.log_p) for answer in mine)["per_answer"],
        "entropy": estimates(answer.entropy for answer in mine),
        "under": {
            name: {"log_likelihood": estimates(answer.log_p for answer in of_model)}
            for name, of_model in scored.items()
        },
        "kl": {
            name: estimates(p.log_p - q.log_p for p, q in zip(mine, of_model, strict=True))
            for name, of_model in scored.items()
            if name != own
        },
    }
