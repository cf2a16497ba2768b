"""Symptom: one thing that can be wrong with a training, its words beside its test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.health.signals import GRPO, Signals


class Level(StrEnum):
    """How bad a finding is, worst first: end the run, look at it, or just good to know."""

    STOP = "stop"
    WARNING = "warning"
    NOTE = "note"

    @property
    def badness(self) -> int:
        """0 for the worst level."""
        return list(Level).index(self)


#: Result of a test: how bad it is, and the numbers in words.
Seen = tuple[Level, str]
#: Returns None where the signals do not show the symptom, or where one is missing. Its defaults are
#: the thresholds; those that several tests share stand at the top of their file or in ``signals``.
Test = Callable[[Signals], Seen | None]


@dataclass(eq=False)
class Symptom:
    """One symptom; used as the decorator of its test, which gives it its name.

    Thresholds were set on logs of this project, healthy and sick, and on synthetic ones.

    Attributes:
        title: its name for users.
        cause: why it happens.
        advice: what to change.
        source: publication, report or measurement that it is based on.
        needs: signals, "a or b" for either, and in how many rows. With fewer it is silent.
        kinds: trainers that may have it.
        worst: its worst level; once raised at this level it is not tested again.
        trend: whether it tests a trend or the lack of one. Tested at every row, chance would raise
            it sooner or later, so it is tested only whenever the log has grown by a fifth.
        name: for programs and for ``monitor.stop``.
    """

    title: str
    cause: str
    advice: str
    source: str
    needs: Mapping[str, int]
    kinds: tuple[str, ...] = (GRPO,)
    worst: Level = Level.WARNING
    trend: bool = False
    name: str = field(init=False)
    _test: Test = field(init=False)

    def __call__(self, test: Test) -> Symptom:
        self.name = test.__name__.replace("_", "-")
        self._test = test
        return self

    def test(self, s: Signals) -> Seen | None:
        """Look for it in the signals, where there are as many as it needs."""
        lacking = any(_rows(s, need) < rows for need, rows in self.needs.items())
        return None if lacking else self._test(s)

    def missing(self, s: Signals) -> tuple[str, ...]:
        """What it needs and no row had."""
        return tuple(need for need in self.needs if not _rows(s, need))


def _rows(s: Signals, need: str) -> int:
    return max(s[name].count for name in need.split(" or "))
