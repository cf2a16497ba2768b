"""Flags of the command line: a mistake in one is a sentence, as every other mistake is."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from data.common.errors import UserError

#: What argparse says of a value, and what is said instead.
_SAID = (
    (r"invalid int value: (.*)", r"must be a whole number, not \1"),
    (r"invalid float value: (.*)", r"must be a number, not \1"),
    (r"invalid choice: (.*) \(choose from (.*)\)", r"must be one of \2, not \1"),
)
#: Flags that make has a setting for.
_SETTINGS = (
    r"--(recipe|model|run|backend|bits|arm|gpu|price|log|truth|from|day|date|rule|out|blog)\b"
)


class Parser(argparse.ArgumentParser):
    """argparse's, whose mistakes are a UserError without the usage."""

    def error(self, message: str) -> NoReturn:
        about = re.fullmatch(r"argument (--\S+): (.*)", message)
        if not about:
            raise UserError(f"{message}; --help (ARGS=--help) lists the flags")
        flag, problem = about.groups()
        for theirs, ours in _SAID:
            problem = re.sub(theirs, ours, problem)
        named = re.sub(_SETTINGS, lambda name: f"{name[1].upper()}= ({name[0]})", flag)
        raise UserError(f"{named} {problem}")
