"""Progress of a training on the terminal: a line a step, and in one that can draw it a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from data.common.console import plain_console

#: Signals that are shown: name in the log, heading, format.
SHOWN = (
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


class Progress:
    """Progress of one training: a line a step with the time left, which in a terminal a bar has."""

    def __init__(self, title: str) -> None:
        console = plain_console()
        self.drawn = console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self.drawn,
        )
        self.task = self.bar.add_task(title)
        self.first = self.steps = 0
        self.started = time.monotonic()

    def open(self, step: int, steps: int) -> None:
        """A training begins at ``step`` of ``steps``."""
        self.first, self.steps = step, steps
        self.started = time.monotonic()
        self.bar.update(self.task, completed=step, total=steps)
        self.bar.start()

    def show(self, step: int, signals: Mapping[str, object]) -> None:
        """Show a logging step's signals."""
        self.bar.update(self.task, completed=step)
        values = [
            f"{heading} {value:{form}}"
            for name, heading, form in SHOWN
            if isinstance(value := signals.get(name), float | int)
        ]
        if values:
            left = [] if self.drawn else self._left(step)
            self.say("  ".join([f"step {step}/{self.steps}", *values, *left]))

    def say(self, text: str) -> None:
        """Print a sentence of its own."""
        if self.drawn:
            self.bar.console.print(Text(text), soft_wrap=True)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """The training is over, however it ended."""
        self.bar.stop()

    def _left(self, step: int) -> list[str]:
        """Time to the end at the speed so far; nothing before the first step and at the end."""
        if step in (self.first, self.steps):
            return []
        each = (time.monotonic() - self.started) / (step - self.first)
        return [f"{timedelta(seconds=int(each * (self.steps - step)))} left"]
