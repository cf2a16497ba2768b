"""The terminal that tables and sentences are printed on, and how long a work still takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

#: Columns of what is printed where the output is not a terminal.
WIDTH = 100
#: Seconds of work after which its time left is said first, and then again.
_FIRST_SAID, _SAID_EVERY = 5, 15

T = TypeVar("T")


def plain_console(width: int = WIDTH) -> Console:
    """A console that writes plain text of ``width`` columns where the output is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=width)
    return console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print sentences as they are, broken at words in a terminal and nowhere else."""
    wraps = console.is_terminal
    console.print(text, style=style, markup=False, emoji=False, soft_wrap=not wraps)


def plain_table(*columns: str) -> Table:
    """An empty table, its first column on the left and the others on the right.

    It has no title: rich would break one to the width of the table; ``say`` it before.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def paced(items: Iterable[T], total: int, what: str, each: str = "") -> Iterator[T]:
    """Hand on ``total`` items, and say while they come what time the rest takes at this speed.

    Args:
        what: is done; stands before the numbers.
        each: words behind them.
    """
    started = time.monotonic()
    due = started + _FIRST_SAID
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now > due and done < total:
            due = now + _SAID_EVERY
            left = timedelta(seconds=int((now - started) / done * (total - done)))
            print(f"{what}: {done}/{total}{each}  {left} left", flush=True)
