"""A training's log: all signals to ``log.jsonl``, the main signals and all findings to the
terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from data.common.errors import UserError
from data.common.files import read_jsonl, to_line, write_jsonl
from data.run import LOG
from pipeline.health.diagnosis import LOST, Finding, Watch
from pipeline.health.symptom import Level

#: Signals that are shown: name in the log, heading, format.
_SHOWN = (
    ("loss", "loss", ".4f"),
    ("val/loss", "val loss", ".4f"),
    ("reward", "reward", ".3f"),
    ("truth/optimal", "optimal", ".1%"),
    ("truth/feasible", "valid", ".1%"),
    ("val/optimal", "val optimal", ".1%"),
    ("kl", "kl", ".4f"),
    ("kl_start", "kl to start", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("grad_norm", "grad norm", ".2f"),
    ("completions/mean_length", "tokens", ".0f"),
    ("completions/clipped_ratio", "cut off", ".1%"),
    ("completions/duplicates", "duplicates", ".0%"),
    ("frac_reward_zero_std", "flat groups", ".0%"),
)

#: Steps whose speed says how long a training takes, and seconds from which it is said.
_TIMED, _LONG = 2, 60


class Stopped(Exception):  # noqa: N818 - not an error of ours
    """A finding at which the recipe ends a training."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.symptom)
        self.finding = finding


class Log(TrainerCallback):
    """Writes ``log.jsonl`` in an arm's folder, one line a logging step, shows it, says each finding
    once, and ends the training at the symptoms of ``stop``."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        stop: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.stop = folder / LOG, stop
        self.watch = Watch(kind, settings)
        self.first = self.steps = 0
        self.started = self.warm = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what lies before the checkpoint that a training resumes from.

        Raises:
            Stopped: when that shows a symptom that ends the training.
        """
        if not state.is_world_process_zero:
            return
        kept = list(_rows_until(self.path, state.global_step)) if state.global_step else []
        write_jsonl(self.path, kept)
        self.first, self.steps = state.global_step, state.max_steps
        self.started = time.monotonic()
        for row in kept:
            self.watch.update(row)
        # The recipe may not have named a symptom when it was found.
        self._end_for(self.watch.findings)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what all will take after a few steps; the first one, which warms up, is not timed."""
        done, steps = state.global_step - self.first, self.steps - self.first
        if done == 1:
            self.warm = time.monotonic()
        whole = (time.monotonic() - self.warm) / _TIMED * steps
        if done == 1 + _TIMED and state.is_world_process_zero and whole > _LONG:
            print(f"about {timedelta(seconds=round(whole))} for {steps} steps", flush=True)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Write, show and judge a row.

        Raises:
            Stopped: when it shows a symptom that ends the training.
        """
        if logs and state.is_world_process_zero:
            self._end_for(self._record(state.global_step, logs))

    def end(self, step: int, logs: Mapping[str, Any], why: str) -> None:
        """Write and show the row at which a training is lost, and say why."""
        self._record(step, {**logs, LOST: why, "trainer": self.watch.kind})

    def _record(self, step: int, logs: Mapping[str, Any]) -> list[Finding]:
        # JSON has no NaN: a signal that is not finite is written as null.
        signals = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in logs.items()
        }
        row = {"step": step, **signals}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_line(row))
        if "train_runtime" not in logs:
            self._show(step, signals)
        findings = self.watch.update(row)
        for finding in findings:
            print(sentence(finding), flush=True)
        return findings

    def _show(self, step: int, signals: Mapping[str, object]) -> None:
        """Print a logging step's main signals, and the time to the end at the speed so far."""
        values = [
            f"{heading} {value:{form}}"
            for name, heading, form in _SHOWN
            if isinstance(value := signals.get(name), float | int)
        ]
        if values and step not in (self.first, self.steps):
            each = (time.monotonic() - self.started) / (step - self.first)
            values.append(f"{timedelta(seconds=int(each * (self.steps - step)))} left")
        if values:
            print("  ".join([f"step {step}/{self.steps}", *values]), flush=True)

    def _end_for(self, findings: Sequence[Finding]) -> None:
        """Raise Stopped for the first that ends the training."""
        for finding in findings:
            if finding.symptom in self.stop and finding.level != Level.NOTE:
                raise Stopped(finding)


def _rows_until(path: Path, step: int) -> Iterator[dict[str, Any]]:
    """The rows up to a step, but not beyond a torn or spoilt line, or the end of a training."""
    with suppress(UserError):
        for _, row in read_jsonl(path):
            at = row.get("step")
            if not isinstance(at, int) or at > step or "train_runtime" in row:
                return
            yield row


def sentence(finding: Finding) -> str:
    """A finding in one or two lines."""
    name = f"{finding.level} ({finding.symptom}, step {finding.step})"
    advice = "" if finding.level == Level.NOTE else f"\n  {finding.advice}"
    return f"{name}: {finding.title}: {finding.evidence}{advice}"
