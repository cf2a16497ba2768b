"""Whether GRPO has anything to work with: what groups of answers would look like, and advice.

GRPO learns from differences within a group of answers to one prompt: a group in which all are paid
alike teaches nothing. Pure functions on what was sampled; a group of g is judged from n >= g
samples of its prompt, without bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.common.seeds import seed_of
from data.sections import LEVEL, RESAMPLES
from eval.stats.analyses import crossing
from eval.stats.estimate import bootstrap_indices, mean_interval, resampled_means
from eval.stats.passk import ks_for, pass_at_k

#: What is reported of all tiers together, as the training data mixes them.
ALL = "all"
#: Resamples in which the advice is given again.
_SECOND_OPINIONS = 2000
#: Rewards this close are equal but for rounding; TRL takes them so too.
_DECIMALS = 8

#: All thresholds of the advice, shares of answers or of groups.
THRESHOLDS = {
    "readable": 0.5,  # answers with a schedule, at least
    "truncated": 0.2,  # answers cut off, at most
    "solved": 0.5,  # groups with nothing but optimal answers, at most
    "flat": 0.5,  # groups in which all rewards are equal, at most
    "mixed": 0.25,  # groups with optimal and other answers, at least
    "valid": 0.5,  # answers that break no rule, at least
}


@dataclass(frozen=True)
class Outcomes:
    """What was sampled, [problems, samples] each; the rewards are GRPO's totals."""

    optimal: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    readable: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    reward: NDArray[np.float64]

    def of(self, problems: ArrayLike) -> Outcomes:
        """The same of some problems."""
        return Outcomes(*(values[problems] for values in vars(self).values()))


@dataclass(frozen=True)
class Seen:
    """What the advice looks at: shares by their names in THRESHOLDS, those of ``flat`` and
    ``mixed`` groups by size, and the tiers that are ready."""

    shares: Mapping[str, float]
    flat: Mapping[int, float]
    mixed: Mapping[int, float]
    group: int
    ready_tiers: Sequence[str] = ()

    def teaches(self, group: int) -> bool:
        """Whether groups of a size differ enough, in reward and in success."""
        return self.flat[group] <= THRESHOLDS["flat"] and self.mixed[group] >= THRESHOLDS["mixed"]

    @property
    def large_enough(self) -> int | None:
        """The smallest larger group that teaches, of those that the samples can tell of."""
        return next((g for g in sorted(self.flat) if g > self.group and self.teaches(g)), None)


#: (advice, when, the test): the first that holds decides.
RULE: tuple[tuple[str, str, Callable[[Seen], Any]], ...] = (
    (
        "more SFT",
        "fewer than {readable} of the answers can be read: the form is not there yet",
        lambda seen: seen.shares["readable"] < THRESHOLDS["readable"],
    ),
    (
        "longer answers",
        "more than {truncated} of the answers are cut off: raise grpo.max_completion_length",
        lambda seen: seen.shares["truncated"] > THRESHOLDS["truncated"],
    ),
    (
        "harder tier",
        "more than {solved} of the groups are optimal throughout: little is left to learn",
        lambda seen: seen.shares["solved"] > THRESHOLDS["solved"],
    ),
    (
        "ready",
        "at most {flat} of the groups have equal rewards, and at least {mixed} have both "
        "optimal and other answers",
        lambda seen: seen.teaches(seen.group),
    ),
    (
        "larger group",
        "a larger group, within the samples drawn, would be ready",
        lambda seen: seen.large_enough,
    ),
    (
        "more SFT",
        "fewer than {valid} of the answers break no rule",
        lambda seen: seen.shares["valid"] < THRESHOLDS["valid"],
    ),
    (
        "easier tier",
        "another tier of the training data is ready: train on it first",
        lambda seen: seen.ready_tiers,
    ),
    (
        "bigger base",
        "none of these: the answers are well formed, and optimal ones too rare to find",
        lambda seen: True,
    ),
)


def in_words(when: str) -> str:
    """A sentence of RULE with its thresholds."""
    return when.format(**{name: f"{100 * share:.0f} %" for name, share in THRESHOLDS.items()})


def advise(seen: Seen) -> tuple[str, str]:
    """(advice, why) by RULE."""
    return next((advice, in_words(when)) for advice, when, test in RULE if test(seen))


def alike(classes: ArrayLike, groups: Sequence[int]) -> NDArray[np.float64]:
    """Chance that g of a problem's n samples, drawn without replacement, are all of one class.

    ``sum over classes of C(m, g) / C(n, g)`` with m of the samples in a class: an unbiased estimate
    of the chance that a new group of g answers is (a U-statistic, as ``pass_at_k`` is).

    Args:
        classes: samples in each class, [problems, classes], each row adding up to n >= g.
        groups: the g.

    Returns:
        [problems, groups].
    """
    counts = np.asarray(classes)
    n = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    within = 1 - pass_at_k(n.ravel(), (n - counts).ravel(), groups)
    return within.reshape(*counts.shape, len(groups)).sum(axis=1)


