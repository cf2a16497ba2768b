"""Diagnosis of a training: rows of a log in, one by one as they come, findings out. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.health.signals import LogRow, Signals, number
from pipeline.health.symptom import Level, Seen, Symptom, acts, direction
from pipeline.health.symptoms import SYMPTOMS
from pipeline.health.trends import ENOUGH

#: Key of the row at which a training was ended because a number was not finite: why, in words.
LOST = "lost"
#: Rows up to which each is judged; of more, only every so many, since each says little new.
_LONG, _STRIDE = 2000, 16
#: A trend is tested again when there are so many times the rows.
_AGAIN = 1.2


@dataclass(frozen=True)
class Finding:
    """One symptom that was seen.

    Attributes:
        symptom: its name, for programs.
        level: stop, warning or note.
        step: of the training, at which it was first raised.
        until: the step at which it was last seen, where it no longer holds at the end.
        title: its name for users.
        evidence: the numbers, in words.
        cause, source: as of the Symptom.
        advice: of the Symptom's, in a sentence, what acts in this training.
    """

    symptom: str
    level: Level
    step: int
    title: str
    evidence: str
    cause: str
    advice: str
    source: str
    until: int | None = None


class Watch:
    """Watches one training: rows in by ``update``, findings out.

    Each symptom is raised once, and once more when it gets worse; ``now_and_past`` tells which of
    them still hold.
    Where a training resumed from a checkpoint, signals after it are forgotten, and findings stay.

    Args:
        kind: sft or grpo.
        settings: of the training, where they are known.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any] | None = None) -> None:
        self.kind, self.settings = kind, settings or {}
        self.signals = Signals()
        self.symptoms = [symptom for symptom in SYMPTOMS if kind in symptom.kinds]
        self._raised: dict[str, Finding] = {}
        self._last: dict[str, tuple[int, Seen]] = {}  # the step at which each was seen last
        self._seen: dict[str, Seen] = {}  # at the last test of each
        self._lost: Finding | None = None  # where the last row is one that ended the training
        self._due = ENOUGH  # the row at which trends are tested next

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, worst first: each at its worst level and its first step."""
        return sorted(self._raised.values(), key=lambda f: (f.level.badness, f.step, f.symptom))

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """The signals that each silent symptom lacks."""
        s = self.signals
        lacking = {
            symptom.name: tuple(
                name for name in symptom.missing(s) if not (s.lost.get(name) and name in s.told)
            )
            for symptom in self.symptoms
        }
        return {name: signals for name, signals in lacking.items() if signals}

    def update(self, row: LogRow) -> list[Finding]:
        """Take in a row; returns the findings that it raises."""
        s = self.signals
        if isinstance(why := row.get(LOST), str):  # its signals alone do not tell
            (symptom,) = (symptom for symptom in self.symptoms if symptom.name == "nonfinite")
            step = int(number(row.get("step")) or s.steps[1])
            self._lost = self._raise(symptom, symptom.worst, step, why)
            return [self._lost]
        if not s.add(row):
            return []
        self._lost = None
        if s.rows > _LONG and s.rows % _STRIDE and not (s.lost["loss"] or s.lost["gradient norm"]):
            return []
        trends = s.rows >= self._due
        if trends:
            self._due = math.ceil(s.rows * _AGAIN)
        return self._look([each for each in self.symptoms if trends or not each.trend])

    def now_and_past(self) -> tuple[list[Finding], list[Finding]]:
        """Findings that hold now, worst first, and those that held once, with their last step. No
        advice opposes that of a worse finding."""
        self._look(self.symptoms)
        named = {symptom.name: symptom for symptom in self.symptoms}
        explained = self._explained()
        now: list[Finding] = []
        past: list[Finding] = []
        for finding in self.findings:
            name = finding.symptom
            step, (level, evidence) = self._last[name]
            last = replace(finding, level=level, evidence=evidence)
            if (self._lost and name == self._lost.symptom) or name in self._seen:
                now.append(last)
            elif name not in explained:
                past.append(replace(last, until=step))
        now.sort(key=lambda f: (f.level.badness, f.step, f.symptom))
        taken: dict[str, str] = {}
        return [
            replace(each, advice=self._advice(named[each.symptom], taken)) for each in now
        ], past

    def _explained(self) -> set[str]:
        """Symptoms that others, which are seen, explain or exclude."""
        return {
            each.name for each in self.symptoms if any(one in self._seen for one in each.unless)
        }

    def _look(self, symptoms: Iterable[Symptom]) -> list[Finding]:
        """Test symptoms now; returns those that are seen for the first time, or worse."""
        fresh = []
        for symptom in symptoms:
            self._seen.pop(symptom.name, None)
            self.signals.held = symptom.trend and symptom.name in self._raised
            if seen := symptom.test(self.signals):
                self._seen[symptom.name] = seen
        for name in self._explained():
            self._seen.pop(name, None)
        for symptom in symptoms:
            if (seen := self._seen.get(symptom.name)) is None:
                continue
            step = self.signals.steps[1]
            self._last[symptom.name] = step, seen
            before = self._raised.get(symptom.name)
            if before is None or seen[0].badness < before.level.badness:
                fresh.append(
                    self._raise(symptom, seen[0], before.step if before else step, seen[1])
                )
        return fresh

    def _raise(self, symptom: Symptom, level: Level, step: int, evidence: str) -> Finding:
        taken: dict[str, str] = {}
        for other in self.symptoms:
            if other.name in self._raised.keys() & self._seen.keys() - {symptom.name}:
                self._advice(other, taken)
        finding = Finding(
            symptom.name, level, step, symptom.title, evidence,
            symptom.cause, self._advice(symptom, taken), symptom.source,
        )  # fmt: skip
        self._raised[symptom.name] = finding
        self._last[symptom.name] = step, (level, evidence)
        return finding

    def _advice(self, symptom: Symptom, taken: dict[str, str]) -> str:
        """What to change, in a sentence; notes in ``taken`` which way each key is to go."""
        items = []
        for item in symptom.advice:
            key, verb = direction(item)
            if not acts(item, self.signals, self.settings) or taken.get(key, verb) != verb:
                continue
            if key:
                taken[key] = verb
            items.append(item.replace("`", ""))
        words = "; ".join(items) or "first what is advised above"
        return f"{words[0].upper()}{words[1:]}."
