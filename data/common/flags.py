"""Flags of the command line: a mistake in one is a sentence, as every other mistake is."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from data.common.errors import UserError

#: Mistakes in argparse's words, and in ours.
_SAID = (
    (r"invalid int value: (.*)", r"must be a whole number, not \1"),
    (r"invalid float value: (.*)", r"must be a number, not \1"),
    (r"invalid choice: (.*) \(choose from (.*)\)", r"must be one of \2, not \1"),
)
#: Flags that make has a setting for.
_SETTINGS = (
    r"--(recipe|model|run|backend|bits|arm|gpu|price|log|truth|from|day|date|rule|out|blog|problems"
    r"|completions)(?![\w-])"
)


def named(text: str) -> str:
    """A text with every flag as make and as the command line have it."""
    return re.sub(_SETTINGS, lambda flag: f"{flag[1].upper()}= ({flag[0]})", text)


class Parser(argparse.ArgumentParser):
    """argparse's, whose mistakes are a UserError without the usage, which names the module that was
    run with ``-m``."""

    def __init__(self, **given: Any) -> None:
        module = sys.modules["__main__"].__spec__
        if module:
            given.setdefault("prog", f"python -m {module.name}")
        super().__init__(**given)

    def error(self, message: str) -> NoReturn:
        about = re.fullmatch(r"argument (--\S+): (.*)", message)
        if not about:
            # Flags that are not recognized stay as they were written.
            said = message if message.startswith("unrecognized") else named(message)
            raise UserError(f"{said}; --help (ARGS=--help) lists the flags")
        flag, problem = about.groups()
        for theirs, ours in _SAID:
            problem = re.sub(theirs, ours, problem)
        raise UserError(f"{named(flag)} {problem}")
