"""Estimate, a mean over problems with its interval, and the intervals themselves.

Intervals resample problems, not answers: the question is what would change had other problems been
drawn. Answers to one problem resemble each other, so resampling them would promise too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from data.sections import LEVEL

Values = NDArray[np.float64]
#: See ``bootstrap_weights``; one set for all arms pairs them.
Weights = NDArray[np.float32]
#: The least and the greatest value that a mean can have: a number each, or one a column.
Bounds = tuple[float | Values, float | Values]

#: Means this close are equal but for rounding.
TIE = 1e-12
#: Resamples whose weights are held in double precision at once.
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` problems and its interval."""

    value: float
    low: float
    high: float
    n: int


def by_name(
    names: Iterable[object], estimates: Iterable[Estimate | None]
) -> dict[str, dict[str, float] | None]:
    """Estimates as JSON, by their names."""
    pairs = zip(names, estimates, strict=True)
    return {str(name): asdict(one) if one else None for name, one in pairs}


def with_interval(estimate: Mapping[str, float] | None, written: Callable[[float], str]) -> str:
    """``value [low, high]``, each number as ``written``; empty where there is no estimate."""
    if estimate is None:
        return ""
    value, low, high = (written(estimate[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def cell(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    """``27.1 [24.0, 30.2]`` in per cent, or points with ``sign='+'``."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return with_interval(estimate, lambda share: f"{round(100 * share, 1) + 0.0:{sign}.1f}")


def bootstrap_weights(num_problems: int, resamples: int, rng: np.random.Generator | int) -> Weights:
    """Random weights of the problems, and last of one that was not seen, [resamples, problems + 1].
    The same weights for all arms make their comparison paired. ``rng`` may be a seed."""
    size = (resamples, num_problems + 1)
    return np.random.default_rng(rng).standard_exponential(size, dtype=np.float32)


def resampled_means(values: Values, weights: Weights) -> Values:
    """Means of ``values`` [problems, columns] over the seen problems: [resamples, columns]."""
    return _weighted_sums(values, weights) / _weighted_sums(np.ones((len(values), 1)), weights)


def _weighted_sums(values: Values, weights: Weights) -> Values:
    """By blocks, since the weights are held in half the precision that sums need."""
    sums = np.empty((len(weights), values.shape[1]))
    for start in range(0, len(weights), _RESAMPLES_AT_ONCE):
        block = slice(start, start + _RESAMPLES_AT_ONCE)
        sums[block] = weights[block, :-1].astype(np.float64) @ values
    return sums


def mean_interval(
    values: Values, weights: Weights, level: float = LEVEL, bounds: Bounds = (0.0, 1.0)
) -> list[Estimate]:
    """Mean of each column of ``values`` [problems, columns] with its interval.

    The Bayesian bootstrap (Rubin 1981, Annals of Statistics 9:130) with one problem more, not seen,
    which lies at either of ``bounds`` in every other resample. Were it always at the bound in
    question, the limits would be Gaffke's (Learned-Miller and Thomas 2019, arXiv 1905.06208), and
    for a yes or no those of Clopper and Pearson, which cover more than ``level``; so they are the
    "mid-P" ones (Lancaster 1961, Journal of the American Statistical Association 56:223). They
    never shrink to nothing, and rise with every value, so more of a thing never counts as less of
    it. They are wide for differences that are all small: a problem unlike those may always come.
    """
    whole = np.ones((len(values), 1))
    return [e for e in ratio_interval(values, whole, weights, level, bounds) if e is not None]


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    weights: Weights,
    level: float = LEVEL,
    bounds: Bounds = (0.0, 1.0),
) -> list[Estimate | None]:
    """Mean of ``numerator`` over mean of ``denominator``, by column of [problems, columns], with
    the interval of ``mean_interval``: a problem is drawn with both its values, so the denominator
    varies too. The unseen problem counts like those that count, ``sum b^2 / sum b``. None where the
    denominator is 0 throughout.

    Args:
        bounds: of the ratio.
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    if a.ndim != 2 or b.ndim != 2 or not len(a) == len(b) == weights.shape[1] - 1:
        raise ValueError(f"values {a.shape} do not fit weights of {weights.shape[1] - 1} problems")
    total, tail = b.sum(axis=0), (1 - level) / 2
    sound = np.broadcast_to(total > TIE, a.shape[1])
    total = np.where(total > TIE, total, 1)
    observed = a.sum(axis=0) / total
    unseen = weights[:, -1:] * ((b**2).sum(axis=0) / total)
    there = np.where(np.arange(len(weights))[:, None] % 2, *bounds)
    below = _weighted_sums(b, weights) + unseen
    drawn = (_weighted_sums(a, weights) + unseen * there) / np.where(below > 0, below, 1)
    low, high = np.quantile(drawn, (tail, 1 - tail), axis=0)
    limits = zip(observed, np.minimum(low, observed), np.maximum(high, observed), strict=True)
    estimates = (Estimate(float(v), float(x), float(y), len(a)) for v, x, y in limits)
    return [estimate if fine else None for estimate, fine in zip(estimates, sound, strict=True)]


def crossed_interval(
    values: Values, weights: Weights, level: float = LEVEL, bounds: Bounds = (-1.0, 1.0)
) -> list[Estimate]:
    """Mean of ``values`` [training seeds, problems, columns] by column, with an interval for other
    problems and other training seeds at once. With one seed it is ``mean_interval``, which says
    nothing about the spread between training runs.

    Problems are resampled. Seeds are not: three of them have ten different resamples, and their
    bootstrap is far too narrow. They enter by Student's t with the variance between seeds, and the
    two parts are joined in quadrature on each side (MOVER; Zou and Donner 2008, Statistics in
    Medicine 27:1693). The interaction of seeds and problems spreads the seeds' means too, by the
    residual of the two-way table over the problems; it is in the problems' part already, so it is
    taken off, but for two seeds, which estimate it too badly and err on the wide side.
    """
    estimates = mean_interval(values.mean(axis=0), weights, level, bounds)
    seeds, problems = values.shape[:2]
    if seeds == 1:
        return estimates
    of_seed = values.mean(axis=1)
    variance = of_seed.var(axis=0, ddof=1)
    if seeds > 2:
        # Takes the deviations from the problems' means in place of the whole table: less memory.
        left = ((values - values.mean(axis=0)) ** 2).sum(axis=(0, 1)) / (seeds - 1)
        residual = (left - problems * variance) / max(problems - 1, 1)
        variance = np.maximum(0, variance - residual / problems)
    reach = student.ppf((1 + level) / 2, seeds - 1) * np.sqrt(variance / seeds)
    least, most = (np.broadcast_to(bound, len(estimates)) for bound in bounds)
    return [
        Estimate(
            e.value,
            float(max(lowest, e.value - np.hypot(e.value - e.low, r))),
            float(min(highest, e.value + np.hypot(e.high - e.value, r))),
            e.n,
        )
        for e, r, lowest, highest in zip(estimates, reach, least, most, strict=True)
    ]


def paired_difference(
    a: Values, b: Values, weights: Weights, level: float = LEVEL
) -> list[Estimate]:
    """Mean of ``a - b`` by column with its interval, both [problems, columns] on the same problems.

    Resampling a problem takes both arms' values with it, so what is hard for both cancels.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired values need one shape, not {a.shape} and {b.shape}")
    return mean_interval(a - b, weights, level, bounds=(-1.0, 1.0))
