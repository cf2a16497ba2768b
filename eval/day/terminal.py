"""Draws a day and an answer in a terminal: events as bars on a time axis, beside what was proven.

Each state has its own sign, so nothing is told by colour alone. Names and what a model wrote are
hostile: characters that move, hide or colour text are shown as their escapes, and rich reads no
markup or emoji codes in any of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.clock import CLOCK
from data.common.console import say
from eval.day.entry import JOINERS
from rewards.verify import Status

#: Categories of characters that are not shown as they are.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: Columns of a name at most, and of the whole at most.
_NAME_COLUMNS, _ALL_COLUMNS = 26, 120
#: Signs of what an event is: chosen, in the optimum, at fault, a priority.
_MARKS = "✓◆!★"
_SIGNS = {"optimal": "✓", "feasible": "○", "infeasible": "✕", "unparsable": "?"}
_STYLES = {"optimal": "green", "feasible": "yellow", "infeasible": "red", "unparsable": "red"}


def visible(text: str) -> str:
    """Text for a terminal: line breaks stay, other characters that are not seen become escapes."""
    return "".join(
        c
        if c in "\n" + JOINERS or unicodedata.category(c) not in _HIDDEN
        else c.encode("unicode_escape").decode()
        for c in text
    )


def write(console: Console, text: str, style: str | None = None) -> None:
    """Write text that may be hostile, as it is: no markup, no wrapping, nothing highlighted."""
    console.out(_encodable(console, visible(text)), style=style, highlight=False)


def tell(console: Console, text: str) -> None:
    """Write a sentence that may be hostile, broken at words in a terminal."""
    say(console, _encodable(console, visible(text)))


def _encodable(console: Console, text: str) -> str:
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def draw_day(console: Console, problem: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Draw a day, as ``eval.show.showcase`` prepares a problem and an answer for drawing, and the
    verdict with the proven optimum below it."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=4)
    table.add_column(no_wrap=True, overflow="crop", max_width=_NAME_COLUMNS)
    table.add_column()
    first, last = problem["from"], problem["to"]

    def add(name: str, start: int, end: int, value: object, states: tuple[bool, ...]) -> None:
        signs = "".join(mark if on else " " for mark, on in zip(_MARKS, states, strict=True))
        chosen, best, at_fault, _ = states
        style = "red" if at_fault else "green" if chosen else "yellow" if best else "bright_black"
        begin, stop = (min(max(minute, first), last) - first for minute in (start, end))
        bar = Bar(last - first, begin, max(begin, stop), color=style)
        called = Text(visible(name).replace("\n", " "))
        table.add_row(signs, f"{CLOCK[start]}–{CLOCK[end]}", str(value), called, bar, style=style)

    faulty = {*answer["overlapping"], *answer["broken"]}
    for i, (name, start, end, value, priority, best, *_) in enumerate(problem["events"]):
        chosen = i in answer["chosen"]
        add(name, start, end, value, (chosen, best, i in faulty, priority))
    for name, start, end, *_ in answer["strays"]:
        add(name, start, end, "", (False, False, True, False))
    with console.capture() as drawn:
        console.print(table, width=min(console.width, _ALL_COLUMNS))
    console.file.write(_encodable(console, drawn.get()))
    if answer["more_strays"]:
        write(console, f"and {answer['more_strays']} more answered events that are not asked so")
    legend = "✓ chosen   ◆ in the optimum   ! breaks a rule   ★ priority"
    write(console, f"\n{legend}\n", style="dim")
    _draw_verdict(console, problem["optimum"], answer)


def _draw_verdict(console: Console, optimum: int, answer: Mapping[str, Any]) -> None:
    status = answer["status"]
    write(console, f"verdict  {_SIGNS[status]} {status}", style=f"bold {_STYLES[status]}")
    more, tokens = answer["more_violations"], answer["tokens"]
    remarks = [*answer["violations"], *([f"and {more} more"] if more else [])]
    remarks += [f"cut off after {tokens} tokens"] if answer["finish"] == "length" else []
    for remark in remarks:
        write(console, f"         {remark}")
    share = f" ({answer['objective'] / optimum:.0%} of the optimum)"
    if answer["violations"]:
        unread = status == Status.UNPARSABLE
        share = ", since it cannot be read" if unread else ", since it breaks a rule"
    write(console, f"answer   {answer['objective']} weighted minutes{share}")
    write(console, f"optimum  {optimum} weighted minutes, proven")
