"""Draws a day and an answer in a terminal: events as bars on a time axis, beside what was proven.

Each state has its own sign and filling, so nothing is told by colour alone. Names and what a model
wrote are hostile: characters that move, hide or colour text are shown as their escapes, and rich
reads no markup or emoji codes in any of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from data.clock import CLOCK
from eval.day.entry import JOINERS
from rewards.verify import Status

#: Categories of characters that are not shown as they are.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: Columns of a name at most, of a time axis at least, and of the whole at most.
_NAME_COLUMNS, _AXIS_COLUMNS, _ALL_COLUMNS = 26, 12, 120
#: Signs and fillings.
_CHOSEN, _OPTIMAL, _FAULTY, _PRIORITY = "✓◆!★"
_FULL, _CROSSED, _LIGHT = "█▓░"
#: Stands before a name: four signs, the times and the weighted minutes.
_LEAD = "✓◆!★ 09:00–10:00 1234 "
_SIGNS = {"optimal": "✓", "feasible": "○", "infeasible": "✕", "unparsable": "?"}
_STYLES = {"optimal": "green", "feasible": "yellow", "infeasible": "red", "unparsable": "red"}


@dataclass(frozen=True)
class _Bar:
    """One event and its states; ``value`` is in weighted minutes, none of an event that the problem
    does not have so."""

    name: str
    start: int
    end: int
    value: int | None
    chosen: bool
    optimal: bool
    faulty: bool
    priority: bool

    @property
    def lead(self) -> str:
        states = (self.chosen and self.value is not None, self.optimal, self.faulty, self.priority)
        signs = zip((_CHOSEN, _OPTIMAL, _FAULTY, _PRIORITY), states, strict=True)
        drawn = "".join(sign if on else " " for sign, on in signs)
        return f"{drawn} {CLOCK[self.start]}–{CLOCK[self.end]} {self.value or '':>4} "

    @property
    def look(self) -> tuple[str, str]:
        """Filling and style."""
        if not self.chosen:
            return _LIGHT, "yellow" if self.optimal else "dim"
        return (_CROSSED, "red") if self.faulty else (_FULL, "green")


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
    text = visible(text).encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.out(text, end=end, style=style, highlight=False)


def draw_day(console: Console, problem: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Draw a day, as ``eval.show.showcase`` prepares a problem and an answer for drawing, and the
    verdict with the proven optimum below it."""
    bars = _bars(problem, answer)
    width = min(console.width, _ALL_COLUMNS)
    name = min(_NAME_COLUMNS, width // 4, max(cell_len(visible(bar.name)) for bar in bars) + 1)
    # The last hour's label goes beyond its end.
    axis = max(width - name - len(_LEAD) - 2, _AXIS_COLUMNS)
    write(console, "")
    _draw_bars(console, bars, (problem["from"], problem["to"]), name, axis)
    if answer["more_strays"]:
        write(console, f"and {answer['more_strays']} more answered events that are not asked so")
    legend = (
        f"{_FULL} {_CHOSEN} chosen   {_LIGHT} not chosen   {_CROSSED} {_FAULTY} breaks a rule   "
        f"{_OPTIMAL} in the optimum   {_PRIORITY} priority\n"
    )
    write(console, f"\n{legend}", style="dim")
    _draw_verdict(console, problem["optimum"], answer)


def _bars(problem: Mapping[str, Any], answer: Mapping[str, Any]) -> list[_Bar]:
    """The problem's events, then the answer's own inventions."""
    faulty = {*answer["overlapping"], *answer["broken"]}
    own = [
        _Bar(name, start, end, value, i in answer["chosen"], optimal, i in faulty, priority)
        for i, (name, start, end, value, priority, optimal, *_) in enumerate(problem["events"])
    ]
    strays = [
        _Bar(name, start, end, None, True, False, True, False)
        for name, start, end, *_ in answer["strays"]
    ]
    return [*own, *strays]


def _draw_bars(
    console: Console, bars: Sequence[_Bar], hours: tuple[int, int], name: int, axis: int
) -> None:
    first, last = hours

    def column(minute: int) -> int:
        """Where a minute lies on the axis; what lies beyond it is drawn at its end."""
        return round((min(max(minute, first), last) - first) / (last - first) * axis)

    every = next((step for step in (1, 2, 3, 4, 6, 12) if column(first + 60 * step) >= 4), 24)
    labels = [" "] * (axis + 2)
    for minute in range(first, last + 1, 60 * every):
        labels[column(minute) : column(minute) + 2] = f"{minute // 60:02d}"
    write(console, " " * (len(_LEAD) + name) + "".join(labels).rstrip(), style="dim")
    for bar in bars:
        begin = min(column(bar.start), axis - 1)
        filling, style = bar.look
        drawn = " " * begin + filling * max(1, column(bar.end) - begin)
        label = set_cell_size(visible(bar.name), name - 1)
        write(console, f"{bar.lead}{label} {drawn}", style=style)


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
