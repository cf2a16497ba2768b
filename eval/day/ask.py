"""Asks a model about one day."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.clock import CLOCK, MINUTE
from data.common.errors import UserError
from data.event import Event
from data.names import EVENT_NAMES
from data.problem import Problem
from data.rows import Row
from data.rules import TIME, Rule
from data.sections import EvalSection
from eval.day.entry import listed
from pipeline.model.decode import (
    Decoding,
    Sample,
    answer_limit,
    prepare,
    reasoning_prefix,
    render,
    sample_batch,
)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    shots: Sequence[tuple[str, str]],
    asking: EvalSection,
    seed: int,
    answers: int = 1,
) -> list[Sample]:
    """Draw answers to ``row``.

    Raises:
        UserError: when the prompt does not fit the model's context.
    """
    rendered = render(tokenizer, row["prompt"], shots)
    limit = asking.max_tokens or answer_limit(tokenizer, [row])
    limit = min(limit, room_for(model, tokenizer, rendered, row["gold"]) or limit)
    decoding = Decoding(limit, asking.temperature, asking.top_p)
    prepare(model)
    (drawn,) = sample_batch(model, tokenizer, [rendered], answers, decoding, [seed])
    opened = reasoning_prefix(tokenizer)
    return [replace(one, completion=opened + one.completion) for one in drawn]


def room_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rendered: str, gold: str
) -> int | None:
    """Tokens that the model has left for an answer; None where its config sets no limit.

    Raises:
        UserError: when the prompt, with room for the gold answer, is longer than its context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    asked, needed = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (rendered, gold)
    )
    if context is None:
        return None
    if asked + needed > context:
        raise UserError(
            f"the prompt has {asked} tokens and its best answer {needed}, more than the {context} "
            "that this model can hold; leave out events, or ask a larger model (MODEL=)"
        )
    return int(context - asked)


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
