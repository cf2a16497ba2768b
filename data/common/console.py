"""The terminal that tables and sentences are printed on."""

from __future__ import annotations

import os

from rich.console import Console

#: Columns of what is printed where the output is not a terminal.
WIDTH = 100


def plain_console(width: int = WIDTH) -> Console:
    """A console that writes plain text of ``width`` columns where the output is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=width)
    return console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print sentences as they are, broken at words in a terminal and nowhere else."""
    console.print(text, style=style, markup=False, soft_wrap=not console.is_terminal)
