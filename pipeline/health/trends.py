"""One signal of a training over its logging steps, in bounded memory, and its trends.

Single points of a training log are noise: levels are medians of a few rows, and trends are ranks.
A rise is tested by Mann-Kendall, which is Kendall's tau against time (Mann, Econometrica 13, 1945);
its size is the Theil-Sen slope with its interval (Sen, JASA 63, 1968). Both are scipy's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice
from statistics import fmean, median

from scipy.stats import kendalltau, theilslopes

#: Values of a signal that are kept as they are: the first ones and the last ones.
FIRST, RECENT = 5, 40
#: Most points that a whole signal is kept in; with more, neighbours are averaged.
BINS = 64
#: Rows of a level at the start, of a level now, for a trend, and to say that a signal stands still.
FEW, SOME, ENOUGH, MANY = 3, 5, 10, 20
#: Level of the Theil-Sen interval.
_LEVEL = 0.95


class Series:
    """The values of one signal in the order of their steps."""

    def __init__(self) -> None:
        self.count = 0
        self.steps: tuple[int, int] = (0, 0)  # of the first and the last value
        self._first: list[tuple[int, float]] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._bins: list[tuple[int, float]] = []
        self._rows = 1  # of a bin
        self._open: list[float] = []

    def add(self, step: int, value: float) -> None:
        """Take in the next value. One at the last step or before it replaces what was there."""
        if self._recent and step <= self._recent[-1][0]:
            self.rewind(step)
        self.steps = (self._first[0][0] if self._first else step, step)
        self.count += 1
        if len(self._first) < FIRST:
            self._first.append((step, value))
        self._recent.append((step, value))
        self._open.append(value)
        if len(self._open) < self._rows:
            return
        self._bins.append((step, fmean(self._open)))
        self._open = []
        if len(self._bins) == BINS:
            pairs = zip(self._bins[::2], self._bins[1::2], strict=True)
            self._bins = [(later, (a + b) / 2) for (_, a), (later, b) in pairs]
            self._rows *= 2

    def rewind(self, step: int) -> None:
        """Forget all values at ``step`` and after it, as where a training resumes before it."""
        for kept in (self._first, self._bins, self._recent):
            gone = 0
            while kept and kept[-1][0] >= step:
                kept.pop()
                gone += 1
        if self._recent:
            self.count -= gone
        else:  # only averages are left of values further back
            self.count = max(len(self._first), len(self._bins) * self._rows)
            self._recent.extend(self._bins[-RECENT:] or self._first)
        self._open = []

    def start(self, rows: int = FEW) -> float:
        """Median of the first values."""
        return median(value for _, value in self._first[:rows])

    def now(self, rows: int = SOME) -> float:
        """Median of the last values."""
        return median(self.last(rows))

    def last(self, rows: int = RECENT) -> list[float]:
        """The last values, oldest first; at most RECENT."""
        return [value for _, value in islice(reversed(self._recent), rows)][::-1]

    def ago(self, steps: int, rows: int) -> float | None:
        """Median of the first values that are at most ``steps`` older than the last one."""
        since = self.steps[1] - steps
        values = [value for step, value in self._recent if step >= since][:rows]
        return median(values) if len(values) == rows else None

    def at_start(self, rows: int = FEW) -> tuple[int, int]:
        """Steps of the first values: the first and the last of them."""
        steps = [step for step, _ in self._first[:rows]]
        return steps[0], steps[-1]

    def at_end(self, rows: int = FEW) -> tuple[int, int]:
        """Steps of the last values: the first and the last of them."""
        steps = [step for step, _ in islice(reversed(self._recent), rows)]
        return steps[-1], steps[0]

    def between(self, first: int, last: int) -> float:
        """Median of the values between two steps, or the value nearest to them."""
        values = [value for step, value in self._bins if first <= step <= last]
        if values:
            return median(values)
        middle = (first + last) / 2
        return min(self._bins or self._recent, key=lambda point: abs(point[0] - middle))[1]

    def whole(self) -> list[float]:
        """All values, in at most BINS averages of equally many neighbours."""
        return [value for _, value in self._bins]


def rises(values: Sequence[float]) -> float:
    """p of the one-sided Mann-Kendall test that values rise; 1 where all are equal."""
    return _kendall(values, "greater")


def falls(values: Sequence[float]) -> float:
    """p of the one-sided Mann-Kendall test that values fall; 1 where all are equal."""
    return _kendall(values, "less")


def _kendall(values: Sequence[float], alternative: str) -> float:
    p = float(kendalltau(range(len(values)), values, alternative=alternative).pvalue)
    return 1.0 if math.isnan(p) else p


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last third."""
    rows = max(1, len(values) // 3)
    return median(values[:rows]), median(values[-rows:])


def lowest(values: Sequence[float], rows: int) -> float:
    """The lowest median of so many neighbours."""
    return min(median(values[i : i + rows]) for i in range(len(values) - rows + 1))


def most_gained(values: Sequence[float]) -> float:
    """Upper end of the Theil-Sen interval of the gain from the first to the last value."""
    return float(theilslopes(values, alpha=_LEVEL).high_slope) * (len(values) - 1)


def constant(values: Sequence[float]) -> bool:
    """Whether values are the same but for rounding."""
    return max(values) - min(values) <= 1e-6 * (1 + abs(values[0]))
