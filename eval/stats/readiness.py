"""Whether GRPO has anything to work with: what groups of answers would look like, and advice.

GRPO learns from differences within a group of answers to one prompt: a group in which all are paid
alike teaches nothing. A group of g is judged from n >= g samples of its prompt, without bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.common.seeds import seed_of
from data.sections import LEVEL, RESAMPLES
from eval.stats.estimate import Values, bootstrap_weights, by_name, mean_interval, resampled_means
from eval.stats.passk import ks_for, pass_at_k

#: Name of all tiers together, as the training data mixes them.
ALL_TIERS = "all"
#: Resamples in which the advice is given again.
_SECOND_OPINIONS = 2000
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


def advise(
    shares: Mapping[str, float], group: int, sizes: Sequence[int], ready: Sequence[str] = ()
) -> tuple[str, str, int | None]:
    """The first advice that holds; why, with limits named in braces; and the smallest larger group
    that would be ready, of those that the samples can tell of.

    Args:
        shares: "readable", "valid", "truncated" and "solved"; and for each group size g "flat g"
            and "mixed g".
        group: the recipe's.
        sizes: every g, in order.
        ready: further tiers that are ready.
    """

    def teaches(size: int) -> bool:
        flat, mixed = shares[f"flat {size}"], shares[f"mixed {size}"]
        return flat <= LIMITS["flat"] and mixed >= LIMITS["mixed"]

    larger = next((g for g in sizes if g > group and teaches(g)), None)
    if shares["readable"] < LIMITS["readable"]:
        advice = "more SFT"
        why = "fewer than {readable} of the answers can be read: the form is not there yet"
    elif shares["truncated"] > LIMITS["truncated"]:
        advice = "longer answers"
        why = "more than {truncated} of the answers are cut off: raise grpo.max_completion_length"
    elif shares["solved"] > LIMITS["solved"]:
        advice = "harder tier"
        why = "more than {solved} of the groups are optimal throughout: little is left to learn"
    elif teaches(group):
        advice = "ready"
        why = "at most {flat} of the groups have equal rewards, and at least {mixed} have both "
        why += "optimal and other answers"
    elif larger:
        advice, why = "larger group", "a larger group, within the samples drawn, would be ready"
    elif shares["valid"] < LIMITS["valid"]:
        advice, why = "more SFT", "fewer than {valid} of the answers break no rule"
    elif ready:
        advice = "easier tier"
        why = "another tier of the training data is ready: train on it first"
    else:
        advice = "bigger base"
        why = "none of these: the answers are well formed, and optimal ones too rare to find"
    return advice, why, larger


def alike(classes: ArrayLike, sizes: Sequence[int]) -> Values:
    """Chance that g of a problem's n samples, drawn without replacement, are all of one class.

    ``sum over classes of C(m, g) / C(n, g)`` with m of the samples in a class: an unbiased estimate
    of the chance that a new group of g answers is (a U-statistic, as ``pass_at_k`` is).

    Args:
        classes: samples in each class, [problems, classes], each row adding up to n >= g.
        sizes: the g.

    Returns:
        [problems, sizes].
    """
    counts = np.asarray(classes)
    n = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    within = 1 - pass_at_k(n.ravel(), (n - counts).ravel(), sizes)
    return within.reshape(*counts.shape, len(sizes)).sum(axis=1)


def reward_classes(reward: Values) -> NDArray[np.int64]:
    """How often each problem's samples have each of its rewards, [problems, most distinct], padded
    with 0."""
    counts = [np.unique(row, return_counts=True)[1] for row in np.round(reward, _DECIMALS)]
    padded = np.zeros((len(counts), max(map(len, counts))), np.int64)
    for row, of_problem in zip(padded, counts, strict=True):
        row[: len(of_problem)] = of_problem
    return padded


def group_sizes(group: int, samples: int) -> list[int]:
    """The recipe's group, and powers of two from 2 to the number of samples."""
    powers = {2**i for i in range(1, samples.bit_length()) if 2**i <= samples}
    return sorted(powers | {group})


@dataclass(frozen=True)
class Outcomes:
    """What was sampled, [problems, samples] each; the rewards are GRPO's totals."""

    optimal: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    readable: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    reward: Values

    def of(self, problems: Iterable[int]) -> Outcomes:
        """The same of some problems."""
        chosen = list(problems)
        return Outcomes(*(values[chosen] for values in vars(self).values()))


