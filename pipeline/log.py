"""What a trainer reports: every signal to ``log.jsonl``, the main ones on the terminal."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from data.files import to_line, write_jsonl

#: Signals on the terminal: name in the log, heading, format.
_SHOWN = (
    ("loss", "loss", ".4f"),
    ("reward", "reward", ".3f"),
    ("rewards/optimal/mean", "optimal", ".1%"),
    ("rewards/validity/mean", "valid", ".1%"),
    ("kl", "kl", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("grad_norm", "grad norm", ".2f"),
    ("completions/mean_length", "tokens", ".0f"),
    ("completions/clipped_ratio", "cut off", ".1%"),
    ("frac_reward_zero_std", "flat groups", ".0%"),
)


class Log(TrainerCallback):
    """Writes ``log.jsonl``, one line a logging step, and prints progress with the time left."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._first, self._started = state.global_step, time.monotonic()
        if not state.is_world_process_zero:
            return
        # Of an interrupted training, what lies before its checkpoint; a torn last line lies after.
        kept = []
        if state.global_step and self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                row = json.loads(line)
                if row["step"] > state.global_step:
                    break
                kept.append(row)
        write_jsonl(self.path, kept)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or not state.is_world_process_zero:
            return
        # JSON has no NaN: a signal that is not a number is written as null.
        signals = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in logs.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_line({"step": state.global_step, **signals}))
        shown = [
            f"{heading} {signals[name]:{form}}"
            for name, heading, form in _SHOWN
            if isinstance(signals.get(name), float | int)
        ]
        if shown and "train_runtime" not in logs:
            each = (time.monotonic() - self._started) / max(1, state.global_step - self._first)
            left = each * (state.max_steps - state.global_step)
            print(
                f"step {state.global_step}/{state.max_steps}  " + "  ".join(shown)
                + f"  {int(left // 60)}:{int(left % 60):02d} left",
                flush=True,
            )  # fmt: skip


def attach(trainer: Trainer, folder: Path) -> None:
    """Have ``trainer`` report through Log, and not through the default printer."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Log(folder))
