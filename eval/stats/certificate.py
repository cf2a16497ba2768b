"""How many right answers chance cannot explain."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom


def certificate(
    missed: ArrayLike, fresh: int, lift: float, luck: float, chance: ArrayLike = 0.0
) -> NDArray[np.int64]:
    """How many of ``fresh`` samples the tuned arm must get right, on a problem that the reference
    missed in all of ``missed``, for the two not to be one model, sharpened.

    Were the tuned arm's chance a try no more than ``1 - (1 - p)^lift (1 - g)``, the reference's p
    sharpened ``lift`` times over or else a blind guess, both things happen together with
    ``(1 - p)^missed P(Binomial(fresh, that) >= x)``. The x given is the least that keeps this at
    ``luck`` or below whatever p is, so on at most that share of problems chance gives a
    certificate. ``fresh + 1``, which nothing reaches, where none does.

    Args:
        missed: a number or [problems].
        chance: g, of a blind guess in one try, a number or [problems].

    Returns:
        x, shaped like the two together.
    """
    # Guesses rounded up and misses down, so that few differ and none gains by it.
    step = np.maximum(np.max(missed, initial=1) // 32, 1)
    pairs = np.broadcast_arrays(
        np.ceil(np.asarray(chance, float) * 500), np.asarray(missed) // step * step
    )
    shape = pairs[0].shape
    (rounded, least), of_problem = np.unique(
        np.stack([one.ravel() for one in pairs]), axis=1, return_inverse=True
    )
    misses = np.geomspace(1, luck, 500)  # (1 - p)^missed; for a greater p that alone is below luck
    p = 1 - misses ** (lift / np.maximum(least, 1)[:, None])
    tuned = 1 - (1 - p) * (1 - np.minimum(rounded / 500, 1)[:, None])
    low, high = np.zeros(len(rounded), np.int64), np.full(len(rounded), fresh + 1)
    while (low < high).any():  # bisection: low is not yet enough, or it is the answer
        x = (low + high) // 2
        enough = (misses * binom.sf(x[:, None] - 1, fresh, tuned)).max(axis=1) <= luck
        low, high = np.where(enough, low, x + 1), np.where(enough, x, high)
    return high[of_problem.ravel()].reshape(shape)
