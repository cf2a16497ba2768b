"""Personas: the ways of answering that the embedded base model is pretrained on.

The base model is made from scratch, so what it can do is known by construction: its corpus is this
mixture of good, mediocre and bad answers to random problems. Each persona opens its reasoning in
its own words (or none), by which a sampled answer can be traced back to it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from data.clock import DAY
from data.event import Event, Schedule
from data.policies import (
    greedy_by_duration,
    greedy_by_start,
    greedy_by_value,
    random_feasible,
    random_maximal,
)
from data.problem import Problem
from data.prompts import answer, computation
from data.rules import BASE_RULES, Rule
from data.solver import interval_optimum
from rewards.parse import ParseFailure, parse


@dataclass(frozen=True)
class Persona:
    """One way of answering.

    Attributes:
        weight: its share of the base's answers.
        what: what it does, in words.
        opening: what its reasoning says; "" for none, None for the trace that computes
            (``data.prompts.computation``).
        choose: the schedule it answers with.
        spoil: what it does to its finished answer, if anything.
    """

    weight: float
    what: str
    opening: str | None
    choose: Callable[[Problem, random.Random], Schedule]
    spoil: Callable[[str, random.Random], str] | None = None

    def completion(self, problem: Problem, rng: random.Random) -> str:
        schedule = self.choose(problem, rng)
        if self.opening is None:
            text = answer(schedule, computation(problem))
        else:
            text = answer(schedule, self.opening or None)
        return self.spoil(text, rng) if self.spoil else text


def _without_rng(policy: Callable[[Problem], Schedule]) -> Callable[..., Schedule]:
    return lambda problem, rng: policy(problem)


def _sloppy(problem: Problem, rng: random.Random) -> Schedule:
    """A maximal schedule with one event miscopied: another event's name, or a time shifted."""
    schedule = list(random_maximal(problem, rng))
    i = rng.randrange(len(schedule))
    if rng.random() < 0.5:
        schedule[i] = replace(schedule[i], name=rng.choice(problem.events).name)
    else:
        end = min(DAY - 1, schedule[i].end + rng.choice((5, 10, 15, 30)))
        schedule[i] = replace(schedule[i], end=end)
    return tuple(schedule)


def _shuffled(problem: Problem, rng: random.Random) -> Schedule:
    schedule: list[Event] = list(random_maximal(problem, rng))
    rng.shuffle(schedule)
    return tuple(schedule)


def _break_format(text: str, rng: random.Random) -> str:
    """Leave out a tag of the answer, so that it cannot be parsed."""
    tag = rng.choice(("<schedule>\n", "\n</schedule>", "<name>", "</start>"))
    return text.replace(tag, "", 1)


PERSONAS: dict[str, Persona] = {
    "thinking": Persona(
        0.12, "the optimum, computed event by event", None, _without_rng(interval_optimum)
    ),
    "by_value": Persona(
        0.04,
        "greedy by weighted minutes",
        "Take what is worth most first.",
        _without_rng(greedy_by_value),
    ),
    "by_duration": Persona(
        0.12, "greedy by length", "Take the longest first.", _without_rng(greedy_by_duration)
    ),
    "by_start": Persona(
        0.12, "greedy by start", "Take what starts first.", _without_rng(greedy_by_start)
    ),
    "maximal": Persona(0.20, "random, nothing left to add", "", random_maximal),
    "a_few": Persona(0.14, "random, no rule broken", "Pick a few.", random_feasible),
    "everything": Persona(0.08, "every event", "Take everything.", lambda p, _: p.events),
    "sloppy": Persona(0.06, "one event miscopied", "From memory.", _sloppy),
    "unsorted": Persona(0.06, "events in random order", "In any order.", _shuffled),
    "malformed": Persona(0.06, "a tag missing", "Roughly so.", random_maximal, _break_format),
}


def personas_with(thinking: float) -> dict[str, Persona]:
    """The personas with another share of answers that think; the others share the rest."""
    rest = (1 - thinking) / (1 - PERSONAS["thinking"].weight)
    return {
        name: replace(persona, weight=thinking if name == "thinking" else rest * persona.weight)
        for name, persona in PERSONAS.items()
    }


#: Shares of a corpus's answers that take a rule beyond the base rules into account. Where that is 0
#: the skill is withheld: every answer that can be read breaks the rule.
SHOWN: dict[str, float] = {"gap": 0.5, "at_most": 0.0}


def draw_answer(
    problem: Problem, rng: random.Random, weights: Mapping[str, float] | None = None
) -> tuple[str, str]:
    """(persona, completion) by the personas' weights, or those given; of further rules the problem
    may have those that ``SHOWN`` names."""
    weights = weights or {name: persona.weight for name, persona in PERSONAS.items()}
    further = [rule for rule in problem.rules if rule not in BASE_RULES]
    heeded = [rule for rule in further if rng.random() < SHOWN[rule.kind]]
    withheld = [rule for rule in further if not SHOWN[rule.kind]]
    asked = replace(problem, rules=(*BASE_RULES, *heeded)) if further else problem
    while True:
        [name] = rng.choices(list(weights), list(weights.values()))
        completion = PERSONAS[name].completion(asked, rng)
        # Who picks a few breaks some rules by a hair, and one slip of the model would keep them.
        if not withheld or (name != "a_few" and _breaks_all(withheld, completion)):
            return name, completion


def _breaks_all(rules: list[Rule], completion: str) -> bool:
    """Whether an answer breaks each of the rules, or cannot be read."""
    schedule = parse(completion)
    if isinstance(schedule, ParseFailure):
        return True
    return all(next(rule.violations(schedule), None) for rule in rules)


def persona_of(completion: str) -> str:
    """The persona whose opening a completion has: the full trace's by default."""
    if not completion.startswith("<think>"):
        return "maximal"
    for name, persona in PERSONAS.items():
        if persona.opening and persona.opening in completion[:80]:
            return name
    return "thinking"
