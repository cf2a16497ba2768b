"""Diagnosis of a training: rows of a log in, findings out. Pure.

``Watch`` takes the rows one by one, as they come; ``diagnose`` takes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.health.signals import LogRow, Signals, number
from pipeline.health.symptom import Level, Symptom
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
        title: its name for users.
        evidence: the numbers, in words.
        cause, advice, source: as of the Symptom.
    """

    symptom: str
    level: Level
    step: int
    title: str
    evidence: str
    cause: str
    advice: str
    source: str


class Watch:
    """Watches one training: rows in by ``update``, findings out.

    Each symptom is raised once, and once more when it gets worse. Where a training resumed from a
    checkpoint, signals after it are forgotten, and findings stay.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.signals = Signals()
        self.symptoms = [symptom for symptom in SYMPTOMS if kind in symptom.kinds]
        self._raised: dict[str, Finding] = {}
        self._due = ENOUGH  # the row at which trends are tested next

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, worst first: each at its worst level and its first step."""
        return sorted(self._raised.values(), key=lambda f: (f.level.badness, f.step, f.symptom))

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """The signals that each silent symptom lacks."""
        lacking = {symptom.name: symptom.missing(self.signals) for symptom in self.symptoms}
        return {name: signals for name, signals in lacking.items() if signals}

    def update(self, row: LogRow) -> list[Finding]:
        """Take in a row; returns the findings that it raises."""
        s = self.signals
        if isinstance(why := row.get(LOST), str):  # its signals alone do not tell
            (symptom,) = (symptom for symptom in self.symptoms if symptom.name == "nonfinite")
            return [
                self._raise(symptom, symptom.worst, int(number(row.get("step")) or s.steps[1]), why)
            ]
        if not s.add(row):
            return []
        if s.rows > _LONG and s.rows % _STRIDE and not (s.lost_loss or s.lost_norm):
            return []
        trends = s.rows >= self._due
        if trends:
            self._due = math.ceil(s.rows * _AGAIN)
        tested = [symptom for symptom in self.symptoms if trends or not symptom.trend]
        return [finding for symptom in tested if (finding := self._test(symptom))]

    def _test(self, symptom: Symptom) -> Finding | None:
        """A finding where a symptom is seen for the first time, or worse than before."""
        before = self._raised.get(symptom.name)
        if before and before.level == symptom.worst:
            return None
        seen = symptom.test(self.signals)
        if seen is None or (before and seen[0].badness >= before.level.badness):
            return None
        return self._raise(
            symptom, seen[0], before.step if before else self.signals.steps[1], seen[1]
        )

    def _raise(self, symptom: Symptom, level: Level, step: int, evidence: str) -> Finding:
        finding = Finding(
            symptom.name, level, step, symptom.title, evidence,
            symptom.cause, symptom.advice, symptom.source,
        )  # fmt: skip
        self._raised[symptom.name] = finding
        return finding


def diagnose(rows: Iterable[LogRow], kind: str) -> list[Finding]:
    """The findings on a whole log, worst first: all that a Watch raises along it."""
    watch = Watch(kind)
    for row in rows:
        watch.update(row)
    return watch.findings
