"""Tables of results, and how a reader sees them: on a terminal, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import wrap

from rich.console import Console

from data.common.console import WIDTH, plain_console, plain_table, say
from data.common.files import write_json, write_text

#: Characters of a heading on a line: an arm may be called by a long path.
HEADING = 24
_LABELS = {"sft": "SFT", "grpo": "GRPO"}


@dataclass
class Sheet:
    """One table; ``notes`` are sentences below it, which get their full stop here."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def __post_init__(self) -> None:
        self.notes = [note if note.endswith(".") else f"{note}." for note in self.notes]


def label(arm: str) -> str:
    """An arm as readers know it."""
    return _LABELS.get(arm, arm)


def publish(
    path: Path,
    result: Mapping[str, object],
    sheets: Sequence[Sheet],
    sentences: Sequence[str] = (),
    printed: Sequence[Sheet] | None = None,
) -> None:
    """Write a result as JSON to ``path``, its tables and sentences as Markdown beside it, and print
    both; of the tables those of ``printed``, where that is given."""
    write_json(path, result)
    said = "".join(f"{sentence}\n\n" for sentence in sentences)
    write_text(path.with_suffix(".md"), said + markdown_of(sheets))
    console = plain_console()
    print_sheets(sheets if printed is None else printed, console)
    for sentence in sentences:
        say(console, f"\n{sentence}")


def print_sheets(sheets: Iterable[Sheet], console: Console) -> None:
    """Print tables with their notes."""
    width = min(console.width, WIDTH)
    for sheet in sheets:
        say(console, f"\n{sheet.title}", style="bold")
        for columns in _column_groups(sheet, width) if sheet.rows else ():
            table = plain_table()
            for column in columns:
                heading = "\n".join(wrap(sheet.columns[column], HEADING))
                table.add_column(heading, justify="right" if column else "left", no_wrap=True)
            for row in sheet.rows:
                table.add_row(*(row[column] for column in columns))
            console.print(table, markup=False)
        for note in sheet.notes:
            say(console, note)


def _column_groups(sheet: Sheet, width: int) -> Iterator[list[int]]:
    """Columns in groups that fit ``width``, the first column leading each."""
    needed = [
        max(min(HEADING, len(name)), *(len(row[i]) for row in sheet.rows), 0) + 3
        for i, name in enumerate(sheet.columns)
    ]
    group = [0]
    for i in range(1, len(needed)):
        if len(group) > 1 and sum(needed[j] for j in [*group, i]) > width:
            yield group
            group = [0]
        group.append(i)
    yield group


def markdown_of(sheets: Iterable[Sheet]) -> str:
    """Tables with their notes in Markdown."""
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
