"""What a trainer reports: every signal to ``log.jsonl``, what is wrong to ``findings.jsonl``, the
main ones and what is wrong on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from data.common.files import to_line, write_jsonl
from data.run import LOG
from pipeline.health.diagnosis import LOST, Finding, Watch
from pipeline.health.symptom import Level
from pipeline.watch.live import Lines

FINDINGS = "findings.jsonl"


class Log(TrainerCallback):
    """Writes ``log.jsonl``, one line a logging step, shows it, and says what is wrong, once.

    Args:
        folder: of the arm.
        kind: ``sft`` or ``grpo``.
        view: where it is shown.
        stop: rules whose finding ends the training.
    """

    def __init__(self, folder: Path, kind: str, view: Lines, stop: Sequence[str] = ()) -> None:
        self.path, self.findings = folder / LOG, folder / FINDINGS
        self.view, self.stop, self.watch = view, stop, Watch(kind)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep of an interrupted training's log what lies before its checkpoint.

        Raises:
            Stopped: when that shows what is to end the training.
        """
        if not state.is_world_process_zero:
            return
        # Neither its end, nor a torn line.
        kept = []
        if state.global_step and self.path.is_file():
            for line in self.path.read_bytes().splitlines(keepends=True):
                row = _row(line)
                if row is None or row["step"] > state.global_step or "train_runtime" in row:
                    break
                kept.append(row)
        write_jsonl(self.path, kept)
        self.view.open(state.global_step, state.max_steps)
        self.view.past(kept)
        raised = [finding for row in kept for finding in self.watch.update(row)]  # and said, then
        write_jsonl(self.findings, map(asdict, raised))
        self._end_for(self.watch.findings)  # of a rule that the recipe did not name then

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs and state.is_world_process_zero:
            self.record(state.global_step, logs)

    def record(self, step: int, logs: dict[str, Any]) -> None:
        """Write, show and judge a row.

        Raises:
            Stopped: when it shows what is to end the training.
        """
        fresh = self.watch.update(self._write(step, logs))
        self._say(fresh)
        self._end_for(fresh)

    def end(self, step: int, logs: dict[str, Any], why: str) -> None:
        """Write and show the row at which a training is lost, and say why."""
        row = self._write(step, {**logs, LOST: why, "trainer": self.watch.kind})
        self._say(self.watch.update(row))

    def _write(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        # JSON has no NaN: a signal that is not a number is written as null.
        signals = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in logs.items()
        }
        row = {"step": step, **signals}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_line(row))
        if "train_runtime" not in logs:
            self.view.show(step, signals)
        return row

    def _say(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            with self.findings.open("a", encoding="utf-8") as file:
                file.write(to_line(asdict(finding)))
            self.view.say(sentence(finding))

    def _end_for(self, findings: Sequence[Finding]) -> None:
        """Raise Stopped for the first that is to end the training."""
        for finding in findings:
            if finding.symptom in self.stop and finding.level != Level.NOTE:
                raise Stopped(finding)


def _row(line: bytes) -> dict[str, Any] | None:
    """A row as it was written; None of a line that is torn or spoilt."""
    try:
        row = json.loads(line)
        to_line(row)  # a number that is none cannot be written again
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and type(row.get("step")) is int and line.endswith(b"\n")
    return row if sound else None


class Stopped(Exception):  # noqa: N818 - it is none of ours
    """A finding that the recipe ends a training for."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.symptom)
        self.finding = finding


def sentence(finding: Finding) -> str:
    """A finding in one or two lines."""
    said = f"{finding.level} ({finding.symptom}, step {finding.step}): {finding.title}: "
    if finding.level == Level.NOTE:
        return f"{said}{finding.evidence}"
    return f"{said}{finding.evidence}\n  {finding.advice}"
