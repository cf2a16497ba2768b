"""The doctor's report on logs: tables for a terminal, JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.common.console import plain_table
from pipeline.health.diagnosis import Finding
from pipeline.health.logs import Patient
from pipeline.health.symptom import Level

_LEVEL_STYLES = {Level.STOP: "bold red", Level.WARNING: "yellow", Level.NOTE: "dim"}


def print_patients(patients: Sequence[Patient], console: Console) -> None:
    """Print findings arm by arm, of a healthy arm the symptoms looked for; of several arms an
    overview at the end."""
    for patient in patients:
        console.print()
        console.print(_heading(patient), soft_wrap=True)
        if patient.serious:
            console.print(_findings_table(patient.serious))
        for line in _notes(patient):
            console.print(Text(line), soft_wrap=True)
    if len(patients) > 1:
        console.print()
        console.print(_overview(patients))


def as_json(patients: Iterable[Patient]) -> str:
    """The same for a program."""
    content = {"logs": [asdict(patient) for patient in patients]}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _heading(patient: Patient) -> Text:
    heading = Text(patient.arm, style="bold")
    if patient.kind is None:
        return heading.append("  nothing logged yet", style="dim")
    first, last = patient.steps
    heading.append(f"  {patient.kind.upper()}, {patient.rows} rows, steps {first} to {last}: ")
    if not patient.serious:
        return heading.append("nothing found now" if patient.past else "nothing found", "green")
    levels = [finding.level for finding in patient.serious]
    counts = [f"{levels.count(level)} {level}" for level in Level if level in levels]
    return heading.append(", ".join(counts), style="yellow")


def _findings_table(findings: Iterable[Finding]) -> Table:
    table = plain_table("level", "since")
    table.add_column("finding", ratio=4)
    table.add_column("evidence", ratio=3)
    table.add_column("what to change", ratio=3)
    for finding in findings:
        table.add_row(
            Text(finding.level, style=_LEVEL_STYLES[finding.level]),
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
    for finding in patient.past:
        if finding.level != Level.NOTE:
            yield (
                f"Was, from step {finding.step} until step {finding.until}: {finding.title} "
                f"({finding.evidence})."
            )
    for guess in patient.guessed:
        yield f"{guess}."
    if not patient.serious:
        yield f"Looked for: {', '.join(patient.looked)}."
    if patient.silent:
        lacking = "; ".join(f"{name} (needs {', '.join(n)})" for name, n in patient.silent.items())
        yield f"Silent for lack of signals: {lacking}."
    if patient.short:
        yield "Too short yet to tell whether KL, reward, entropy or loss stand still."


def _overview(patients: Iterable[Patient]) -> Table:
    table = plain_table("arm")
    table.add_column("what was found (since step)")
    for patient in patients:
        words = [
            Text(f"{finding.symptom} ({finding.step})", style=_LEVEL_STYLES[finding.level])
            for finding in sorted(patient.serious, key=lambda finding: finding.step)
        ]
        nothing = Text("nothing logged yet" if patient.kind is None else "nothing", style="dim")
        table.add_row(Text(patient.arm), Text(", ").join(words) if words else nothing)
    return table
