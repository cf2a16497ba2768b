"""Progress of a training on the terminal: a live view or, where it cannot be drawn, lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
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
    ("tokens_per_second", "tokens a second", ".0f"),
    ("memory", "GiB", ".1f"),
)
_BARS = "▁▂▃▄▅▆▇█"
#: Values in a sparkline.
_WIDTH = 40


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """The last ``width`` values as bars, from their least to their greatest."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


class Progress:
    """Progress of one training: drawn on ``console``, or without one a plain line a step.

    Drawn are progress, time left, and every signal as a sparkline, in place.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title, self.console = title, console
        self.first = self.last = self.steps = 0
        self.started = time.monotonic()
        self.series: dict[str, list[float]] = {}
        self.live = console and Live(
            get_renderable=self.render, console=console, refresh_per_second=2
        )

    def open(self, step: int, steps: int) -> None:
        """A training begins at ``step`` of ``steps``."""
        self.first, self.last, self.steps = step, step, steps
        self.started = time.monotonic()
        if self.live:
            self.live.start()

    def add(self, signals: Mapping[str, object]) -> dict[str, float]:
        """Take in a row without showing it; returns its numbers."""
        values = {
            name: value
            for name, _, _ in SHOWN
            if isinstance(value := signals.get(name), float | int)
        }
        for name, value in values.items():
            self.series.setdefault(name, []).append(value)
        return values

    def show(self, step: int, signals: Mapping[str, object]) -> None:
        """Show a logging step's signals."""
        self.last = step
        values = self.add(signals)
        shown = [f"{head} {values[name]:{form}}" for name, head, form in SHOWN if name in values]
        if shown and not self.live:
            print("  ".join([f"step {step}/{self.steps}", *shown, *self.left()]), flush=True)

    def say(self, text: str) -> None:
        """Print a sentence of its own."""
        if self.console:
            self.console.print(Text(text), soft_wrap=True)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """The training is over, however it ended."""
        if self.live:
            self.live.stop()

    def left(self) -> list[str]:
        """Time to the end at the speed so far; nothing before the first step and at the end."""
        if self.last in (self.first, self.steps):
            return []
        each = (time.monotonic() - self.started) / (self.last - self.first)
        return [f"{timedelta(seconds=int(each * (self.steps - self.last)))} left"]

    def render(self) -> Group:
        """Progress, and a row for each signal."""
        head, body = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(1, self.steps), completed=self.last, width=_WIDTH),
            f"{self.last}/{self.steps}",
            f"{timedelta(seconds=int(time.monotonic() - self.started))} so far",
            *self.left(),
        )
        body.add_column()
        body.add_column(justify="right")
        body.add_column(no_wrap=True)
        # A copy: the training may add to it while another thread draws.
        series = {name: list(values) for name, values in self.series.copy().items()}
        for name, heading, form in SHOWN:
            if values := series.get(name):
                body.add_row(heading, f"{values[-1]:{form}}", Text(sparkline(values), style="cyan"))
        return Group(head, body)


def progress(title: str) -> Progress:
    """Progress that is drawn where the output is a terminal that can, else in plain lines."""
    console = plain_console()
    fit = console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
    return Progress(title, console if fit and not console.options.ascii_only else None)