def reward_classes(reward: NDArray[np.float64]) -> NDArray[np.int64]:
    """How often each problem's samples have each of its rewards, [problems, most distinct], padded
    with 0."""
    counts = [np.unique(row, return_counts=True)[1] for row in np.round(reward, _DECIMALS)]
    padded = np.zeros((len(counts), max(map(len, counts))), np.int64)
    for row, found in zip(padded, counts, strict=True):
        row[: len(found)] = found
    return padded


def group_sizes(group: int, samples: int) -> list[int]:
    """The recipe's group, and powers of two from 2 to the number of samples."""
    powers = {2**i for i in range(1, samples.bit_length()) if 2**i <= samples}
    return sorted(powers | {group})


class Measured:
    """Some problems' outcomes as what the report and the advice are made of.

    Attributes:
        columns: by problem, the shares named in ``names``, then flat and mixed groups by size.
        curves: pass@k for k = 1, 2, … n, [problems, n].
    """

    names = ("readable", "valid", "truncated", "solved", "unsolved")

    def __init__(
        self, outcomes: Outcomes, group: int, rng: np.random.Generator, resamples: int = RESAMPLES
    ) -> None:
        self.problems, n = outcomes.optimal.shape
        self.group, self.sizes, self.ks = group, group_sizes(group, n), np.array(ks_for(n))
        self.reward = outcomes.reward.mean(axis=1, keepdims=True)
        self.bounds = float(outcomes.reward.min()), float(outcomes.reward.max())
        c = outcomes.optimal.sum(axis=1)
        self.curves = pass_at_k(n, c, np.arange(1, n + 1))
        solved = alike(np.stack([c, n - c], axis=1), self.sizes)
        self.columns = np.column_stack(
            [
                outcomes.readable.mean(axis=1),
                outcomes.valid.mean(axis=1),
                outcomes.truncated.mean(axis=1),
                1 - pass_at_k(n, n - c, group),
                1 - pass_at_k(n, c, group),
                alike(reward_classes(outcomes.reward), self.sizes),
                1 - solved,
            ]
        )
        self.indices = bootstrap_indices(self.problems, resamples, rng)

    def seen(self, means: NDArray[np.float64] | None = None, ready: Sequence[str] = ()) -> Seen:
        """What the advice looks at, from the means of ``columns``, or of a resample's."""
        values = (self.columns.mean(axis=0) if means is None else means).tolist()
        flat, mixed = len(self.names), len(self.names) + len(self.sizes)
        return Seen(
            dict(zip(self.names, values[:flat], strict=True)),
            dict(zip(self.sizes, values[flat:mixed], strict=True)),
            dict(zip(self.sizes, values[mixed:], strict=True)),
            self.group,
            ready,
        )

    def advice(self, ready: Sequence[str]) -> dict[str, Any]:
        """The advice, why, and the share of resamples in which it is the same."""
        seen = self.seen(ready=ready)
        advice, why = advise(seen)
        others = resampled_means(self.columns, self.indices[:_SECOND_OPINIONS])
        same = [advise(self.seen(means, ready))[0] == advice for means in others]
        return {
            "advice": advice,
            "because": why,
            "group": seen.large_enough if advice == "larger group" else None,
            "tiers": list(ready) if advice == "easier tier" else None,
            "firmness": float(np.mean(same)),
        }

    def report(self) -> dict[str, Any]:
        """Every number but the advice, with intervals that resample problems."""

        def estimates(values: NDArray[np.float64], **given: Any) -> list[dict[str, Any]]:
            return [e.to_json() for e in mean_interval(values, self.indices, LEVEL, **given)]

        found = estimates(self.columns)
        shares = {name: found.pop(0) for name in self.names}
        flat, mixed = found[: len(self.sizes)], found[len(self.sizes) :]
        half = np.full_like(self.curves, 0.5)
        return {
            "problems": self.problems,
            **shares,
            "reward": estimates(self.reward, bounds=self.bounds)[0],
            "groups": {
                str(size): {"flat": f, "mixed": m}
                for size, f, m in zip(self.sizes, flat, mixed, strict=True)
            },
            "pass_at_k": dict(
                zip(map(str, self.ks.tolist()), estimates(self.curves[:, self.ks - 1]), strict=True)
            ),
            # Where pass@k meets one half: the tries in which half of the problems are solved.
            "half_solved": asdict(crossing(self.curves, half, self.indices, LEVEL)),
        }


def summarise(
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
        chosen[ALL] = list(range(len(tiers)))
    measured = {
        name: Measured(
            outcomes.of(problems),
            group,
            np.random.default_rng(seed_of(seed, "probe", name)),
            resamples,
        )
        for name, problems in chosen.items()
    }
    ready = [name for name in names if advise(measured[name].seen())[0] == "ready"]
    return {
        name: {
            **found.report(),
            "advice": found.advice([tier for tier in ready if tier != name]),
        }
        for name, found in measured.items()
    }
