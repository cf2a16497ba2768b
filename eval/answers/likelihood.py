"""How likely each arm's answers are: under itself, under the base, under the SFT model.

If RL only elicits, its answers are ones that the base gives too: likely under the base, token by
token. Everything is measured on an arm's own answers, drawn at temperature 1 and top_p 1 (answers
drawn otherwise are not samples of the model whose probabilities these are). Nats throughout.

Per answer with tokens x_1 … x_T, drawn from p, with a reference q:

- log-likelihood ``sum log q(x_t | …)``, and of its least likely token;
- tokens outside the reference's nucleus: those that sampling at ``TOP_P`` could not have drawn
  (Holtzman et al. 2020, arXiv 1904.09751);
- entropy: ``H_t`` of p at each token; their sum is an unbiased estimate of the entropy of the whole
  answer, by the chain rule;
- KL(p || q) by Monte Carlo: ``k1 = log p - log q``, unbiased, and ``k3 = q/p - 1 - log(q/p)``,
  unbiased too, never negative and of lower variance where p and q are close (Schulman 2020,
  joschu.net/blog/kl-approx.html). Summed over an answer, both estimate its KL. Where q gives
  weight to what p hardly draws, k3 has a heavy tail: its interval tells, and k1 is to be quoted.

A sample is kept as text, so its tokens are made anew. They may differ from those drawn where a
model spelled something in another way than its tokenizer does, where it wrote special tokens, which
the text leaves out, or where a tokenizer treats the start of a text in its own way. All models see
the same tokens, so likelihoods compare; KL and entropy are then those of tokens not drawn.
``tokens_as_drawn`` is the share of answers with as many tokens as were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.common.errors import UserError
from data.common.seeds import seed_of
from data.sections import RESAMPLES
from eval.stats.estimate import bootstrap_indices, ratio_interval
from pipeline.model.decode import reasoning_prefix, render
from pipeline.model.load import load_model
from pipeline.model.score import Encoded, answer_logits, encode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Of the nucleus that answers are held against.
TOP_P = 0.95
#: Answers to each problem that are scored.
PER_PROBLEM = 2
#: Logits held at a time, in numbers; a few copies of as many are made.
_BUDGET = 1 << 24

Values = NDArray[np.float64]
#: Rows ``{id, sample, completion, finish_reason, tokens}``, as ``eval.sample`` writes them.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """One answer under one model, [tokens] each.

    Attributes:
        log_p: log-probability of each token given those before it.
        entropy: of the distribution that the token is drawn from.
        outside: whether top_p would have ruled the token out.
    """

    log_p: Values
    entropy: Values
    outside: NDArray[np.bool_]


def k1(log_p: ArrayLike, log_q: ArrayLike) -> Values:
    """``log p - log q`` of samples of p: its mean is KL(p || q)."""
    return np.asarray(log_p, np.float64) - np.asarray(log_q, np.float64)


def k3(log_p: ArrayLike, log_q: ArrayLike) -> Values:
    """``q/p - 1 - log(q/p)`` of samples of p: at least 0, its mean is KL(p || q)."""
    log_ratio = np.asarray(log_q, np.float64) - np.asarray(log_p, np.float64)
    return np.expm1(log_ratio) - log_ratio


# --- the model part --------------------------------------------------------------------------


def encode_row(tokenizer: PreTrainedTokenizerBase, prompt: str, row: Row) -> Encoded:
    """The tokens of a rendered prompt and of a sampled answer to it."""
    text = row["completion"].removeprefix(reasoning_prefix(tokenizer))
    return encode(tokenizer, prompt, text, row["finish_reason"] == "stop")


def score(
    model: PreTrainedModel, texts: Sequence[Encoded], top_p: float = TOP_P, budget: int = _BUDGET
) -> list[Scored]:
    """Score answers, as many at a time as ``budget`` logits allow."""
    model.eval()
    scored = {}
    for i, logits, tokens in answer_logits(model, texts, budget, left=True):
        log_p, entropy, outside = token_statistics(logits, tokens, top_p)
        scored[i] = Scored(
            log_p.double().cpu().numpy(), entropy.double().cpu().numpy(), outside.cpu().numpy()
        )
    return [scored[i] for i in range(len(texts))]


def token_statistics(logits: Tensor, tokens: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy of each token, and whether it is outside the nucleus.

    The nucleus is that of ``pipeline.model.decode``: a token is outside when those more likely than it
    have ``top_p`` of the probability already. Of equally likely tokens none comes before another.

    Args:
        logits: [..., vocabulary].
        tokens: [...].
    """
    import torch

    log_p = torch.log_softmax(logits.float(), -1)
    p = log_p.exp()
    chosen = log_p.gather(-1, tokens[..., None])
    entropy = torch.special.entr(p).sum(-1)
    before = p.masked_fill_(log_p <= chosen, 0.0).sum(-1)
    return chosen[..., 0], entropy, before >= top_p


