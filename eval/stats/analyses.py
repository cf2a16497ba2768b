"""What training did to a model, one question a function, each answer ready for JSON.

Counts are of one tier's problems, in one order for all arms, so that every comparison is paired;
``weights`` are their ``bootstrap_weights``. Shares are fractions of 1.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from eval.stats.counts import Counts, fresh_tries, solved_fresh, unsolved_by
from eval.stats.estimate import (
    TIE,
    Estimate,
    Values,
    Weights,
    bootstrap_weights,
    by_name,
    mean_interval,
    paired_difference,
    ratio_interval,
    resampled_means,
)
from eval.stats.passk import floor_at, ks_for, overtaking_k, pass_at_k

#: Accuracies of which the share of problems at or above is reported.
ACCURACIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def beside_base(
    base: Counts, tuned: Counts, weights: Weights, rng: np.random.Generator, level: float
) -> dict[str, object]:
    """What explains a conclusion on one training seed."""
    ks = np.arange(1, int(base.n.min()) + 1)
    reference, curve = pass_at_k(base.n, base.c, ks), pass_at_k(tuned.n, tuned.c, ks)
    return {
        "two_by_two": two_by_two(base.c > 0, tuned.c > 0),
        "crossing": crossing(reference, curve, weights, level),
        "expansion": expansion(base, tuned, weights, rng, level),
        "shrinkage": expansion(tuned, base, weights, rng, level),
    }


def spread(counts: Counts, guess: ArrayLike, weights: Weights, level: float) -> dict[str, object]:
    """How the problems fare in one arm: coverage, and pass@k with guessing (the chance of it in one
    try, [problems]) removed."""
    n, c = counts.n, counts.c
    ks = ks_for(int(n.min()))
    adjusted = floor_adjusted(pass_at_k(n, c, ks), floor_at(guess, ks), weights, level)
    return {
        "coverage": by_name(ACCURACIES, coverage(n, c, weights, level)),
        "floor_adjusted": by_name(ks, adjusted),
    }


def two_by_two(base_solved: ArrayLike, tuned_solved: ArrayLike) -> dict[str, float]:
    """Problems by who solves them, [problems] each, with exact McNemar.

    Under equality a problem that just one arm solves is as likely either's: ``p`` is the two-sided
    binomial test of ``only_tuned`` among both one-sided cells at 1/2 (McNemar 1947, Psychometrika
    12:153, exact form).
    """
    base, tuned = np.asarray(base_solved, bool), np.asarray(tuned_solved, bool)
    only_base, only_tuned = int((base & ~tuned).sum()), int((tuned & ~base).sum())
    discordant = only_base + only_tuned
    return {
        "both": int((base & tuned).sum()),
        "only_base": only_base,
        "only_tuned": only_tuned,
        "neither": int((~base & ~tuned).sum()),
        "p": float(binomtest(only_tuned, discordant).pvalue) if discordant else 1.0,
    }


def crossing(
    reference: Values, tuned: Values, weights: Weights, level: float
) -> dict[str, float | None]:
    """The crossing ``k`` (``overtaking_k``) with its percentile bootstrap interval.

    Limits are order statistics, so they are k that occurred. Near-equal curves cross wherever
    chance has it: the interval is then wide, as it should be. ``k``, ``low`` and ``high`` are None
    where that is beyond ``n``: the curves say nothing about larger k (right-censored). ``beyond``
    is the share of resamples that do not cross up to n; None where nobody succeeded at all.

    Args:
        reference, tuned: pass@k of every problem for k = 1, 2, … n, [problems, n].
    """
    n = reference.shape[1]
    if not (reference.any() or tuned.any()):
        return {"k": None, "low": None, "high": None, "n": n, "beyond": None}
    met = resampled_means(tuned - reference, weights) <= TIE
    ks = np.where(met.any(axis=1), met.argmax(axis=1) + 1, n + 1)
    tail = (1 - level) / 2
    low, high = (
        None if k > n else int(k) for k in np.quantile(ks, [tail, 1 - tail], method="inverted_cdf")
    )
    k = overtaking_k(reference.mean(axis=0), tuned.mean(axis=0))
    return {"k": k, "low": low, "high": high, "n": n, "beyond": float((ks > n).mean())}


def expansion(
    reference: Counts, tuned: Counts, weights: Weights, rng: np.random.Generator, level: float
) -> dict[str, object]:
    """What the tuned arm solves of what the reference left unsolved in its first samples, on
    confirmation samples; for shrinkage swap the arms. Counts of one training seed.

    Selecting unsolved problems and then counting the same samples would let luck choose. Fresh
    samples undo that, and the reference's own are the A/A control, base against base: with p its
    chance a try, a problem unsolved in n samples is solved in m fresh ones with ``(1 - p)^n (1 -
    (1 - p)^m)`` whoever has that p, so two equal models have a difference of 0.

    Returns:
        ``tuned`` and ``reference``: shares of the ``unsolved`` problems solved within ``tries``
        fresh tries, as many as both have; ``difference``: their paired difference; ``share``: that
        of all problems. None where nothing was unsolved. The first three resample the unsolved
        problems only, hence ``rng``.
    """
    unsolved = unsolved_by([reference])
    tries = fresh_tries([reference, tuned], unsolved)
    ours, theirs = (solved_fresh(arm, unsolved, tries) for arm in (tuned, reference))
    [share] = mean_interval((ours - theirs)[:, None], weights, level, (-1.0, 1.0))
    among: dict[str, object] = dict.fromkeys(("tuned", "reference", "difference"))
    if unsolved.any():
        here = bootstrap_weights(int(unsolved.sum()), len(weights), rng)
        a, b = ours[unsolved, None], theirs[unsolved, None]
        among = {
            "tuned": asdict(mean_interval(a, here, level)[0]),
            "reference": asdict(mean_interval(b, here, level)[0]),
            "difference": asdict(paired_difference(a, b, here, level)[0]),
        }
    counted = {"unsolved": int(unsolved.sum()), "problems": unsolved.size, "tries": tries}
    return {**counted, **among, "share": asdict(share)}


def coverage(n: ArrayLike, c: ArrayLike, weights: Weights, level: float) -> list[Estimate]:
    """Share of problems with an accuracy c / n of at least each of ``ACCURACIES``.

    It is of accuracies as observed: sampling noise spreads them, so compare arms only at equal n.
    """
    accuracy = np.divide(c, n)[:, None]
    at_least = (accuracy >= np.asarray(ACCURACIES) - TIE).astype(np.float64)
    return mean_interval(at_least, weights, level)


def floor_adjusted(
    curve: Values, floor: Values, weights: Weights, level: float
) -> list[Estimate | None]:
    """pass@k with guessing removed, by k: ``(pass - floor) / (1 - floor)`` of the means.

    Abbott's correction (1925, Journal of Economic Entomology 18:265): were answers either skilled
    or guesses, ``pass = floor + (1 - floor) skill``. 0 is what guessing does, 1 is everything;
    below 0 is worse than guessing. None where guessing solves more than half: little room is left
    there, and dividing by it would make much of nothing. So it lies between -1 and 1.

    Args:
        curve, floor: [problems, ks].
    """
    guessed = floor.mean(axis=0)
    least = -guessed / np.maximum(1 - guessed, TIE)
    adjusted = ratio_interval(curve - floor, 1 - floor, weights, level, (least, 1.0))
    return [one if share <= 0.5 else None for one, share in zip(adjusted, guessed, strict=True)]
