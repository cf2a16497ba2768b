"""Counts of the test problems that every arm solved, and the choice of those to ask again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.problem import Problem
from data.rows import Row
from data.run import BASE
from eval.answers.roles import JudgedArm, guesses
from eval.stats.counts import Counts, by_seed, unsolved_by
from eval.stats.summary import tally


@dataclass(frozen=True)
class Solved:
    """The test problems in their order, and how often each arm solved each of them."""

    rows: Sequence[Row]
    counts: Mapping[str, Counts]

    def places(self, tiers: Sequence[str]) -> NDArray[np.intp]:
        return np.flatnonzero([row["tier"] in tiers for row in self.rows])

    def problems(self, tier: str) -> dict[str, Problem]:
        return {row["id"]: row["problem"] for row in self.rows if row["tier"] == tier}

    def guesses(self, tier: str) -> list[float]:
        """The chance of a blind guess at each of its problems."""
        return guesses(self.problems(tier).values())

    def on(self, tier: str, members: Sequence[str]) -> Counts:
        """Counts of arms that differ in nothing but the training seed."""
        here = self.places([tier])
        return by_seed([self.counts[member].of(here) for member in members])


def count_solved(
    verdicts: Iterable[Mapping[str, Any]], problems_by_id: Mapping[str, str]
) -> Counts:
    """An arm's optimal answers to problems, whose tiers are given."""
    counted = tally(verdicts, problems_by_id)
    return Counts(counted.samples, counted.optimal, formed=counted.readable)


def to_ask_again(cases: Sequence[JudgedArm], solved: Solved) -> dict[str, list[int]]:
    """By arm, the places of the problems that it is asked again.

    Everyone is asked what the bases left unsolved, to distinguish a skill from luck. The base and a
    judged arm are asked what either left unsolved, for expansion and shrinkage.
    """
    wanted: dict[str, set[int]] = {}
    for case in cases:
        here = solved.places(case.tiers)

        def unsolved(*arms: str, here: NDArray[np.intp] = here) -> set[int]:
            missed = unsolved_by([solved.counts[arm] for arm in arms])
            return set(here[missed[here]].tolist())

        for arm in case.everyone:
            wanted.setdefault(arm, set()).update(unsolved(*case.bases))
        for member in case.members:
            either = unsolved(BASE) | unsolved(member)
            wanted[member] |= either
            wanted[BASE] |= either
    return {arm: sorted(places) for arm, places in wanted.items()}
