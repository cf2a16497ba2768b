"""One signal of a training over its logging steps, and its trends.

Single points of a training log are noise: levels are medians of a few rows, and trends are ranks.
A rise is tested by Mann-Kendall, which is Kendall's tau against time (Mann, Econometrica 13, 1945);
its size is the Theil-Sen slope with its interval (Sen, JASA 63, 1968). Both are scipy's.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean, median

from scipy.stats import kendalltau, theilslopes

#: Rows of a level at the start, of a level now, for a trend, and to say that a signal stands still.
FEW, SOME, ENOUGH, MANY = 3, 5, 10, 20
#: Rows that are the recent ones.
RECENT = 40
#: A whole signal is looked at in fewer points than this; of more, neighbours are averaged.
BINS = 64
#: Level of the Theil-Sen interval.
_LEVEL = 0.95


class Series:
    """The values of one signal in the order of their steps."""

    def __init__(self) -> None:
        self._steps = array("q")
        self._values = array("d")

    @property
    def count(self) -> int:
        return len(self._values)

    @property
    def steps(self) -> tuple[int, int]:
        """Of the first and the last value."""
        return (self._steps[0], self._steps[-1]) if self._steps else (0, 0)

    def add(self, step: int, value: float) -> None:
        """Take in the next value. One at the last step or before it replaces what was there."""
        self.rewind(step)
        self._steps.append(step)
        self._values.append(value)

    def rewind(self, step: int) -> None:
        """Forget all values at ``step`` and after it, as where a training resumes before it."""
        while self._steps and self._steps[-1] >= step:
            self._steps.pop()
            self._values.pop()

    def start(self, rows: int = FEW) -> float:
        """Median of the first values."""
        return median(self._values[:rows])

    def now(self, rows: int = SOME) -> float:
        """Median of the last values."""
        return median(self._values[-rows:])

    def last(self, rows: int = RECENT) -> list[float]:
        """The last values, oldest first."""
        return self._values[-rows:].tolist()

    def ago(self, steps: int, rows: int) -> float | None:
        """Median of the first recent values that are at most ``steps`` older than the last one."""
        first = max(bisect_left(self._steps, self._steps[-1] - steps), self.count - RECENT)
        values = self._values[first : first + rows]
        return median(values) if len(values) == rows else None

    def at_start(self) -> tuple[int, int]:
        """Steps of the first FEW values: the first and the last of them."""
        return self._steps[0], self._steps[:FEW][-1]

    def at_end(self) -> tuple[int, int]:
        """Steps of the last FEW values: the first and the last of them."""
        return self._steps[-FEW:][0], self._steps[-1]

    def between(self, first: int, last: int) -> float:
        """Median of the whole signal between two steps, or the point nearest to them."""
        points = self._points()
        values = [value for step, value in points if first <= step <= last]
        middle = (first + last) / 2
        nearest = min(points, key=lambda point: abs(point[0] - middle))
        return median(values or [nearest[1]])

    def whole(self) -> list[float]:
        """All values, in fewer than BINS averages of equally many neighbours."""
        return [value for _, value in self._points()]

    def _points(self) -> list[tuple[int, float]]:
        """The averages of ``whole``, each at its last step."""
        width = 1
        while self.count // width >= BINS:
            width *= 2
        ends = range(width, self.count + 1, width)
        return [(self._steps[end - 1], fmean(self._values[end - width : end])) for end in ends]


def rises(values: Sequence[float]) -> float:
    """p of the one-sided Mann-Kendall test that values rise; 1 where all are equal."""
    return _kendall(values, "greater")


def falls(values: Sequence[float]) -> float:
    """p of the one-sided Mann-Kendall test that values fall; 1 where all are equal."""
    return _kendall(values, "less")


def _kendall(values: Sequence[float], alternative: str) -> float:
    if len(values) < 2:
        return 1.0
    p = float(kendalltau(range(len(values)), values, alternative=alternative).pvalue)
    return 1.0 if math.isnan(p) else p


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last third."""
    rows = max(1, len(values) // 3)
    return median(values[:rows]), median(values[-rows:])


def lowest(values: Sequence[float], rows: int) -> float:
    """The lowest median of so many neighbours."""
    return min(median(values[i : i + rows]) for i in range(len(values) - rows + 1))


def gained(values: Sequence[float], likeliest: bool = False) -> float:
    """The gain from the first to the last value by the Theil-Sen slope, or by the upper end of its
    interval."""
    slopes = theilslopes(values, alpha=_LEVEL)
    return float(slopes.slope if likeliest else slopes.high_slope) * (len(values) - 1)


def constant(values: Sequence[float]) -> bool:
    """Whether values are the same but for rounding."""
    return max(values) - min(values) <= 1e-6 * (1 + abs(values[0]))
