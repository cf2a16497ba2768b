"""Logs of trainings, ours and others', read row by row and examined.

A log is a ``.jsonl`` with one logging step a line, or a ``trainer_state.json`` of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from data.common.errors import UserError
from data.common.files import read_jsonl
from pipeline.health.diagnosis import LOST, Finding, Watch
from pipeline.health.signals import GRPO, SFT, STEPS, LogRow
from pipeline.health.symptom import Level
from pipeline.health.trends import MANY

#: Rows that are looked at for the trainer that wrote them.
_UNDECIDED = 1000


@dataclass
class Patient:
    """One log and what was found in it.

    Attributes:
        arm: its name.
        path: of the log.
        kind: sft or grpo; None where nothing was logged yet.
        rows: with signals.
        steps: first and last.
        looked: symptoms that had their signals.
        silent: symptoms that had not, and the signals they lack.
        short: whether there are too few rows for some symptoms.
    """

    arm: str
    path: str
    kind: str | None = None
    rows: int = 0
    steps: tuple[int, int] = (0, 0)
    findings: list[Finding] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    silent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    short: bool = False

    @property
    def serious(self) -> list[Finding]:
        """All findings but notes."""
        return [finding for finding in self.findings if finding.level != Level.NOTE]


def examine(arm: str, path: Path) -> Patient:
    """Watch a whole log: rows to signals, signals to symptoms, symptoms to findings.

    Raises:
        UserError: when the file is not a log of an SFT or GRPO training.
    """
    rows = read_log(path)
    first: list[LogRow] = []
    kind = None
    while kind is None and len(first) < _UNDECIDED and (row := next(rows, None)) is not None:
        first.append(row)
        kind = kind_of(row)
    if not first:
        return Patient(arm, str(path))
    if kind is None:
        raise UserError(
            f"{path} has no row of an SFT or GRPO training: neither `reward` nor, without rewards "
            "beside it, `loss`"
        )
    watch = Watch(kind)
    for row in chain(first, rows):
        watch.update(row)
    signals, silent = watch.signals, watch.missing
    return Patient(
        arm, str(path), kind, signals.rows, signals.steps, watch.findings,
        looked=[symptom.name for symptom in watch.symptoms if symptom.name not in silent],
        silent=silent,
        short=signals.rows < MANY or signals.steps[1] - signals.steps[0] < STEPS,
    )  # fmt: skip


def kind_of(row: LogRow) -> str | None:
    """The trainer that wrote a row, by its keys; None where they do not tell."""
    if LOST in row and (trainer := row.get("trainer")) in (SFT, GRPO):
        return str(trainer)
    rewarded = {"reward", "reward_std", "frac_reward_zero_std"} & row.keys()
    if rewarded or any(key.startswith(("completions/", "eval_completions/")) for key in row):
        return GRPO
    if "loss" in row and not any(key.startswith("rewards/") for key in row):
        return SFT
    return None


def read_log(path: Path) -> Iterator[LogRow]:
    """The rows of a log, one at a time; a torn last line of a ``.jsonl`` is passed over.

    Raises:
        UserError: naming the file, and the line of a ``.jsonl``, that is not a log.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".jsonl":
        read = 0
        try:
            for line, row in read_jsonl(path):
                read = line
                yield row
        except UserError:
            if not _ends_torn(path, read):
                raise
        return
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    history = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise UserError(
            f"{path} is not a trainer state: it must have log_history, a list of objects; a log "
            "with one object a line must end in .jsonl"
        )
    yield from history


def _ends_torn(path: Path, line: int) -> bool:
    """Whether only the beginning of a row follows a line: one that is being written, or was when
    the training was killed."""
    with path.open("rb") as lines:
        rest = [each for each in islice(lines, line, None) if each.strip()]
    return len(rest) == 1 and rest[0].startswith(b"{") and not rest[0].endswith(b"\n")