def measure(
    models: Mapping[str, str],
    rows: Mapping[str, Sequence[Row]],
    asked: Sequence[Mapping[str, Any]],
    dtype: str = "float32",
    seed: int = 0,
    references: Sequence[str] = ("base", "sft"),
    per_problem: int = PER_PROBLEM,
    resamples: int = RESAMPLES,
    top_p: float = TOP_P,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Likelihood, entropy and KL of every arm's answers, ``{tier: {arm: …}}``, ready for JSON.

    One model is in memory at a time. Its tokenizer must be that of the arms that it scores.

    Args:
        models: folder or hub id of each arm, in the order to be shown.
        rows: each arm's samples, drawn at temperature 1 and top_p 1 from the bare prompt.
        asked: the problems, ``{id, tier, prompt}``.
        seed: hashed with the tier; all arms get the same resamples.
        references: arms whose models all answers are held against; those not in ``models`` are
            left out.
        per_problem: how many of its samples of a problem are scored, the first ones.

    Raises:
        UserError: when two arms' tokenizers disagree about an answer.
    """
    prompts = {row["id"]: row["prompt"] for row in asked}
    taken = {
        arm: [row for row in rows[arm] if row["sample"] < per_problem and row["id"] in prompts]
        for arm in models
    }
    encoded: dict[str, list[Encoded]] = {}
    scored: dict[str, dict[str, list[Scored]]] = {arm: {} for arm in models}
    for name, folder in models.items():
        for arm, texts, found in _scored_by(name, folder, dtype, taken, prompts, references, top_p):
            if encoded.setdefault(arm, texts) != texts:
                raise UserError(
                    f"the tokenizer of {name!r} splits the answers of {arm!r} in another way than "
                    f"that of {next(iter(scored[arm]))!r}, so their probabilities do not compare"
                )
            scored[arm][name] = found
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for tier in dict.fromkeys(row["tier"] for row in asked):
        ids = {row["id"]: i for i, row in enumerate(r for r in asked if r["tier"] == tier)}
        report[tier] = {}
        for arm in models:
            # An answer that was cut off may hold nothing but what is not text.
            here = [
                i
                for i, (row, text) in enumerate(zip(taken[arm], encoded[arm], strict=True))
                if row["id"] in ids and text.answer
            ]
            if not here:
                continue
            as_drawn = [len(encoded[arm][i].answer) == taken[arm][i]["tokens"] for i in here]
            report[tier][arm] = {
                "top_p": top_p,
                "per_problem": per_problem,
                "tokens_as_drawn": float(np.mean(as_drawn)),
                **summarise(
                    [ids[taken[arm][i]["id"]] for i in here],
                    arm,
                    {name: [scores[i] for i in here] for name, scores in scored[arm].items()},
                    np.random.default_rng(seed_of(seed, "likelihood", tier)),
                    resamples,
                ),
            }
    return report


def _scored_by(
    name: str,
    folder: str,
    dtype: str,
    taken: Mapping[str, Sequence[Row]],
    prompts: Mapping[str, str],
    references: Sequence[str],
    top_p: float,
) -> Iterator[tuple[str, list[Encoded], list[Scored]]]:
    """Score with one model the answers that it is to score: its own, and if it is a reference
    everyone's."""
    model, tokenizer = load_model(folder, dtype)
    rendered = {identity: render(tokenizer, prompt) for identity, prompt in prompts.items()}
    for arm in taken if name in references else [name]:
        texts = [encode_row(tokenizer, rendered[row["id"]], row) for row in taken[arm]]
        yield arm, texts, score(model, texts, top_p)


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
    mine = scored[own]
    tokens = np.array([len(answer.log_p) for answer in mine], np.float64)
    ones = np.ones_like(tokens)
    # What is estimated: (path in the report, sums, what they are divided by, bounds if any).
    wanted: list[tuple[tuple[str, ...], ArrayLike, Values, tuple[float, float] | None]] = []

    def both(path: tuple[str, ...], sums: Sequence[float]) -> None:
        wanted.append(((*path, "per_token"), sums, tokens, None))
        wanted.append(((*path, "per_answer"), sums, ones, None))

    wanted.append((("tokens",), tokens, ones, None))
    both(("entropy",), [answer.entropy.sum() for answer in mine])
    for name, found in scored.items():
        under = ("under", name)
        both((*under, "log_likelihood"), [answer.log_p.sum() for answer in found])
        least = [answer.log_p.min() for answer in found]
        wanted.append(((*under, "least_likely_token"), least, ones, None))
        outside = np.array([answer.outside.sum() for answer in found])
        wanted.append(((*under, "tokens_outside"), outside, tokens, (0.0, 1.0)))
        wanted.append(((*under, "answers_outside"), outside > 0, ones, (0.0, 1.0)))
        for estimator in (k1, k3) if name != own else ():
            pairs = zip(mine, found, strict=True)
            sums = [estimator(a.log_p, b.log_p).sum() for a, b in pairs]
            both(("kl", name, estimator.__name__), sums)

    def by_problem(values: ArrayLike) -> Values:
        return np.bincount(index, np.asarray(values, np.float64)) / answers

    above = np.stack([by_problem(sums) for _, sums, _, _ in wanted], axis=1)
    below = np.stack([by_problem(per) for _, _, per, _ in wanted], axis=1)
    each = above / below
    # Of a quantity without bounds nothing is claimed beyond what was seen.
    low, high = (
        np.array([seen if bounds is None else bounds[i] for seen, (*_, bounds) in pairs])
        for i, pairs in enumerate(
            (zip(each.min(axis=0), wanted, strict=True), zip(each.max(axis=0), wanted, strict=True))
        )
    )
    indices = bootstrap_indices(len(answers), resamples, rng)
    report: dict[str, Any] = {"unit": "nats", "problems": len(answers), "answers": len(tokens)}
    found = ratio_interval(above, below, indices, bounds=(low, high))
    for (path, *_), estimate in zip(wanted, found, strict=True):
        assert estimate is not None, "every answer has a token"
        inner = report
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = estimate.to_json()
    return report