class Readiness:
    """Some problems' outcomes as the report and the advice need them."""

    def __init__(
        self, outcomes: Outcomes, group: int, rng: np.random.Generator, resamples: int = RESAMPLES
    ) -> None:
        problems, n = outcomes.optimal.shape
        c = outcomes.optimal.sum(axis=1)
        self.outcomes, self.group, self.sizes = outcomes, group, group_sizes(group, n)
        flat = alike(reward_classes(outcomes.reward), self.sizes)
        mixed = 1 - alike(np.stack([c, n - c], axis=1), self.sizes)
        self.shares = {
            "readable": outcomes.readable.mean(axis=1),
            "valid": outcomes.valid.mean(axis=1),
            "truncated": outcomes.truncated.mean(axis=1),
            "solved": 1 - pass_at_k(n, n - c, group),
            "unsolved": 1 - pass_at_k(n, c, group),
            **{f"flat {g}": column for g, column in zip(self.sizes, flat.T, strict=True)},
            **{f"mixed {g}": column for g, column in zip(self.sizes, mixed.T, strict=True)},
        }
        self.columns = np.column_stack(list(self.shares.values()))
        self.weights = bootstrap_weights(problems, resamples, rng)

    def advise(
        self, means: Values | None = None, ready: Sequence[str] = ()
    ) -> tuple[str, str, int | None]:
        """``advise`` by the means over the problems, or by those of a resample."""
        means = self.columns.mean(axis=0) if means is None else means
        shares = dict(zip(self.shares, means.tolist(), strict=True))
        return advise(shares, self.group, self.sizes, ready)

    def advice(self, ready: Sequence[str]) -> dict[str, object]:
        """The advice, why, and the share of resamples in which it is the same."""
        advice, why, larger = self.advise(ready=ready)
        limits = {name: f"{100 * share:.0f} %" for name, share in LIMITS.items()}
        resampled = resampled_means(self.columns, self.weights[:_SECOND_OPINIONS])
        same = [self.advise(means, ready)[0] == advice for means in resampled]
        return {
            "advice": advice,
            "because": why.format(**limits),
            "group": larger if advice == "larger group" else None,
            "tiers": list(ready) if advice == "easier tier" else None,
            "firmness": float(np.mean(same)),
        }

    def report(self) -> dict[str, Any]:
        """Every number but the advice, with intervals that resample problems."""
        shares = by_name(self.shares, mean_interval(self.columns, self.weights, LEVEL))
        groups = {
            str(g): {"flat": shares.pop(f"flat {g}"), "mixed": shares.pop(f"mixed {g}")}
            for g in self.sizes
        }
        problems, n = self.outcomes.optimal.shape
        ks, reward = ks_for(n), self.outcomes.reward
        curves = pass_at_k(n, self.outcomes.optimal.sum(axis=1), np.arange(1, n + 1))
        at_ks = curves[:, np.array(ks) - 1]
        ends = (float(reward.min()), float(reward.max()))
        [paid] = mean_interval(reward.mean(axis=1, keepdims=True), self.weights, LEVEL, ends)
        return {
            "problems": problems,
            **shares,
            "reward": asdict(paid),
            "groups": groups,
            "pass_at_k": by_name(ks, mean_interval(at_ks, self.weights, LEVEL)),
        }


def readiness_by_tier(
    outcomes: Outcomes, tiers: Sequence[str], group: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """The report and advice of each tier, and of all together where there are several.

    Args:
        tiers: of each problem.
        group: answers to a prompt in GRPO.
        seed: the recipe's; each tier's resampling is hashed from it.
    """
    names = list(dict.fromkeys(tiers))
    chosen = {name: [i for i, tier in enumerate(tiers) if tier == name] for name in names}
    if len(names) > 1:
        chosen[ALL_TIERS] = list(range(len(tiers)))
    measured = {}
    for name, problems in chosen.items():
        rng = np.random.default_rng(seed_of(seed, "probe", name))
        measured[name] = Readiness(outcomes.of(problems), group, rng, resamples)
    ready = [name for name in names if measured[name].advise()[0] == "ready"]
    return {
        name: {**one.report(), "advice": one.advice([tier for tier in ready if tier != name])}
        for name, one in measured.items()
    }
