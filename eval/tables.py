"""The content of ``report.json`` as tables: on the terminal and in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from data.console import WIDTH, plain_console
from data.policies import GREEDY, GUESSABLE
from eval.passk import Estimate

_LABELS = {"sft": "SFT", "grpo": "GRPO"}


@dataclass
class Sheet:
    """One table, before it is rich text or Markdown; ``notes`` are sentences below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def label(arm: str) -> str:
    """An arm as readers know it."""
    return _LABELS.get(arm, arm)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def cell(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    """``27.1 [24.0, 30.2]`` in per cent, or points with ``sign='+'``."""
    if estimate is None:
        return ""
    value, low, high = (
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        f"{round(100 * estimate[key], 1) + 0.0:{sign}.1f}"
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


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
    k = found["samples"]
    guessed = found["floors"].get("random_maximal", {}).get(str(k))
    if guessed is not None and guessed > GUESSABLE:
        notes.append(
            f"Guessable: a random maximal schedule solves {_percent(guessed)} % within {k} tries, "
            f"so pass@{k} says little about a model here."
        )
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
    excludes = "excludes" if Estimate(**at_1).excludes_zero else "includes"
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
    yield f"| {' | '.join(sheet.columns)} |"
    yield f"|---{'|---:' * (len(sheet.columns) - 1)}|"
    for row in sheet.rows:
        yield f"| {' | '.join(row)} |"
    yield ""
    yield " ".join(note if note.endswith(".") else f"{note}." for note in sheet.notes)
    yield ""
