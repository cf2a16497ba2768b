"""The content of ``report.json`` as tables: on the terminal and in Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table

from data.common.console import WIDTH, plain_console
from data.common.errors import UserError
from data.common.files import finished, sha256, stage_facts
from data.policies import GREEDY, GUESSABLE
from eval.stats.estimate import Estimate, cell

_LABELS = {"sft": "SFT", "grpo": "GRPO"}


@dataclass
class Sheet:
    """One table, before it is rich text or Markdown; ``notes`` are sentences below it, which get
    their full stop here."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def __post_init__(self) -> None:
        self.notes = [note if note.endswith(".") else f"{note}." for note in self.notes]


def read_result(path: Path) -> dict[str, Any]:
    """The object of a JSON file that ``make eval`` wrote. Whoever asks it, or an object within it,
    for a key that it lacks, as that of an older version may, gets a UserError.

    Raises:
        UserError: when it is not there, is not the one that was written (where the manifest beside
            it knows that one's hash), or is no such object.
    """
    again = "delete it, and `make eval` writes it again"
    if not path.is_file():
        raise UserError(f"{path} is missing; `make eval` writes it again")
    known = stage_facts(path.parent).get("hashes", {}) if finished(path.parent) else {}
    if path.name in known and known[path.name] != sha256(path):
        raise UserError(f"{path} was changed since `make eval` wrote it; {again}")

    class Object(dict[str, Any]):
        def __missing__(self, key: str) -> NoReturn:
            raise UserError(f'{path} lacks "{key}"; {again}')

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_hook=Object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {again}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must be a JSON object; {again}")
    return found


def label(arm: str) -> str:
    """An arm as readers know it."""
    return _LABELS.get(arm, arm)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def guessable(found: Mapping[str, Any]) -> str | None:
    """What to say of a tier that blind guessing mostly solves within its samples."""
    k = found["samples"]
    guessed = found["floors"].get("random_maximal", {}).get(str(k))
    if guessed is None or guessed <= GUESSABLE:
        return None
    return (
        f"Guessable: a random maximal schedule solves {_percent(guessed)} % within {k} tries, so "
        f"pass@{k} says little about a model here."
    )


def _basis(report: Mapping[str, Any], tier: str) -> str:
    found = report["tiers"][tier]
    return f"{found['problems']:,} problems x {found['samples']} samples; {report['interval']}"


def tier_title(report: Mapping[str, Any], tier: str) -> str:
    return f"{tier} (main tier)" if tier == report["main"] else tier


def _pass_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    found = report["tiers"][tier]
    constant = [policy for policy in found["floors"] if policy in GREEDY]
    by_k = [policy for policy in found["floors"] if policy not in GREEDY]
    rows = [
        [
            k,
            *(cell(arm["pass_at_k"][k]) for arm in found["arms"].values()),
            *(_percent(found["floors"][policy][k]) for policy in by_k),
        ]
        for k in map(str, found["ks"])
    ]
    notes = []
    if constant:
        shares = (
            f"{policy.replace('_', ' ')} {_percent(found['floors'][policy]['1'])} %"
            for policy in constant
        )
        notes.append(f"Floors at any k: {', '.join(shares)}.")
    if sentence := guessable(found):
        notes.append(sentence)
    return Sheet(
        f"{tier_title(report, tier)}: pass@k in %, success = {report['success']}",
        ["k", *map(label, found["arms"]), *(policy.replace("_", " ") for policy in by_k)],
        rows,
        [_basis(report, tier), *notes],
    )


def _difference_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    found = report["tiers"][tier]
    pairs = found["differences"]
    return Sheet(
        f"{tier_title(report, tier)}: paired differences of pass@k in points",
        ["k", *(f"{label(p['tuned'])} - {label(p['reference'])}" for p in pairs)],
        [[k, *(cell(pair["at_k"][k], "+") for pair in pairs)] for k in map(str, found["ks"])],
        [_basis(report, tier), *_overtaking(found)],
    )


def _overtaking(found: Mapping[str, Any]) -> Iterator[str]:
    """Where the base's curve meets that of each arm."""
    for pair in found["differences"]:
        if pair["reference"] == "base":
            k, arm = pair["overtaken_at"], label(pair["tuned"])
            yield (
                f"base stays below {arm} at every k up to {found['samples']}."
                if k is None
                else f"base first meets or passes {arm} at k = {k}."
            )


