"""Puts a day into words that a small model knows, for asking it, and its answer back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from data.clock import CLOCK, MINUTE
from data.event import Event
from data.names import EVENT_NAMES
from data.problem import Problem
from data.rules import TIME, Rule
from eval.day.entry import listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Words:
    """A day in words that a small model knows, and the way back.

    Attributes:
        names: what stands for each event.
        times: what stands for each minute; in the same order, so that the same events overlap.
    """

    names: dict[str, str]
    times: dict[int, int]

    def put(self, problem: Problem) -> Problem:
        """The problem in these words, its optimum not yet proven."""

        def said(rule: Rule) -> Rule:
            changed: dict[str, Any] = {}
            for field in fields(rule):
                value = getattr(rule, field.name)
                if field.type in ("EventName", "EventNames"):
                    many = isinstance(value, tuple)
                    changed[field.name] = (
                        tuple(self.names[name] for name in value) if many else self.names[value]
                    )
                elif field.metadata.get("limit") is TIME:
                    changed[field.name] = CLOCK[self.times[MINUTE[value]]]
            return replace(rule, **changed)

        return Problem(
            tuple(
                Event(self.times[e.start], self.times[e.end], self.names[e.name])
                for e in problem.events
            ),
            tuple(self.names[name] for name in problem.priorities),
            tuple(map(said, problem.rules)),
        )

    def back(self, text: str) -> str:
        """An answer in the day's own words."""
        own = {new: name for name, new in self.names.items()}
        own |= {CLOCK[new]: CLOCK[minute] for minute, new in self.times.items()}
        return re.sub("|".join(map(re.escape, own)), lambda match: own[match[0]], text)

    def note(self) -> str:
        """A sentence on what is asked in other words."""
        changed = [f"{name} as {new}" for name, new in self.names.items() if name != new]
        changed += [f"{CLOCK[m]} as {CLOCK[new]}" for m, new in self.times.items() if m != new]
        return f"Asked in words that this small model knows, and put back: {listed(changed)}."


def _is_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def known_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The events that the embedded base, or a model trained from it, has tokens for; other models'
    tokenizers have none for whole names."""
    return [name for name in EVENT_NAMES if _is_token(tokenizer, name)]


def known_words(
    tokenizer: PreTrainedTokenizerBase, problem: Problem, known: Sequence[str]
) -> Words | None:
    """Words of a model that knows some names alone for a day that has others; None where none are
    needed, or the day has more events or times than there are words."""
    free = iter([name for name in known if name not in problem.by_name])
    grid = [m for m, text in enumerate(CLOCK) if known and _is_token(tokenizer, text)]
    limits = [
        MINUTE[getattr(rule, field.name)]
        for rule in problem.rules
        for field in fields(rule)
        if field.metadata.get("limit") is TIME
    ]
    minutes = sorted({*limits, *(m for e in problem.events for m in (e.start, e.end))})
    told = set(problem.by_name) <= set(known) and set(minutes) <= set(grid)
    if told or len(problem.events) > len(known) or len(minutes) > len(grid):
        return None
    names = {name: name if name in known else next(free) for name in problem.by_name}
    return Words(names, dict(zip(minutes, _on_grid(minutes, grid), strict=True)))


def _on_grid(minutes: Sequence[int], grid: Sequence[int]) -> list[int]:
    """Points of the grid near the minutes, in the same order and all different."""
    places: list[int] = []
    for minute in minutes:
        near = min(range(len(grid)), key=lambda i: abs(grid[i] - minute))
        places.append(max(near, places[-1] + 1 if places else 0))
    over = len(grid) - len(places)  # some may be pushed over the end of the day
    return [grid[min(place, over + i)] for i, place in enumerate(places)]
