"""Whether GRPO has anything to work with: what groups of answers would look like, and advice.

GRPO learns from differences within a group of answers to one prompt: a group in which all are paid
alike teaches nothing. A group of g is judged from n >= g samples of its prompt, without bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.common.seeds import seed_of
from data.sections import RESAMPLES
from eval.stats.estimate import Values, bootstrap_weights, by_name, mean_interval
from eval.stats.passk import pass_at_k

#: Name of all tiers together, as the training data mixes them.
ALL_TIERS = "all"
#: Rewards this close are equal but for rounding; TRL takes them so too.
_DECIMALS = 8

#: The limits of the advice, shares of answers or of groups.
LIMITS = {
    "readable": 0.5,  # answers with a schedule, at least
    "truncated": 0.2,  # answers cut off, at most
    "solved": 0.5,  # groups with nothing but optimal answers, at most
    "flat": 0.5,  # groups in which all rewards are equal, at most
    "mixed": 0.25,  # groups with optimal and other answers, at least
    "valid": 0.5,  # answers that break no rule, at least
}


def advise(shares: Mapping[str, float]) -> tuple[str, str]:
    """The first advice that holds, and why, with limits named in braces.

    Args:
        shares: at least those of ``LIMITS``.
    """

    def above(name: str) -> bool:
        return shares[name] > LIMITS[name]

    if shares["readable"] < LIMITS["readable"]:
        advice = "more SFT"
        why = "fewer than {readable} of the answers can be read: the form is not there yet"
    elif above("truncated"):
        advice = "longer answers"
        why = "more than {truncated} of the answers are cut off: raise grpo.max_completion_length"
    elif above("solved"):
        advice = "harder tier"
        why = "more than {solved} of the groups are optimal throughout: little is left to learn"
    elif not above("flat") and shares["mixed"] >= LIMITS["mixed"]:
        advice = "ready"
        why = "at most {flat} of the groups have equal rewards, and at least {mixed} have both "
        why += "optimal and other answers"
    elif shares["valid"] < LIMITS["valid"]:
        advice, why = "more SFT", "fewer than {valid} of the answers break no rule"
    else:
        advice = "easier tier"
        why = "the answers are well formed, and optimal ones too rare to find; larger groups "
        why += "(grpo.num_generations) or a bigger base may find them too"
    return advice, why


def alike(classes: ArrayLike, group: int) -> Values:
    """Chance that g of a problem's n samples, drawn without replacement, are all of one class.

    ``sum over classes of C(m, g) / C(n, g)`` with m of the samples in a class: an unbiased estimate
    of the chance that a new group of g answers is (a U-statistic, as ``pass_at_k`` is).

    Args:
        classes: samples in each class, [problems, classes], each row adding up to n >= g.
        group: the g.

    Returns:
        [problems].
    """
    counts = np.asarray(classes)
    n = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    within = 1 - pass_at_k(n.ravel(), (n - counts).ravel(), group)
    return within.reshape(counts.shape).sum(axis=1)


def reward_classes(reward: Values) -> NDArray[np.int64]:
    """How often a problem's samples have each reward, [problems, most distinct], 0 as padding."""
    counts = [np.unique(row, return_counts=True)[1] for row in np.round(reward, _DECIMALS)]
    padded = np.zeros((len(counts), max(map(len, counts))), np.int64)
    for row, of_problem in zip(padded, counts, strict=True):
        row[: len(of_problem)] = of_problem
    return padded


@dataclass(frozen=True)
class Outcomes:
    """What was sampled, [problems, samples] each; the rewards are GRPO's totals."""

    optimal: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    readable: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    reward: Values

    def of(self, problems: Sequence[int]) -> Outcomes:
        """The same of some problems."""
        return Outcomes(*(values[problems] for values in vars(self).values()))


def readiness(
    outcomes: Outcomes, group: int, rng: np.random.Generator | int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Shares of answers, and of groups of so many, with intervals that resample problems; the mean
    reward; the advice and why."""
    problems, n = outcomes.optimal.shape
    c, reward = outcomes.optimal.sum(axis=1), outcomes.reward
    columns = {
        **{k: v.mean(axis=1) for k, v in vars(outcomes).items() if k != "reward"},
        "solved": 1 - pass_at_k(n, n - c, group),
        "unsolved": 1 - pass_at_k(n, c, group),
        "flat": alike(reward_classes(reward), group),
        "mixed": 1 - alike(np.stack([c, n - c], axis=1), group),
    }
    shares = np.column_stack(list(columns.values()))
    weights = bootstrap_weights(problems, resamples, rng)
    paid = reward.mean(axis=1, keepdims=True)
    ends = (float(reward.min()), float(reward.max()))
    advice, why = advise(dict(zip(columns, shares.mean(axis=0).tolist(), strict=True)))
    limits = {name: f"{100 * share:.0f} %" for name, share in LIMITS.items()}
    return {
        "problems": problems,
        **by_name(columns, mean_interval(shares, weights)),
        **by_name(["reward"], mean_interval(paid, weights, bounds=ends)),
        "advice": advice,
        "because": why.format(**limits),
    }


def readiness_by_tier(
    outcomes: Outcomes, tiers: Sequence[str], group: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """``readiness`` on each tier, and on all together where there are several.

    Args:
        tiers: of each problem.
        group: answers to a prompt in GRPO.
        seed: the recipe's; each tier's resampling is hashed from it.
    """
    names = list(dict.fromkeys(tiers))
    chosen = {name: [i for i, tier in enumerate(tiers) if tier == name] for name in names}
    if len(names) > 1:
        chosen[ALL_TIERS] = list(range(len(tiers)))
    return {
        name: readiness(outcomes.of(problems), group, seed_of(seed, "probe", name), resamples)
        for name, problems in chosen.items()
    }