def _answer_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    found = report["tiers"][tier]
    arms = found["arms"].values()
    names = {
        "valid": "valid (optimal or feasible)",
        "ratio": "mean ratio to the optimum",
        "distinct": "distinct answers",
    }
    rows = [
        [name, *(cell(arm[key]) for arm in arms)]
        for key, name in names.items()
        if any(arm[key] for arm in arms)
    ]
    for key in ("statuses", "violations", "finish_reasons"):
        total: Counter[str] = Counter()
        for arm in arms:
            total.update(arm[key])
        order = list(total) if key == "statuses" else [kind for kind, _ in total.most_common()]
        heading = {"statuses": "status", "violations": "broken", "finish_reasons": "ended by"}[key]
        for kind in order:
            counts = [(arm[key].get(kind, 0), arm["answers"]) for arm in arms]
            cells = [f"{count:,} ({_percent(count / answers)} %)" for count, answers in counts]
            rows.append([f"{heading}: {kind}", *cells])
    return Sheet(
        f"{tier_title(report, tier)}: answers; means in %, then answers counted",
        ["", *map(label, found["arms"])],
        rows,
        [_basis(report, tier)],
    )


def sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """Every table of the report, tier by tier."""
    for tier, found in report["tiers"].items():
        yield _pass_sheet(report, tier)
        if found["differences"]:
            yield _difference_sheet(report, tier)
        yield _answer_sheet(report, tier)


def headline(report: Mapping[str, Any]) -> str | None:
    """The first comparison at k = 1 on the main tier, as a sentence; None with a single arm."""
    pairs = report["tiers"][report["main"]]["differences"]
    if not pairs:
        return None
    pair, at_1 = pairs[0], pairs[0]["at_k"]["1"]
    estimate = Estimate(*(at_1[key] for key in ("value", "low", "high", "n")))
    excludes = "excludes" if estimate.excludes_zero else "includes"
    return (
        f"{report['main']} (main tier), pass@1: {label(pair['tuned'])} - "
        f"{label(pair['reference'])} = {cell(at_1, '+')} points; the interval {excludes} 0."
    )


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every table and the headline."""
    console = console or plain_console()
    print_sheets(sheets(report), console)
    if sentence := headline(report):
        console.print(f"\n{sentence}", markup=False, soft_wrap=True)


def print_sheets(sheets: Iterable[Sheet], console: Console) -> None:
    """Print tables with their notes."""
    width = min(console.width, WIDTH)
    for sheet in sheets:
        console.print(f"\n{sheet.title}", style="bold", markup=False, soft_wrap=True)
        for columns in _column_groups(sheet, width):
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            for column in columns:
                table.add_column(
                    sheet.columns[column], justify="right" if column else "left", no_wrap=True
                )
            for row in sheet.rows:
                table.add_row(*(row[column] for column in columns))
            console.print(table, markup=False)
        for note in sheet.notes:
            console.print(note, markup=False, soft_wrap=True)


def _column_groups(sheet: Sheet, width: int) -> Iterator[list[int]]:
    """Columns in groups that fit ``width``, the first column leading each."""
    cells = [sheet.columns, *sheet.rows]
    needed = [max(len(row[i]) for row in cells) + 3 for i in range(len(sheet.columns))]
    group = [0]
    for i in range(1, len(needed)):
        if len(group) > 1 and sum(needed[j] for j in [*group, i]) > width:
            yield group
            group = [0]
        group.append(i)
    yield group


def markdown(report: Mapping[str, Any]) -> str:
    """Every table in Markdown, ready for the README."""
    return markdown_of(sheets(report))


def markdown_of(sheets: Iterable[Sheet]) -> str:
    return "\n".join(chain.from_iterable(map(_markdown_lines, sheets)))


def _markdown_lines(sheet: Sheet) -> Iterator[str]:
    yield f"**{sheet.title}**"
    yield ""
    yield _markdown_row(sheet.columns)
    yield f"|---{'|---:' * (len(sheet.columns) - 1)}|"
    yield from map(_markdown_row, sheet.rows)
    yield ""
    yield " ".join(sheet.notes)
    yield ""


def _markdown_row(cells: Sequence[str]) -> str:
    # A pipe in a tier's name would begin another cell.
    escaped = (text.replace("|", r"\|") for text in cells)
    return f"| {' | '.join(escaped)} |"
