"""Diagnosis of a training from its log: rows of signals in, findings out. Pure.

A row is one logging step: a flat dict as in ``log.jsonl`` or in the ``log_history`` of a
``trainer_state.json``, with signals by the names of ``pipeline.health.signals.SIGNALS``. What a row does
not have, or has as null or as no number, makes the rules that need it silent. ``Watch`` takes the
rows one by one, as they come; ``diagnose`` takes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from pipeline.health.signals import GRPO, NO_SPREAD, SFT, SIGNALS, THRESHOLDS, Signals, Thresholds
from pipeline.health.symptoms import RULES, Level, Rule
from pipeline.health.trends import Series

#: Steps of a log are counted in whole numbers below this.
_MOST_STEPS = 2**53
#: Rows up to which every row is judged; of more, every so many, since little is new in each.
_LONG, _STRIDE = 2000, 16
#: What a training's log is called, and in the row at which it was ended since a number was none:
#: why, in words.
LOST = "lost"
#: No signal of a training is larger.
_MOST = 1e100
_WORST_FIRST = tuple(Level)


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: its name, for a program.
        level: stop, warning or note.
        step: of the training, at which it was first raised.
        title: what users call it.
        evidence: the numbers, in words.
        cause, advice, source: why, what to change, and who says so.
    """

    rule: str
    level: Level
    step: int
    title: str
    evidence: str
    cause: str
    advice: str
    source: str


class Watch:
    """Watches one training: rows in by ``update``, findings out.

    Each rule is raised once, and once more when it gets worse. A row whose step lies before the
    last one's is of a training that went on from a checkpoint: what was seen from there on is
    forgotten, what was raised stays.

    Raises:
        UserError: when a threshold makes no sense.
    """

    def __init__(self, kind: str, thresholds: Thresholds = THRESHOLDS) -> None:
        if kind not in (SFT, GRPO):
            raise ValueError(f"unknown kind of training {kind!r}")
        thresholds.validate()
        self.kind = kind
        self.signals = Signals(thresholds)
        self._rules = [rule for rule in RULES if kind in rule.kinds]
        self._raised: dict[str, Finding] = {}
        self._keys: dict[str, str] = {}
        self._due = thresholds.rows  # the row at which trends are looked at

    @property
    def findings(self) -> list[Finding]:
        """What was raised so far, worst first: each at its worst, since its first step."""
        return sorted(
            self._raised.values(), key=lambda f: (_WORST_FIRST.index(f.level), f.step, f.rule)
        )

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Rules that are silent for lack of signals, and the signals."""
        lacking = {
            rule.name: tuple(need for need in rule.needs if not self._has(need))
            for rule in self._rules
        }
        return {name: signals for name, signals in lacking.items() if signals}

    def _has(self, need: str) -> bool:
        return any(self.signals[name].count for name in need.split(" or "))

    @property
    def rules(self) -> list[Rule]:
        """The rules of this kind of training."""
        return list(self._rules)

    def update(self, row: Mapping[str, Any]) -> list[Finding]:
        """Take in a row; returns what it raises."""
        if isinstance(why := row.get(LOST), str):  # its signals alone do not tell
            (rule,) = (rule for rule in self._rules if rule.name == "nonfinite")
            step = number(row.get("step"))
            return [self._raise(rule, rule.worst, int(step or self.signals.steps[1]), why)]
        if not self._take_in(row):
            return []
        s = self.signals
        if s.row > _LONG and s.row % _STRIDE and not (s.lost_loss or s.lost_norm):
            return []
        fresh = []
        trends = s.row >= self._due
        if trends:
            self._due = math.ceil(s.row * s.thresholds.again)
        for rule in self._rules:
            if rule.trend and not trends:
                continue
            found = self._raised.get(rule.name)
            if found and found.level == rule.worst:
                continue
            seen = rule.test(s)
            if seen is None:
                continue
            level, evidence = seen
            if found and _WORST_FIRST.index(level) >= _WORST_FIRST.index(found.level):
                continue
            step = found.step if found else s.steps[1]
            fresh.append(self._raise(rule, level, step, evidence))
        return fresh

    def _raise(self, rule: Rule, level: Level, step: int, evidence: str) -> Finding:
        finding = Finding(
            rule.name, level, step, rule.title, evidence, rule.cause, rule.advice, rule.source
        )
        self._raised[rule.name] = finding
        return finding

    def _take_in(self, row: Mapping[str, Any]) -> bool:
        """Add the row's signals; whether there were any."""
        s = self.signals
        values = {}
        for name, keys in SIGNALS.items():
            known = self._keys.get(name)
            for key in keys[: keys.index(known) + 1] if known else keys:
                if key in row and (value := number(row[key])) is not None:
                    if key != known:  # a better one than before, measured less often
                        self._keys[name], s.series[name] = key, Series()
                    values[name] = value
                    break
        lost_loss, lost_norm = self._lost(row, values)
        if values.get("flat groups") == 1 or values.get("reward spread", 1.0) <= NO_SPREAD:
            # Of the KL at most: it says nothing of what a usual norm is.
            values.pop("gradient norm", None)
        if not values and not lost_loss and not lost_norm:
            return False
        step = number(row.get("step"))
        last = s.steps[1]
        step = last + 1 if step is None or abs(step) > _MOST_STEPS else int(step)
        if s.row and step < last:
            for series in s.series.values():
                series.rewind(step)
        s.steps = (min(s.steps[0], step) if s.row else step, step)
        s.row += 1
        for name, value in values.items():
            s[name].add(step, value)
        if "loss" in values or lost_loss:
            s.lost_loss = s.lost_loss + 1 if lost_loss else 0
        if "gradient norm" in values or lost_norm:
            s.lost_norm = s.lost_norm + 1 if lost_norm else 0
        return True

    def _lost(self, row: Mapping[str, Any], values: Mapping[str, float]) -> tuple[bool, bool]:
        """Whether loss and gradient norm are there and not finite. ``log.jsonl`` has null for what
        is not, and so may a table that others made for what is not there: it counts in a row of
        training (which has a learning rate), of the norm only where there was one before."""
        trained = "learning rate" in values

        def gone(key: str, null: bool) -> bool:
            if key not in row:
                return False
            value = row[key]
            if value is None:
                return null
            return isinstance(value, float) and not math.isfinite(value)

        return gone("loss", trained), gone(
            "grad_norm", trained and bool(self.signals["gradient norm"].count)
        )


def diagnose(
    rows: Iterable[Mapping[str, Any]], kind: str, thresholds: Thresholds = THRESHOLDS
) -> list[Finding]:
    """The findings on a whole log, worst first: what a Watch would have raised along it."""
    watch = Watch(kind, thresholds)
    for row in rows:
        watch.update(row)
    return watch.findings


def number(value: Any) -> float | None:
    """A finite number of a size that sums of it are finite too, or None."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        value = float(value)
    except OverflowError:  # an integer beyond any float
        return None
    return value if abs(value) <= _MOST else None


def kind_of(row: Mapping[str, Any]) -> str | None:
    """The trainer that wrote a row, by its keys; None where they do not tell."""
    if LOST in row and row.get("trainer") in (SFT, GRPO):
        return row["trainer"]
    if any(key in row for key in ("reward", "reward_std", "frac_reward_zero_std")) or any(
        str(key).startswith(("completions/", "eval_completions/")) for key in row
    ):
        return GRPO
    if "loss" in row and not any(str(key).startswith("rewards/") for key in row):
        return SFT
    return None
