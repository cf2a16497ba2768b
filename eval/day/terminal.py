"""Draws a day and an answer in a terminal: events as bars on a time axis, beside what was proven.

Each state has its own sign and filling, so nothing is told by colour alone; without a terminal, or
in a narrow one, each event is a line of words. Names and what a model wrote are hostile: characters
that move, hide or colour text are shown as their escapes, and rich reads no markup or emoji codes
in any of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from data.clock import CLOCK
from eval.day.entry import JOINERS

#: Categories of characters that are not shown as they are.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: Columns of a name, and the fewest of a time axis.
_NAME, _LEAST = 26, 24
#: Columns of a terminal that are used at most.
_WIDEST = 120
#: Signs and fillings, and what stands for them where a terminal has only ASCII.
_CHOSEN, _OPTIMAL, _BROKEN, _PRIORITY = "✓◆!★"
_FULL, _CROSSED, _LIGHT = "█▓░"
_ASCII = str.maketrans("✓◆★█▓░│–", "+o*#x-|-")
_SIGNS = {"optimal": "✓", "feasible": "○", "infeasible": "✕", "unparsable": "?"}
_STYLES = {"optimal": "green", "feasible": "yellow", "infeasible": "red", "unparsable": "red"}


@dataclass(frozen=True)
class _Row:
    """One event and what is to be said of it; ``stray`` says what is wrong with an answered event
    that the problem does not have so."""

    name: str
    start: int
    end: int
    value: int | None
    priority: bool
    optimal: bool
    chosen: bool
    overlapping: bool
    broken: bool
    stray: str = ""

    @property
    def faulty(self) -> bool:
        return bool(self.broken or self.overlapping or self.stray)

    def words(self) -> str:
        said = [self.stray or ("chosen" if self.chosen else "not chosen")]
        said += ["priority"] if self.priority else []
        said += ["in the optimum"] if self.optimal else []
        said += ["overlapping"] if self.overlapping else []
        if self.broken and not (self.overlapping or self.stray):
            said.append("breaks a rule" if self.chosen else "named by a broken rule")
        return ", ".join(said)


def shown(text: str) -> str:
    """Text for a terminal: line breaks stay, other characters that are not seen become escapes."""
    return "".join(
        c
        if c in "\n" + JOINERS or unicodedata.category(c) not in _HIDDEN
        else c.encode("unicode_escape").decode()
        for c in text
    )


def write(console: Console, text: str, end: str = "\n", style: str | None = None) -> None:
    """Write text that may be hostile, as it is: no markup, no wrapping, nothing highlighted."""
    text = shown(text)
    if console.options.ascii_only:
        text = text.encode("ascii", "backslashreplace").decode()
    console.out(text, end=end, style=style, highlight=False)


def draw(console: Console, problem: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Draw a day, as ``eval.show.showcase`` prepares a problem and an answer for drawing, and the
    verdict with the proven optimum below it."""
    rows = _rows(problem, answer)
    width = min(console.width, _WIDEST)
    name = min(_NAME, width // 4, max(cell_len(shown(row.name)) for row in rows) + 1)
    # Four signs, the times and the name before it; the last label goes beyond its end.
    axis = width - name - len("✓◆!★ 09:00–10:00 ") - 2
    write(console, "")
    if console.is_terminal and axis >= _LEAST:
        _draw_bars(console, rows, problem["from"], problem["to"], name, axis)
    else:
        for row in rows:
            value = "" if row.value is None else f"{row.value} weighted minutes, "
            times = f"{CLOCK[row.start]}-{CLOCK[row.end]}"
            write(console, f"{times}  {row.name}: {value}{row.words()}")
    if answer["more_strays"]:
        write(console, f"and {answer['more_strays']} more answered events that are not asked so")
    write(console, "")
    _draw_verdict(console, problem["optimum"], answer)


def _rows(problem: Mapping[str, Any], answer: Mapping[str, Any]) -> list[_Row]:
    """The problem's events, then the answer's own inventions."""
    own = [
        _Row(name, start, end, value, priority, optimal,
             *(i in answer[key] for key in ("chosen", "overlapping", "broken")))
        for i, (name, start, end, value, priority, optimal, *_) in enumerate(problem["events"])
    ]  # fmt: skip
    strays = [
        _Row(name, start, end, None, False, False, True, overlapping, broken, what)
        for name, start, end, what, overlapping, broken, *_ in answer["strays"]
    ]
    return [*own, *strays]


def _draw_bars(
    console: Console, rows: Sequence[_Row], first: int, last: int, name: int, axis: int
) -> None:
    def column(minute: int) -> int:
        """Where a minute lies on the axis; what lies beyond it is drawn at its end."""
        return round((min(max(minute, first), last) - first) / (last - first) * axis)

    def line(text: str, style: str = "") -> None:
        plain = text.translate(_ASCII) if console.options.ascii_only else text
        if console.options.ascii_only:
            plain = plain.encode("ascii", "backslashreplace").decode()
        console.print(Text(plain, style), soft_wrap=True, highlight=False)

    every = next(step for step in (1, 2, 3, 4, 6, 12, 24) if column(first + 60 * step) >= 4)
    hours = [" "] * (axis + 2)
    for minute in range(first, last + 1, 60 * every):
        hours[column(minute) : column(minute) + 2] = f"{minute // 60:02d}"
    lead = " " * (len("✓◆!★ 09:00–10:00 ") + name)
    line(lead + "".join(hours).rstrip(), "dim")
    for row in rows:
        signs = "".join(
            sign if on else " "
            for sign, on in (
                (_CHOSEN, row.chosen and not row.stray),
                (_OPTIMAL, row.optimal),
                (_BROKEN, row.faulty),
                (_PRIORITY, row.priority),
            )
        )
        begin = min(column(row.start), axis - 1)
        filling = _LIGHT if not row.chosen else _CROSSED if row.faulty else _FULL
        bar = " " * begin + filling * max(1, column(row.end) - begin)
        style = "dim" if not row.chosen else "red" if row.faulty else "green"
        style = "yellow" if row.optimal and not row.chosen else style
        label = set_cell_size(shown(row.name), name - 1)
        line(f"{signs} {CLOCK[row.start]}–{CLOCK[row.end]} {label} {bar}", style)
    line(
        f"\n{_FULL} {_CHOSEN} chosen   {_LIGHT} not chosen   {_CROSSED} {_BROKEN} breaks a rule   "
        f"{_OPTIMAL} in the optimum   {_PRIORITY} priority",
        "dim",
    )


def _draw_verdict(console: Console, optimum: int, answer: Mapping[str, Any]) -> None:
    status, valid = answer["status"], not answer["violations"]
    sign = "" if console.options.ascii_only else f"{_SIGNS[status]} "
    write(console, f"verdict  {sign}{status}", style=f"bold {_STYLES[status]}")
    for violation in answer["violations"]:
        write(console, f"         {violation}")
    if answer["more_violations"]:
        write(console, f"         and {answer['more_violations']} more")
    if answer["finish"] == "length":
        write(console, f"         cut off after {answer['tokens']} tokens")
    why = "" if valid else ", since it breaks a rule"
    why = ", since it cannot be read" if status == "unparsable" else why
    share = f" ({answer['objective'] / optimum:.0%} of the optimum)" if valid else why
    write(console, f"answer   {answer['objective']} weighted minutes{share}")
    write(console, f"optimum  {optimum} weighted minutes, proven")
