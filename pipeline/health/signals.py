"""The signals of a training so far, by one name each, whatever its log calls them.

A row is one logging step: a flat mapping as in ``log.jsonl`` or in the ``log_history`` of a
``trainer_state.json``. Values that are missing, null or not a number are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from pipeline.health.trends import ENOUGH, MANY, SOME, Series, rises, thirds

SFT, GRPO = "sft", "grpo"
#: One logging step as a log has it.
LogRow = Mapping[str, object]

#: Every signal by the names it has in logs: TRL's, those of older versions and of TRL's example
#: rewards, and ours. The first name that a log has counts, and replaces a later one seen before.
SIGNALS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "gradient norm": ("grad_norm",),
    "learning rate": ("learning_rate",),
    "reward": ("reward",),
    "reward spread": ("reward_std",),
    "truth": (
        "truth/optimal",
        "rewards/optimal/mean",
        "rewards/accuracy_reward/mean",
        "rewards/accuracy_reward",
    ),
    "form": (
        "truth/feasible",
        "rewards/validity/mean",
        "rewards/think_format_reward/mean",
        "rewards/format_reward/mean",
        "rewards/format_reward",
    ),
    "format": ("rewards/format/mean",),  # ours: less than the absence of any violation
    "KL": ("kl_start", "kl"),
    "entropy": ("entropy", "val/entropy"),  # Unsloth's own loss on a GPU logs no entropy
    "answers cut off": ("completions/clipped_ratio",),
    "flat groups": ("frac_reward_zero_std",),
    "duplicates": ("completions/duplicates",),
    "answer length": ("completions/mean_length", "completion_length"),
    "val truth": ("val/optimal", "eval_rewards/optimal/mean", "eval_rewards/accuracy_reward/mean"),
    "val loss": ("val/loss", "eval_loss"),
}

#: Fewest training steps to say that a signal stands still.
STEPS = 100
#: One-sided p of a trend that counts, and of one beyond doubt.
SURE, FIRM = 0.1, 0.02
#: Share of right answers from which on there is little left to learn.
SOLVED = 0.9
#: Spread of the rewards in a group that is only rounding: single precision on a scale of 100.
NO_SPREAD = 1e-5

#: No step and no signal of a training is larger.
_MOST_STEPS, _MOST = 2**53, 1e100


def number(value: object) -> float | None:
    """A finite number whose sums are finite too, or None."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        value = float(value)
    except OverflowError:  # an integer beyond any float
        return None
    return value if abs(value) <= _MOST else None


class Signals:
    """The signals of one training so far.

    Attributes:
        rows: how many rows had signals.
        steps: of the first and the last row.
        lost_loss, lost_norm: rows up to now, without a break, whose loss or gradient norm is not
            finite.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {name: Series() for name in SIGNALS}
        self.rows = 0
        self.steps: tuple[int, int] = (0, 0)
        self.lost_loss = 0
        self.lost_norm = 0
        self._keys: dict[str, str] = {}

    def __getitem__(self, name: str) -> Series:
        return self.series[name]

    def add(self, row: LogRow) -> bool:
        """Take in a row; returns whether it has any signal. A row whose step lies before the last
        one's is of a training that resumed: values from there on are forgotten."""
        values = self._values(row)
        lost_loss, lost_norm = self._lost(row, values)
        if values.get("flat groups") == 1 or values.get("reward spread", 1.0) <= NO_SPREAD:
            # The norm is that of the KL at most, and says nothing of a usual one.
            values.pop("gradient norm", None)
        if not values and not lost_loss and not lost_norm:
            return False
        step, last = number(row.get("step")), self.steps[1]
        step = last + 1 if step is None or abs(step) > _MOST_STEPS else int(step)
        if self.rows and step < last:
            for series in self.series.values():
                series.rewind(step)
        self.steps = (min(self.steps[0], step) if self.rows else step, step)
        self.rows += 1
        for name, value in values.items():
            self[name].add(step, value)
        if "loss" in values or lost_loss:
            self.lost_loss = self.lost_loss + 1 if lost_loss else 0
        if "gradient norm" in values or lost_norm:
            self.lost_norm = self.lost_norm + 1 if lost_norm else 0
        return True

    def _values(self, row: LogRow) -> dict[str, float]:
        """The numbers of a row by the names of signals."""
        values = {}
        for name, keys in SIGNALS.items():
            known = self._keys.get(name)
            for key in keys[: keys.index(known) + 1] if known else keys:
                if (value := number(row.get(key))) is not None:
                    if key != known:  # a better name, first seen now
                        self._keys[name], self.series[name] = key, Series()
                    values[name] = value
                    break
        return values

    def _lost(self, row: LogRow, values: Mapping[str, float]) -> tuple[bool, bool]:
        """Whether loss and gradient norm are there and not finite.

        Our logs write null for such a number; other tables may write it for a missing one. It
        counts in a row of training, which has a learning rate, and for the norm after a first one.
        """
        trained = "learning rate" in values

        def gone(key: str, null: bool) -> bool:
            value = row.get(key, 0.0)
            return null if value is None else isinstance(value, float) and not math.isfinite(value)

        normed = trained and self["gradient norm"].count > 0
        return gone("loss", trained), gone("grad_norm", normed)

    def long(self, name: str) -> bool:
        """Whether a signal was watched for long enough to say that it stands still."""
        series = self[name]
        return series.count >= MANY and series.steps[1] - series.steps[0] >= STEPS

    def learns(self, p: float = SURE) -> bool:
        """Whether reward or truth rises; by chance with probability ``p`` at most."""
        for name in ("reward", "truth"):
            values = self[name].whole()
            if len(values) >= ENOUGH:
                early, late = thirds(values)
                if late > early and rises(values) <= p:
                    return True
        return False

    def solved(self) -> bool:
        """Whether there is little left to learn."""
        return self["truth"].count >= SOME and self["truth"].now() >= SOLVED
