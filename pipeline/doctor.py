"""Stage ``make doctor``: what is wrong with a training, finished or running, ours or another's.

Reads the ``log.jsonl`` of every arm of a run of ours, or any log: a ``.jsonl`` with one logging
step a line, a ``trainer_state.json`` of transformers, or a folder with either (of several
checkpoints the newest). Whether it is SFT or GRPO is told by its signals. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data import recipe
from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import read_jsonl
from data.run import LOG
from pipeline.health.diagnosis import Finding, Watch, kind_of, number
from pipeline.health.symptoms import Level
from pipeline.train.checkpoints import STATE, step_of

#: Rows that are kept until one tells what trainer wrote them.
_UNDECIDED = 1000
_STYLES = {Level.STOP: "bold red", Level.WARNING: "yellow", Level.NOTE: "dim"}


@dataclass
class Patient:
    """One log and what was found in it.

    Attributes:
        arm: what it is called.
        path: of the log.
        kind: sft or grpo; None where nothing was logged yet.
        rows: with signals.
        back: rows that lie before their predecessor, as after an interruption.
        steps: first and last.
        looked, silent: rules that had their signals; rules that had not, and which.
        short: too few rows for some rules.
    """

    arm: str
    path: str
    kind: str | None = None
    rows: int = 0
    back: int = 0
    steps: tuple[int, int] = (0, 0)
    findings: list[Finding] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    silent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    short: bool = False

    @property
    def well(self) -> bool:
        """Whether nothing but notes was found."""
        return not _serious(self)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log, one at a time; a torn last line of a ``.jsonl`` is passed over.

    Raises:
        UserError: naming the file, and the line of a ``.jsonl``, that is no log.
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
            if not _torn(path, read):
                raise
        return
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    history = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise UserError(
            f"{path} is no {STATE}: it must have log_history, a list of objects; a log with one "
            "object a line must end in .jsonl"
        )
    yield from history


def _torn(path: Path, line: int) -> bool:
    """Whether after a line nothing follows but the beginning of a row, which is being written, or
    was when the training was killed."""
    with path.open("rb") as lines:
        rest = [found for found in islice(lines, line, None) if found.strip()]
    return len(rest) == 1 and rest[0].startswith(b"{") and not rest[0].endswith(b"\n")


def examine(arm: str, path: Path) -> Patient:
    """Watch a whole log.

    Raises:
        UserError: when the file is no log of an SFT or GRPO training.
    """
    patient, watch, last = Patient(arm, str(path)), None, None
    for watch, row in _watched(path):
        step = number(row.get("step"))
        patient.back += step is not None and last is not None and step < last
        last = step if step is not None else last
        watch.update(row)
    if watch is None:
        return patient
    signals = watch.signals
    t = signals.thresholds
    patient.kind, patient.rows, patient.steps = watch.kind, signals.row, signals.steps
    patient.findings, patient.silent = watch.findings, watch.missing
    patient.looked = [rule.name for rule in watch.rules if rule.name not in watch.missing]
    patient.short = signals.row < t.many or signals.steps[1] - signals.steps[0] < t.steps
    return patient


def _watched(path: Path) -> Iterator[tuple[Watch, dict[str, Any]]]:
    """Each row with the Watch that is to see it, from when the rows tell the trainer."""
    watch, waiting, seen = None, [], 0
    for row in rows_of(path):
        seen += 1
        if watch is None:
            waiting.append(row)
            kind = kind_of(row)
            if kind is None:
                if seen >= _UNDECIDED:
                    break
                continue
            watch = Watch(kind)
            yield from ((watch, earlier) for earlier in waiting)
            continue
        yield watch, row
    if watch is None and seen:
        raise UserError(
            f"{path} has no row of an SFT or GRPO training: neither `reward` nor, without rewards "
            "beside it, `loss`"
        )


def logs_in(path: Path) -> dict[str, Path]:
    """The logs of a file or folder, by arm.

    Raises:
        UserError: when there is none.
    """
    if path.is_file():
        return {path.parent.name if path.name in (LOG, STATE) else path.stem: path}
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    for found in (path / LOG, path / STATE):
        if found.is_file():
            return {path.resolve().name: found}
    states = [state for state in path.glob(f"checkpoint-*/{STATE}") if step_of(state) >= 0]
    if states:
        return {path.resolve().name: max(states, key=step_of)}
    arms = {log.parent.name: log for log in sorted(path.glob(f"*/{LOG}"))}
    if arms:
        return arms
    raise UserError(
        f"{path} has no log: no {LOG} or {STATE}, no checkpoint-*/{STATE}, no <arm>/{LOG}"
    )


def run_folder(name: str) -> Path:
    """The folder of a run of ours.

    Raises:
        UserError: when there is none, naming those that are.
    """
    folder = recipe.RUNS / name
    if folder.is_dir():
        return folder
    known = sorted(path.parent.parent.name for path in recipe.RUNS.glob(f"*/*/{LOG}"))
    known = list(dict.fromkeys(known))
    there = f"runs with a log are {', '.join(known)}" if known else "no run has a log yet"
    raise UserError(f"{folder} does not exist; {there}{recipe.nearest(name, known)}")


def print_patients(patients: Sequence[Patient], console: Console) -> None:
    """What was found, arm by arm; of a healthy one, what was looked at. Of several, all at a glance
    in the end."""
    for patient in patients:
        console.print()
        console.print(_heading(patient), soft_wrap=True)
        if found := _serious(patient):
            console.print(_table(found))
        for line in _notes(patient):
            console.print(Text(line), soft_wrap=True)
    if len(patients) > 1:
        console.print()
        console.print(_overview(patients))


def _serious(patient: Patient) -> list[Finding]:
    return [finding for finding in patient.findings if finding.level != Level.NOTE]


def _overview(patients: Iterable[Patient]) -> Table:
    table = Table("arm", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("what was found (since step)")
    for patient in patients:
        words = [
            Text(f"{finding.rule} ({finding.step})", style=_STYLES[finding.level])
            for finding in sorted(_serious(patient), key=lambda finding: finding.step)
        ]
        nothing = Text("nothing logged yet" if patient.kind is None else "nothing", style="dim")
        table.add_row(Text(patient.arm), Text(", ").join(words) if words else nothing)
    return table


def _heading(patient: Patient) -> Text:
    heading = Text(patient.arm, style="bold")
    if patient.kind is None:
        return heading.append("  nothing logged yet", style="dim")
    first, last = patient.steps
    heading.append(f"  {patient.kind.upper()}, {patient.rows} rows, steps {first} to {last}: ")
    if patient.well:
        return heading.append("nothing found", style="green")
    levels = [finding.level for finding in patient.findings]
    counts = [f"{levels.count(level)} {level}" for level in (Level.STOP, Level.WARNING)]
    return heading.append(", ".join(said for said in counts if said[0] != "0"), style="yellow")


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("level")
    table.add_column("since", justify="right")
    table.add_column("finding", ratio=4)
    table.add_column("evidence", ratio=3)
    table.add_column("what to change", ratio=3)
    for finding in findings:
        table.add_row(
            Text(finding.level, style=_STYLES[finding.level]),
            str(finding.step),
            Text(finding.title, style="bold").append(f". {finding.cause}", style="not bold"),
            Text(finding.evidence),
            Text(finding.advice),
        )
    return table


def _notes(patient: Patient) -> Iterator[str]:
    if patient.kind is None:
        return
    for finding in patient.findings:
        if finding.level == Level.NOTE:
            yield f"Note: {finding.title} ({finding.evidence}). {finding.cause}"
    if patient.well:
        yield f"Looked for: {', '.join(patient.looked)}."
    if patient.silent:
        lacking = "; ".join(f"{rule} (needs {', '.join(n)})" for rule, n in patient.silent.items())
        yield f"Silent for lack of signals: {lacking}."
    if patient.short:
        yield "Too short yet to tell whether KL, reward, entropy or loss stand still."
    if patient.back:
        yield (
            f"{patient.back} rows lie before their predecessor: from there on, each replaces what "
            "came before it, as after an interruption."
        )


def as_json(patients: Iterable[Patient]) -> str:
    """The same for a program."""
    content: list[Mapping[str, Any]] = [asdict(patient) for patient in patients]
    return json.dumps({"logs": content}, indent=2, ensure_ascii=False, allow_nan=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="name of a run below runs/ (default: the recipe's)")
    parser.add_argument("--recipe", type=Path, help="recipe of the run (default: tiny's)")
    parser.add_argument("--log", type=Path, help="a log or a folder with one, instead of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.run and arguments.log:
        raise UserError("--run and --log exclude each other")
    of_recipe = recipe.load_recipe(arguments.recipe).run_name if arguments.recipe else "tiny"
    path = arguments.log or run_folder(arguments.run or of_recipe)
    patients = []
    for arm, log in logs_in(path).items():
        try:
            patients.append(examine(arm, log))
        except UserError as error:
            if arguments.log:
                raise
            print(f"{arm} is left out: {error}", file=sys.stderr)  # the other arms matter no less
    if not patients:
        raise UserError(f"{path} has no log that can be read")
    if arguments.json:
        print(as_json(patients))
    else:
        print_patients(patients, plain_console())


if __name__ == "__main__":
    run_main(main)
