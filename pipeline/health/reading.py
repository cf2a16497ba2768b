"""Logs as people have them, read to rows: one flat mapping a logging step, names as TRL has them.

The file's name tells its form: ``.jsonl`` has a row a line, ``.json`` is a ``trainer_state.json``
or a table of wandb's, ``.csv`` and ``.tsv`` are tables, a folder or ``events.out.tfevents`` is
TensorBoard's, and anything else is printed output, with rows between other lines.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from data.common.errors import UserError, require
from data.common.files import decoded, read_jsonl
from pipeline.health.signals import SIGNALS, LogRow, is_lost, number

#: Names of the step, the best one first; wandb's own counts calls, not steps.
_STEPS = (
    "step", "global_step", "training/global_step", "global_step/max_steps", "current_steps",
    "Step", "_step",
)  # fmt: skip
#: Names that a printed row has one of.
_KNOWN = {name for signal in SIGNALS if signal != "learning rate" for name in SIGNALS[signal]}
#: Characters of a printed line that are looked at; a row has a few thousand.
_LINE = 50_000
#: Characters up to which a dict that is still open may go on in the next line.
_DICT = 5_000
#: Part of the name of every file of TensorBoard's.
EVENTS = "events.out.tfevents"


def read_log(path: Path) -> list[LogRow]:
    """The rows of a log in any form, each with its ``step`` where the log tells it.

    Raises:
        UserError: naming the file, and the line of a ``.jsonl``, that is not a log.
    """
    if path.is_dir() or EVENTS in path.name:
        rows = _of_tensorboard(path)
    elif not path.is_file():
        raise UserError(f"{path} does not exist")
    else:
        rows = [
            {_name(key): value for key, value in row.items() if isinstance(key, str)}
            for row in READERS.get(path.suffix.lower(), _printed)(path)
        ]
    for name in _STEPS:
        steps = [number(str(row.get(name)).partition("/")[0]) for row in rows]
        if any(step is not None for step in steps):
            return [
                row if step is None else {**row, "step": int(step)}
                for row, step in zip(rows, steps, strict=True)
            ]
    return rows


@lru_cache(maxsize=4096)
def _name(key: str) -> str:
    """A name as TRL prints it: reporters put ``train/`` before it, panels of wandb the run too, and
    tables of notebooks have blanks."""
    name = key.rsplit(" - ", 1)[-1].strip().replace(" / ", "/").replace(" ", "_")
    if name.startswith("eval/"):
        return f"eval_{name.removeprefix('eval/')}"
    return name.removeprefix("train/")


def _jsonl(path: Path) -> Iterator[LogRow]:
    """A torn last line is passed over."""
    read = 0
    try:
        for line, row in read_jsonl(path):
            read = line
            yield row
    except UserError:
        if not _ends_torn(path, read):
            raise


def _ends_torn(path: Path, line: int) -> bool:
    """Whether only the beginning of a row follows a line: one that is being written, or was when
    the training was killed."""
    with path.open("rb") as lines:
        rest = [each for each in islice(lines, line, None) if each.strip()]
    return len(rest) == 1 and rest[0].startswith(b"{") and not rest[0].endswith(b"\n")


def _json(path: Path) -> list[LogRow]:
    """A ``trainer_state.json``, a list of rows, or a table by columns, as pandas writes it."""
    content = decoded(path.read_bytes(), str(path))
    rows = content.get("log_history", content) if isinstance(content, dict) else content
    if isinstance(rows, dict) and rows:
        columns = {
            name: dict(enumerate(column)) if isinstance(column, list) else column
            for name, column in rows.items()
        }
        if all(isinstance(column, dict) for column in columns.values()):
            places = dict.fromkeys(place for column in columns.values() for place in column)
            rows = [{name: columns[name].get(place) for name in columns} for place in places]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{path} is not a trainer state: it must have log_history, a list of objects; a log "
            "with one object a line must end in .jsonl"
        )
    return rows


def _csv(path: Path) -> list[LogRow]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            tabs = "\t" in lines.readline()
            lines.seek(0)
            rows = list(csv.DictReader(lines, dialect="excel-tab" if tabs else "excel"))
    except csv.Error as error:
        raise UserError(f"{path} is not a table ({error})") from None
    runs = sorted({key.rpartition(" - ")[0] for row in rows[:1] for key in row if key} - {""})
    require(len(runs) < 2, f"{path} holds several runs ({', '.join(runs)}); export one alone")
    return [{key: value for key, value in row.items() if value not in ("", None)} for row in rows]


def _of_tensorboard(path: Path) -> list[LogRow]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise UserError(
            f"{path} holds TensorBoard's files, and the library that reads them is not installed: "
            "`.venv/bin/pip install tensorboard`, or name a trainer_state.json or printed log"
        ) from None
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[tuple[int, bool], LogRow] = {}  # val has rows of its own, as everywhere
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            place = (event.step, tag.startswith("eval"))
            rows.setdefault(place, {"step": event.step})[_name(tag)] = event.value
    return [rows[place] for place in sorted(rows)]


def _printed(path: Path) -> list[LogRow]:
    """Rows among other lines, as a terminal showed them, and steps by the progress bar."""
    with path.open("rb") as head:
        encoding = "utf-16" if head.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    rows: list[LogRow] = []
    bars: list[dict[int, int]] = []  # at each row, by total, how far each bar was
    moved: dict[int, int] = {}
    header: list[str] = []
    with path.open(encoding=encoding, errors="replace") as lines:  # a bar's \r ends a line too
        for line in _whole(lines):
            header = _header_of(line) or header
            moved |= _bar_of(line[:_LINE])
            row = _row_of(line[:_LINE], header)
            told = (number(row.get(name)) is not None or is_lost(row.get(name)) for name in _KNOWN)
            if len(row) > 1 and any(told):  # answers may have a dict too
                rows.append(row)
                bars.append(dict(moved))
    if not rows and path.stat().st_size:
        raise UserError(
            f"{path} has no printed row of an SFT or GRPO training, such as {{'loss': 0.1, …}}"
        )
    if not any(name in row for row in rows for name in _STEPS):
        for row, step in zip(rows, _steps_by(bars, rows), strict=False):
            row["step"] = step
    return rows


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Lines, with a dict that goes over several of them in one."""
    held = ""
    for line in lines:
        line = held + line.strip() if held else line
        start = _dict_in(line) if not line.rstrip().endswith("{") else len(line.rstrip()) - 1
        held = line.rstrip() if start >= 0 and "}" not in line[start:] and len(line) < _DICT else ""
        if not held:
            yield line
    yield held


