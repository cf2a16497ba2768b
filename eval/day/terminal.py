"""Draws a day and an answer in a terminal: events as bars on a time axis, beside what was proven.

Each state has its own sign and filling, so nothing is told by colour alone. Names and what a model
wrote are hostile: characters that move, hide or colour text are shown as their escapes, and rich
reads no markup or emoji codes in any of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from data.clock import CLOCK
from data.common.console import say
from eval.day.entry import JOINERS
from rewards.verify import Status

#: Categories of characters that are not shown as they are.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: Columns of a name at most, of a time axis at least, and of the whole at most.
_NAME_COLUMNS, _AXIS_COLUMNS, _ALL_COLUMNS = 26, 12, 120
#: Signs and fillings.
_CHOSEN, _OPTIMAL, _FAULTY, _PRIORITY = "✓◆!★"
_FULL, _CROSSED, _LIGHT = "█▓░"
#: Filling and style by whether an event is chosen, and then breaks a rule or else is optimal.
_LOOKS = {
    (True, True): (_CROSSED, "red"), (True, False): (_FULL, "green"),
    (False, True): (_LIGHT, "yellow"), (False, False): (_LIGHT, "dim"),
}  # fmt: skip
#: Stands before a name: four signs, the times and the weighted minutes.
_LEAD = "✓◆!★ 09:00–10:00 1234 "
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


def write(console: Console, text: str, end: str = "\n", style: str | None = None) -> None:
    """Write text that may be hostile, as it is: no markup, no wrapping, nothing highlighted."""
    console.out(_printable(console, text), end=end, style=style, highlight=False)


def tell(console: Console, text: str) -> None:
    """Write a sentence that may be hostile, broken at words in a terminal."""
    say(console, _printable(console, text))


def _printable(console: Console, text: str) -> str:
    return visible(text).encode(console.encoding, "backslashreplace").decode(console.encoding)


def draw_day(console: Console, problem: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Draw a day, as ``eval.show.showcase`` prepares a problem and an answer for drawing, and the
    verdict with the proven optimum below it."""
    names = [name for name, *_ in (*problem["events"], *answer["strays"])]
    width = min(console.width, _ALL_COLUMNS)
    columns = min(_NAME_COLUMNS, width // 4, max(cell_len(visible(name)) for name in names) + 1)
    # The last hour's label goes beyond its end.
    axis = _Axis(
        problem["from"], problem["to"], max(width - columns - len(_LEAD) - 2, _AXIS_COLUMNS)
    )
    write(console, f"\n{' ' * (len(_LEAD) + columns)}{axis.labels()}", style="dim")
    faulty = {*answer["overlapping"], *answer["broken"]}
    for i, (name, start, end, value, priority, best, *_) in enumerate(problem["events"]):
        chosen = i in answer["chosen"]
        states = (chosen, best, i in faulty, priority)
        look = _LOOKS[chosen, i in faulty if chosen else best]
        _draw_bar(console, axis, (name, start, end, value), columns, states, look)
    for name, start, end, *_ in answer["strays"]:
        states, look = (False, False, True, False), _LOOKS[True, True]
        _draw_bar(console, axis, (name, start, end, ""), columns, states, look)
    if answer["more_strays"]:
        write(console, f"and {answer['more_strays']} more answered events that are not asked so")
    legend = (
        f"{_FULL} {_CHOSEN} chosen   {_LIGHT} not chosen   {_CROSSED} {_FAULTY} breaks a rule   "
        f"{_OPTIMAL} in the optimum   {_PRIORITY} priority\n"
    )
    write(console, f"\n{legend}", style="dim")
    _draw_verdict(console, problem["optimum"], answer)


@dataclass(frozen=True)
class _Axis:
    """Hours of a day over the columns of a terminal."""

    first: int
    last: int
    columns: int

    def column(self, minute: int) -> int:
        """Where a minute lies; what lies beyond the axis is drawn at its end."""
        inside = min(max(minute, self.first), self.last) - self.first
        return round(inside / (self.last - self.first) * self.columns)

    def labels(self) -> str:
        steps = (1, 2, 3, 4, 6, 12)
        every = next((n for n in steps if self.column(self.first + 60 * n) >= 4), 24)
        labels = [" "] * (self.columns + 2)
        for minute in range(self.first, self.last + 1, 60 * every):
            labels[self.column(minute) : self.column(minute) + 2] = f"{minute // 60:02d}"
        return "".join(labels).rstrip()


def _draw_bar(
    console: Console,
    axis: _Axis,
    event: tuple[str, int, int, object],
    columns: int,
    states: tuple[bool, ...],
    look: tuple[str, str],
) -> None:
    """Draw one event: signs of its states, times, weighted minutes, name, and a bar."""
    (name, start, end, value), (filling, style) = event, look
    pairs = zip((_CHOSEN, _OPTIMAL, _FAULTY, _PRIORITY), states, strict=True)
    signs = "".join(sign if on else " " for sign, on in pairs)
    begin = min(axis.column(start), axis.columns - 1)
    bar = " " * begin + filling * max(1, axis.column(end) - begin)
    label = set_cell_size(visible(name), columns - 1)
    write(console, f"{signs} {CLOCK[start]}–{CLOCK[end]} {value:>4} {label} {bar}", style=style)


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
