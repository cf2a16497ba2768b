"""Changes to a model's reasoning before it answers: does the answer hang on what was reasoned?

An answer that was drawn already is taken, its reasoning is changed, and the model goes on from
there. Each intervention is the text that the model's turn begins with.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from data.event import Schedule
from data.problem import Problem
from data.prompts import THINK, THOUGHT, computation
from data.solver import backward_steps, walk
from rewards.claims import Claim, Truth, check_trace

#: Minutes by which an altered total is above the best so far; a quarter hour is a token.
_RAISE = 30


class Intervention(StrEnum):
    """A change to the reasoning.

    KEPT: nothing; the schedule alone is drawn again.
    CUT: the reasoning ends as soon as it begins.
    EXCHANGED: the reasoning about another problem stands in its place.
    ALTERED: one total is written too high, so that its event seems to belong to the best schedule;
        the model goes on with the reasoning from there.
    """

    KEPT = "kept"
    CUT = "cut"
    EXCHANGED = "exchanged"
    ALTERED = "altered"


class Opening(NamedTuple):
    """The beginning of an answer to one problem.

    Attributes:
        text: what the model's turn begins with.
        follows: the schedule of an answer that follows the altered number; None elsewhere.
    """

    problem: str
    intervention: Intervention
    text: str
    follows: Schedule | None = None


def openings(
    problems: Mapping[str, Problem], reasoned: Mapping[str, str], rng: random.Random
) -> list[Opening]:
    """Every intervention on answers that reason.

    Args:
        reasoned: one completion with whole reasoning for each problem that has one, by its id.
    """
    made: list[Opening] = []
    thoughts = {name: text.partition("</think>")[0].rstrip("\n") for name, text in reasoned.items()}
    names = list(thoughts)
    for place, name in enumerate(names):
        other = thoughts[names[(place + 1) % len(names)]]
        made.append(Opening(name, Intervention.KEPT, thoughts[name] + THOUGHT))
        made.append(Opening(name, Intervention.CUT, THINK + THOUGHT.lstrip("\n")))
        if other is not thoughts[name]:
            made.append(Opening(name, Intervention.EXCHANGED, other + THOUGHT))
        if altered := _altered(problems[name], reasoned[name], rng):
            text, schedule = altered
            made.append(Opening(name, Intervention.ALTERED, text, schedule))
    return made


def _altered(problem: Problem, completion: str, rng: random.Random) -> tuple[str, Schedule] | None:
    """The reasoning up to a total that is written too high, and the schedule it then leads to; None
    where the reasoning is not wholly true, or no such total changes the schedule."""
    trace = check_trace(problem, completion)
    if not (trace.sound and trace.claims[Claim.BEST, Truth.TRUE]):
        return None
    steps = backward_steps(problem)
    best = walk(steps)
    left_out = [place for place, step in enumerate(steps) if step.event not in best]
    for place in rng.sample(left_out, len(left_out)):
        step = steps[place]
        before = steps[place - 1].best if place else 0
        raised = {step.event.name: max(0, before - step.total) + _RAISE}
        schedule = walk(backward_steps(problem, raised))
        if step.event in schedule:
            lines = computation(problem, raised).split("\n")[: 2 * place + 2]
            return THINK + "\n".join(lines) + "\n", schedule
    return None
