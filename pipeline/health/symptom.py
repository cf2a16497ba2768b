"""Symptom: one thing that can be wrong with a training, its words beside its test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.health.signals import GRPO, TRUTH, Signals, number


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
        advice: what to change, each ``raise``, ``lower`` or ``set`` with its `key` first, or free
            words. Items that cannot act, or oppose those of a worse finding, are left out.
        source: publication, report or measurement that it is based on.
        needs: signals, "a or b" for either, and in how many rows. With fewer it is silent.
        kinds: trainers that may have it.
        worst: its worst level; it is raised again when it gets there.
        trend: whether it tests a trend or the lack of one. Tested at every row, chance would raise
            it sooner or later, so it is tested only whenever the log has grown by a fifth.
        unless: symptoms that explain or exclude it: it is not said beside them.
        name: for programs and for ``monitor.stop``.
    """

    title: str
    cause: str
    advice: tuple[str, ...]
    source: str
    needs: Mapping[str, int]
    kinds: tuple[str, ...] = (GRPO,)
    worst: Level = Level.WARNING
    trend: bool = False
    unless: tuple[str, ...] = ()
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


#: Keys without effect where a generation is used for one optimizer step: the ratio is 1 there.
_CLIPPING = ("epsilon", "epsilon_high", "num_iterations")
#: Keys of our recipes alone, and the signal of a log of ours that has them already.
_OURS = {"redraws": "answers thrown away", "shape": "pay for breadth"}
#: From which value on advice to raise a key is taken already, and at which that to set it.
_HIGH = {"epsilon_high": 0.28, "beta": 0.04, "temperature": 1.0, "entropy_coef": 1e-6}
_SET = {"loss_type": "dapo", "mask_truncated_completions": True, "num_iterations": 1,
        "vllm_importance_sampling_correction": True, "use_vllm": False}  # fmt: skip
#: To what a norm may still be lowered.
_NORM = 0.2


def direction(item: str) -> tuple[str, str]:
    """Key and verb of an item of advice; "" where it names none."""
    verb, *rest = item.split()
    key = rest[0].strip("`") if rest and rest[0].startswith("`") else ""
    return key, verb if key else ""


def acts(item: str, s: Signals, settings: Mapping[str, Any]) -> bool:
    """Whether an item of advice can change anything in this training, as far as is known."""
    key, verb = direction(item)
    if key in _CLIPPING and not _clips(s, settings):
        return False
    if key in _OURS:
        ours = s.keys.get("truth") == TRUTH and not (key == "redraws" and settings.get("use_vllm"))
        return ours and not s[_OURS[key]].count
    value = number(settings.get(key))
    steps = number(settings.get("max_steps"))
    if key in ("max_steps", "num_train_epochs") and steps is not None:  # the first one rules
        return (steps > 0) == (key == "max_steps")
    if key.startswith("vllm_") and not settings.get("use_vllm", True):
        return False
    if verb == "set":
        return key not in settings or settings[key] != _SET.get(key)
    if verb == "raise":
        return value is None or value < _HIGH.get(key, math.inf)
    if key == "beta":
        return value != 0 if value is not None else s.keys.get("KL") != "kl_start"
    return key != "max_grad_norm" or value is None or value > _NORM


def _clips(s: Signals, settings: Mapping[str, Any]) -> bool:
    """Whether a generation is used for several optimizer steps, so that ratios may be clipped."""
    names = ("num_iterations", "steps_per_generation", "gradient_accumulation_steps")
    iterations, steps, accumulated = (number(settings.get(name)) for name in names)
    if iterations and steps and accumulated:
        return iterations * steps > accumulated
    clipped = s["clipped ratios"]
    return not clipped.count or any(clipped.whole())
