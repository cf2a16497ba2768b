"""The signals of a training so far, by one name each, whatever its log calls them.

A row is one logging step: a flat mapping as in ``log.jsonl`` or in the ``log_history`` of a
``trainer_state.json``. Values that are missing, null or not a number are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from pipeline.health.trends import ENOUGH, MANY, SOME, Series, gained, rises, thirds

SFT, GRPO = "sft", "grpo"
#: One logging step as a log has it.
LogRow = dict[str, Any]

#: Share of right answers, in training and on val, and of well-formed ones, as our logs name them.
TRUTH, VAL_TRUTH, FORM = "truth/optimal", "val/optimal", "truth/feasible"
#: Every signal by the names it has in logs: ours, TRL's of all versions and of its example rewards,
#: ms-swift's, LLaMA-Factory's, verl's, OpenRLHF's, and those of a notebook's table. The first name
#: that a log has counts, and replaces a later one seen before.
SIGNALS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss", "Training_Loss", "actor/loss", "actor/pg_loss", "policy_loss"),
    "gradient norm": ("grad_norm", "actor/grad_norm", "actor_grad_norm"),
    "learning rate": ("learning_rate", "lr", "actor/lr", "actor_lr"),
    "reward": ("reward", "critic/score/mean", "critic/rewards/mean", "reward/mean"),
    "reward spread": ("reward_std", "reward/std"),
    "truth": (
        TRUTH, "rewards/optimal/mean", "rewards/accuracy_reward/mean", "rewards/accuracy_reward",
    ),
    "form": (
        FORM, "rewards/validity/mean", "rewards/think_format_reward/mean",
        "rewards/format_reward/mean", "rewards/format_reward",
    ),
    "format": ("rewards/format/mean",),  # ours: less than the absence of any violation
    "KL": ("kl_start", "kl", "actor/kl_loss"),
    "entropy": (  # Unsloth's own loss on a GPU logs no entropy
        "entropy", "val/entropy", "entropy/mean", "actor/entropy", "actor/entropy_loss",
        "entropy_loss",
    ),
    "answers cut off": (
        "completions/clipped_ratio", "response_length/clip_ratio", "response_clip_ratio",
    ),
    "flat groups": ("frac_reward_zero_std",),
    "duplicates": ("completions/duplicates",),
    "answer length": (
        "completions/mean_length", "completion_length", "response_length/mean", "response_length",
    ),
    "reasoning": ("reasoning/traced",),  # ours: shares of the answers that make claims,
    "true reasoning": ("reasoning/sound",),  # and only true ones
    "clipped ratios": ("clip_ratio/region_mean", "clip_ratio", "actor/pg_clipfrac"),
    "answers thrown away": ("sampling/thrown_away",),  # ours
    "pay for breadth": ("rewards/passk/mean", "rewards/rare/mean"),  # ours
    "distance of the sampler": ("sampling/sampling_logp_difference/mean",),
    "weight of the samples": ("sampling/importance_sampling_ratio/mean",),
    "surplus of the answers": ("sampling/surplus",),
    "limit of the surplus": ("sampling/surplus_limit",),
    "val truth": (VAL_TRUTH, "eval_rewards/optimal/mean", "eval_rewards/accuracy_reward/mean"),
    "val loss": ("val/loss", "eval_loss", "Validation_Loss"),
}  # fmt: skip

#: Fewest training steps to say that a signal stands still.
STEPS = 100
#: One-sided p of a trend that counts, and of one beyond doubt.
SURE, FIRM = 0.1, 0.02
#: Times by which the probabilities differ for a symptom that was seen before.
_HELD = 5
#: Share of right answers from which on there is little left to learn.
SOLVED = 0.9
#: Spread of the rewards in a group that is only rounding: single precision on a scale of 100.
NO_SPREAD = 1e-5

#: No step and no signal of a training is larger.
_MOST_STEPS, _MOST = 2**53, 1e100


def number(value: object) -> float | None:
    """A finite number whose sums are finite too, perhaps as text, or None."""
    read = _read(value)
    return read if read is not None and abs(read) <= _MOST else None


def is_lost(value: object) -> bool:
    """Whether it says NaN or infinity, perhaps as text."""
    read = _read(value)
    return read is not None and not math.isfinite(read)


def _read(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (Real, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # no number; an integer beyond any float
        return None


class Signals:
    """The signals of one training so far.

    Attributes:
        rows: how many rows had signals.
        steps: of the first and the last row.
        lost: rows up to now, without a break, in which loss, gradient norm, KL or loss on val is
            not finite.
        told: those of them that are surely measured: finite before, or NaN in so many letters.
            A null may be a column left empty.
        keys: by signal, the name it has in this log.
        held: whether a symptom is tested that was seen before. Chance may raise it no more easily,
            but to be refuted it must be improbable itself.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {name: Series() for name in SIGNALS}
        self.rows = 0
        self.steps: tuple[int, int] = (0, 0)
        self.lost = dict.fromkeys(("loss", "gradient norm", "KL", "val loss"), 0)
        self.told: set[str] = set()
        self.keys: dict[str, str] = {}
        self._val_apart = False  # whether rows of training have no key of the loss on val
        self.held = False

    def __getitem__(self, name: str) -> Series:
        return self.series[name]

    def add(self, row: LogRow) -> bool:
        """Take in a row; returns whether it has any signal. A row whose step lies before the last
        one's is of a training that resumed: values from there on are forgotten."""
        values = self._values(row)
        lost = {name for name in self.lost if name not in values and self._lost(name, row, values)}
        measured = lost | values.keys()
        self._val_apart |= "loss" in values and not row.keys() & set(SIGNALS["val loss"])
        if values.get("flat groups") == 1 or values.get("reward spread", 1.0) <= NO_SPREAD:
            # The norm is that of the KL at most, and says nothing of a usual one.
            values.pop("gradient norm", None)
        if not values and not lost:
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
        for name in self.lost.keys() & measured:
            self.lost[name] = self.lost[name] + 1 if name in lost else 0
            if name not in lost:
                self.told.add(name)
        return True

    def _values(self, row: LogRow) -> dict[str, float]:
        """The numbers of a row by the names of signals."""
        values = {}
        for name, keys in SIGNALS.items():
            known = self.keys.get(name)
            for key in keys[: keys.index(known) + 1] if known else keys:
                if (value := number(row.get(key))) is not None:
                    if key != known:  # a better name, first seen now
                        self.keys[name], self.series[name] = key, Series()
                    values[name] = value
                    break
        return values

    def _lost(self, name: str, row: LogRow, values: Mapping[str, float]) -> bool:
        """Whether a number is there and not finite.

        Our logs write null for it; other tables may write null, and pandas NaN, for one that is
        missing. It counts in a row of training; one on val where other rows do without.
        """
        there = [row[key] for key in SIGNALS[name] if key in row]
        nan = any(map(is_lost, there))
        if not nan and (not there or there[0] is not None):
            return False
        if name == "val loss":
            return self._val_apart or (nan and "loss" not in values)
        rates = [row[key] for key in SIGNALS["learning rate"] if key in row]
        trained = "learning rate" in values or (
            nan and not rates and not any(key.startswith("eval") for key in row)
        )
        if trained and (nan or name == "loss"):
            self.told.add(name)
        return trained

    def long(self, name: str) -> bool:
        """Whether a signal was watched for long enough to say that it stands still."""
        series = self[name]
        return series.count >= MANY and series.steps[1] - series.steps[0] >= STEPS

    def learns(self, p: float = SURE) -> bool:
        """Whether reward or truth rises; by chance with probability ``p`` at most."""
        p = p / _HELD if self.held else p
        for name in ("reward", "truth"):
            values = self[name].whole()
            if len(values) >= ENOUGH:
                early, late = thirds(values)
                if late > early and rises(values) <= p:
                    return True
        return False

    def likely(self, p: float) -> float:
        """The p up to which a trend speaks for a symptom; a larger one where it was seen before."""
        return min(0.5, p * _HELD) if self.held else p

    def most_gained(self, values: Sequence[float]) -> float:
        """The most that values may have gained; where a symptom was seen before, the likeliest."""
        return gained(values, likeliest=self.held)

    def solved(self) -> bool:
        """Whether there is little left to learn."""
        return self["truth"].count >= SOME and self["truth"].now() >= SOLVED
