"""Estimate, a mean over problems with its interval, and the intervals themselves.

Intervals resample problems, not answers: the question is what would change had other problems been
drawn. Answers to one problem resemble each other, so resampling them would promise too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from data.sections import LEVEL

Values = NDArray[np.float64]
#: Problems drawn with replacement, [resamples, problems]; one set for all arms pairs them.
Indices = NDArray[np.int32]
#: The least and the greatest value that a mean can have: a number each, or one a column.
Bounds = tuple[float | Values, float | Values]

#: Means this close are equal but for rounding.
TIE = 1e-12
#: Resamples whose problem counts are held in memory at once.
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` problems and its interval."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


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


def bootstrap_indices(num_problems: int, resamples: int, rng: np.random.Generator) -> Indices:
    """Problems drawn with replacement, [resamples, problems]. The same indices for all arms make
    their comparison paired."""
    return rng.integers(num_problems, size=(resamples, num_problems), dtype=np.int32)


def resampled_means(values: Values, indices: Indices) -> Values:
    """Mean over each resample's problems of ``values`` [problems, columns]: [resamples, columns].

    Counts how often each problem was drawn and multiplies, instead of gathering every row.
    """
    problems = len(values)
    means = np.empty((len(indices), values.shape[1]))
    for start in range(0, len(indices), _RESAMPLES_AT_ONCE):
        block = indices[start : start + _RESAMPLES_AT_ONCE]
        cells = block + np.arange(len(block))[:, None] * problems
        drawn = np.bincount(cells.ravel(), minlength=block.size).reshape(block.shape)
        means[start : start + len(block)] = drawn.astype(np.float64) @ values / problems
    return means


def mean_interval(
    values: Values, indices: Indices, level: float = LEVEL, bounds: Bounds = (0.0, 1.0)
) -> list[Estimate]:
    """Mean of each column of ``values`` [problems, columns] with its bootstrap interval.

    The interval is bias-corrected and accelerated (BCa; Efron 1987, JASA 82:171), which costs a
    mean nothing, as its acceleration is ``sum d^3 / (6 (sum d^2)^1.5)`` with d the deviations.

    Where every problem has the same value no resample differs, and an interval of width 0 would
    claim certainty. There the exact binomial limit is used: with n problems and confidence 1 - a, a
    share of problems unlike those seen is at most ``1 - (a / 2)^(1 / n)``, and each of them could
    lie at either of ``bounds``.
    """
    if values.ndim != 2 or len(values) != indices.shape[1]:
        raise ValueError(f"values {values.shape} do not fit indices of {indices.shape[1]} problems")
    observed = values.mean(axis=0)
    means = resampled_means(values, indices)
    return _bca(means, observed, values - observed, level, bounds)


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    indices: Indices,
    level: float = LEVEL,
    bounds: Bounds = (0.0, 1.0),
) -> list[Estimate | None]:
    """Mean of ``numerator`` over mean of ``denominator``, by column of [problems, columns], with
    its BCa interval: a problem is drawn with both its values, so the denominator varies too.

    The acceleration comes from the ratio's influence values, ``(a - ratio b) / mean b`` (Efron and
    Tibshirani 1993, section 22.5). None where some resample's denominator is 0.
    """
    a, b = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    below = resampled_means(b, indices)
    sound = (below > TIE).all(axis=0) & (b.mean(axis=0) > TIE)
    mean = np.where(sound, b.mean(axis=0), 1)
    observed = a.mean(axis=0) / mean
    ratios = resampled_means(a, indices) / np.where(sound, below, 1)
    estimates = _bca(ratios, observed, (a - observed * b) / mean, level, bounds)
    return [estimate if fine else None for estimate, fine in zip(estimates, sound, strict=True)]


def _bca(
    means: Values, observed: Values, deviations: Values, level: float, bounds: Bounds
) -> list[Estimate]:
    """BCa intervals from resampled statistics [resamples, columns], which are sorted in place, and
    the influence of each problem [problems, columns]; see ``mean_interval``."""
    problems, resamples, tail = len(deviations), len(means), (1 - level) / 2
    means.sort(axis=0)
    tie = np.abs(means - observed) <= TIE
    below = ((means < observed) & ~tie).mean(axis=0) + tie.mean(axis=0) / 2
    bias = ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
    spread = (deviations**2).sum(axis=0)
    constant = spread <= problems * TIE**2
    acceleration = (deviations**3).sum(axis=0) / (6 * np.where(constant, 1, spread) ** 1.5)
    shifted = bias + ndtri([[tail], [1 - tail]])
    low, high = _quantiles(means, ndtr(bias + shifted / (1 - acceleration * shifted)))

    unseen = 1 - tail ** (1 / problems)
    low = np.where(constant, observed - unseen * (observed - bounds[0]), low)
    high = np.where(constant, observed + unseen * (bounds[1] - observed), high)
    return [
        Estimate(float(v), float(a), float(b), problems)
        for v, a, b in zip(observed, low, high, strict=True)
    ]


def crossed_interval(
    values: Values, indices: Indices, level: float = LEVEL, bounds: Bounds = (-1.0, 1.0)
) -> list[Estimate]:
    """Mean of ``values`` [training seeds, problems, columns] by column, with an interval for other
    problems and other training seeds at once. With one seed it is ``mean_interval``, which says
    nothing about the spread between training runs.

    Problems are resampled. Seeds are not: three of them have ten different resamples, and their
    bootstrap is far too narrow. They enter by Student's t with the variance between seeds, and the
    two parts are joined in quadrature on each side (MOVER; Zou and Donner 2008, Statistics in
    Medicine 27:1693). What a seed and a problem have between them spreads the seeds' means too, by
    the residual of the two-way table over the problems; it is in the problems' part already, so it
    is taken off, but for two seeds, which estimate it too badly and err on the wide side.
    """
    estimates = mean_interval(values.mean(axis=0), indices, level, bounds)
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


def _quantiles(ordered: Values, shares: Values) -> Values:
    """Quantiles of each column, sorted already, at its own ``shares`` [quantiles, columns]."""
    place = shares * (len(ordered) - 1)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, len(ordered) - 1)
    columns = np.arange(ordered.shape[1])
    return ordered[lower, columns] + (place - lower) * (
        ordered[upper, columns] - ordered[lower, columns]
    )


def paired_difference(
    a: Values, b: Values, indices: Indices, level: float = LEVEL
) -> list[Estimate]:
    """Mean of ``a - b`` by column with its interval, both [problems, columns] on the same problems.

    Resampling a problem takes both arms' values with it, so what makes a problem hard for both
    cancels.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired values need one shape, not {a.shape} and {b.shape}")
    return mean_interval(a - b, indices, level, bounds=(-1.0, 1.0))