def _dict_in(line: str) -> int:
    """Where the last dict of a line begins; -1 where there is none."""
    return max(line.rfind("{'"), line.rfind('{"'))


def _row_of(line: str, header: list[str]) -> LogRow:
    """The names and values of a line: a dict of Python's or JSON's, verl's ``step:1 - name:value``,
    Megatron's ``iteration 1/9 | name: value``, or a table's cells; else nothing of use."""
    start = _dict_in(line)
    if start >= 0:
        row, before = _pairs(line[start + 1 : line.rfind("}")].split(",")), line[:start]
    elif (start := line.find("step:")) >= 0 and " - " in line:
        return _pairs(line[start:].split(" - "))
    elif header and (cells := _cells(line)) and len(cells) == len(header) > 1:
        return dict(zip(header, cells, strict=True)) if number(cells[0]) is not None else {}
    elif line.count("|") > 1:
        row, before = _pairs(line.split("|")), line
    else:
        return {}
    words = before.replace(":", " ").replace("|", " ").lower().split()
    for word, after in pairwise(words):
        if word in ("step", "iteration") and after.partition("/")[0].isdigit():
            row.setdefault("step", after.partition("/")[0])
    return row


def _pairs(items: list[str]) -> LogRow:
    row = {}
    for item in items:
        name, _, value = item.rpartition(":")
        value = value.rpartition("(")[2].strip(" '\")\n")  # np.float64(0.5), tensor(0.5
        row[_name(name.strip(" '\""))] = None if value in ("null", "None") else value
    return row


def _header_of(line: str) -> list[str]:
    cells = _cells(line)
    return [_name(cell) for cell in cells] if cells[0] == "Step" else []


def _cells(line: str) -> list[str]:
    line = line[:_LINE].strip(" |\n")
    return [cell.strip() for cell in line.split("\t" if "\t" in line else "|")]


def _bar_of(line: str) -> dict[int, int]:
    """By its total, how far the last bar of a line is, as in `` 10%|█ | 30/300 [00:10<01:30``."""
    done, _, total = line.rpartition("%|")[2].partition(" [")[0].rpartition("|")[2].partition("/")
    done, total = done.strip(), total.strip()
    return {int(total): int(done)} if max(len(done), len(total)) < 12 and (
        done.isdecimal() and total.isdecimal()
    ) else {}  # fmt: skip


def _steps_by(bars: list[dict[int, int]], rows: list[LogRow]) -> list[int]:
    """The step of every row by the bar that moved before each row of training; none where no bar
    did, as where output was held back."""
    trained = [not any(name.startswith("eval") for name in row) for row in rows]
    for total in sorted(bars[0], reverse=True) if bars else ():
        steps = [bar[total] for bar in bars]
        once = [step for step, train in zip(steps, trained, strict=True) if train]
        if all(a < b for a, b in pairwise(once)) and once and once[0]:
            return steps
    return []


#: By the end of a file's name; others are printed output.
READERS: Mapping[str, Callable[[Path], Any]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv,
}  # fmt: skip
