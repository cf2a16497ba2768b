"""Counts: how often one arm solved each problem, and what follows for those left unsolved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.stats.estimate import Values
from eval.stats.passk import solved_within


class Counts:
    """One arm's optimal answers on one tier.

    Attributes:
        n: samples of each problem, [problems].
        c: optimal ones among them, [problems] or [training seeds, problems].
        fresh_n, fresh_c: confirmation samples, drawn later and with other seeds, and the optimal
            ones among them, shaped like ``c``; 0 where a problem was not asked again.
        formed: answers in form among all of them, [problems]; None where that was not counted.
    """

    def __init__(
        self,
        n: ArrayLike,
        c: ArrayLike,
        fresh_n: ArrayLike = 0,
        fresh_c: ArrayLike = 0,
        formed: NDArray[np.int64] | None = None,
    ) -> None:
        self.c = np.atleast_1d(np.asarray(c))
        self.n = np.broadcast_to(np.asarray(n), self.c.shape[-1:])
        self.fresh_n = np.broadcast_to(np.asarray(fresh_n), self.c.shape)
        self.fresh_c = np.broadcast_to(np.asarray(fresh_c), self.c.shape)
        self.formed = formed

    @property
    def problems(self) -> int:
        return self.c.shape[-1]

    def of(self, places: NDArray[np.intp]) -> Counts:
        """The same of some problems."""
        fresh = self.fresh_n[..., places], self.fresh_c[..., places]
        formed = None if self.formed is None else self.formed[places]
        return Counts(self.n[places], self.c[..., places], *fresh, formed)

    def with_fresh(self, again: Counts) -> Counts:
        """The same with the samples of ``again`` as confirmation samples."""
        known = self.formed is not None and again.formed is not None
        formed = self.formed + again.formed if known else None  # type: ignore[operator]
        return Counts(self.n, self.c, again.n, again.c, formed)


def by_seed(arms: Sequence[Counts]) -> Counts:
    """Arms that differ in nothing but the training seed as one; a single arm without that axis."""
    if len(arms) == 1:
        return arms[0]
    columns = ([arm.c, arm.fresh_n, arm.fresh_c] for arm in arms)
    return Counts(arms[0].n, *map(np.stack, zip(*columns, strict=True)))


def unsolved_by(references: Sequence[Counts]) -> NDArray[np.bool_]:
    """Which problems no reference solved in its first samples, [..., problems]."""
    return np.logical_and.reduce(np.broadcast_arrays(*(arm.c == 0 for arm in references)))


def fresh_tries(arms: Sequence[Counts], unsolved: NDArray[np.bool_]) -> int:
    """How many confirmation samples every arm has of every unsolved problem; 0 where none is.
    ValueError where an arm was not asked again."""
    if not unsolved.any():
        return 0
    asked = (np.broadcast_arrays(arm.fresh_n, unsolved) for arm in arms)
    least = min(int(fresh[here].min()) for fresh, here in asked)
    if least < 1:
        raise ValueError("a problem that the references left unsolved was not asked again")
    return least


def solved_fresh(arm: Counts, unsolved: NDArray[np.bool_], k: int) -> Values:
    """Chance of a success within k of an arm's confirmation samples where unsolved, 0 elsewhere."""
    shape = np.broadcast_shapes(unsolved.shape, arm.c.shape)
    if not unsolved.any():
        return np.zeros(shape)
    n, c, here = np.broadcast_arrays(arm.fresh_n, arm.fresh_c, unsolved)
    return np.where(here, solved_within(np.where(here, n, k), np.where(here, c, 0), k), 0.0)
