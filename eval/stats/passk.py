"""pass@k: the chance to solve a problem within k tries, from counts of its samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from eval.stats.estimate import TIE, Values


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Values:
    """Unbiased estimate of solving each problem within k tries, from c successes in n samples.

    ``1 - C(n - c, k) / C(n, k) = 1 - prod over j < k of (n - c - j) / (n - j)``, the chance that k
    of the n samples, drawn without replacement, hold a success (Chen et al. 2021, arXiv 2107.03374,
    equation 1). The running product gives every k at once.

    Args:
        n: samples, one number or [problems].
        c: successes, [problems].
        k: tries, one number or [ks].

    Returns:
        [problems], or [problems, ks] where k is an array.

    Raises:
        ValueError: when a k is below 1 or above some n, or a c is below 0 or above its n.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(n), np.atleast_1d(c))
    ks = np.atleast_1d(k)
    if ks.size == 0 or n.size == 0:
        raise ValueError("pass@k needs at least one problem and one k")
    if ks.min() < 1 or ks.max() > n.min():
        raise ValueError(f"k must be 1 to n = {n.min()}, not {ks.min()} to {ks.max()}")
    if (c < 0).any() or (c > n).any():
        raise ValueError("successes must be 0 to n")
    # Problems with equal counts share one curve, and there are few different counts.
    _, first, of_problem = np.unique(
        n * (int(n.max()) + 1) + c, return_index=True, return_inverse=True
    )
    tries = np.arange(ks.max())
    samples, failures = n[first, None], (n - c)[first, None]
    all_fail = np.cumprod(np.maximum(failures - tries, 0) / (samples - tries), axis=1)
    curves = (1 - all_fail[:, ks - 1])[of_problem]
    return curves if np.ndim(k) else curves[:, 0]


def ks_for(n: int) -> tuple[int, ...]:
    """The k to report from n samples: 1, 2, 4, … up to n / 4, and n. Between n / 4 and n the
    estimate leans on ever fewer independent draws."""
    if n < 1:
        raise ValueError(f"there must be at least one sample, not {n}")
    powers = {2**i for i in range(n.bit_length()) if 2**i <= n / 4}
    return tuple(sorted(powers | {1, n}))


def solved_within(n: ArrayLike, c: ArrayLike, k: int) -> Values:
    """``pass_at_k`` for counts of any shape."""
    n, c = np.broadcast_arrays(n, c)
    return pass_at_k(n.ravel(), c.ravel(), k).reshape(c.shape)


def floor_at(chance: ArrayLike, ks: ArrayLike) -> Values:
    """Chance that a blind policy solves each problem within k tries, ``1 - (1 - p)^k``.

    Args:
        chance: p of each problem, [problems], as ``data.policies.random_maximal_success`` gives it.
        ks: one k or [ks].

    Returns:
        [problems], or [problems, ks].
    """
    p = np.asarray(chance, dtype=np.float64)
    failing = 1 - (p if np.ndim(ks) == 0 else p[:, None])
    return 1 - failing ** np.asarray(ks)


def best_of_k(right: ArrayLike, k: ArrayLike) -> Values:
    """Chance that the best ranked of k samples is right, the k drawn from n without replacement.

    The sample of rank r, from 0, is the best of them where the other k - 1 are among the n - 1 - r
    behind it: ``C(n - 1 - r, k - 1) / C(n, k)``.

    Args:
        right: whether each sample is, the best ranked first, [problems, n].
        k: samples to choose from, [ks].

    Returns:
        [problems, ks].
    """
    right, ks = np.asarray(right, dtype=np.float64), np.asarray(k)
    n = right.shape[1]
    behind = n - 1 - np.arange(n)
    return right @ (comb(behind[:, None], ks - 1) / comb(n, ks))


def overtaking_k(reference: Sequence[float], tuned: Sequence[float]) -> int | None:
    """The smallest k at which the reference's curve meets or passes the tuned one's, or None.

    Both hold pass@k for k = 1, 2, 3, … without gaps; where nobody succeeds nobody is met.
    """
    curve = np.asarray(reference)
    met = (curve >= np.asarray(tuned) - TIE) & (curve > TIE)
    return int(met.argmax()) + 1 if met.any() else None
