"""The claims of a model's reasoning, each checked against the problem.

``data.prompts`` writes reasoning in which every claim can be checked. The same claims are read here
out of any model's reasoning and held against the problem. Hostile text costs no more than its
length: lines are cut at fixed words, and each claim about a rule is checked once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from data.clock import CLOCK
from data.event import Schedule
from data.problem import Problem
from data.prompts import COMPUTED_EVENT, COMPUTED_SUM, NOTHING, WEIGHT_WORDS
from data.rules import KINDS
from data.solver import backward_steps, is_computable
from rewards.parse import ParseFailure, parse, reasoning_of


class Claim(StrEnum):
    """The claims of a line of reasoning, in the forms of ``data.prompts``."""

    VALUE = "value"  # weighted minutes of an event; a narrated trace says so of the events kept
    OVERLAP = "overlap"  # NAME overlaps RIVAL
    RULE = "rule"  # NAME breaks kind of rule
    TOTAL = "total"  # Total weighted minutes
    EVENT = "event"  # a computed trace repeats an event: its times, and how often it counts
    AFTER = "after"  # the best that may follow an event, and its first event
    SUM = "sum"  # an event and the best that may follow it
    BEST = "best"  # the best from an event on, and its first event


class Truth(StrEnum):
    """UNKNOWN: the claim is about an event that the day does not have, a word that is no kind of
    rule, or rules that are not computed event by event."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Trace:
    """The reasoning of one answer, checked.

    Attributes:
        claims: how many claims of each kind have each truth.
        adds_up: whether the last total, or each sum of a computed trace, is that of the numbers
            claimed, true or not; None without any.
        follows: whether the answer has exactly the events that the reasoning keeps, or leads to
            from head to head; None where it keeps none, or no schedule can be read.
        complete: whether a computed trace has one step for each event, in their order; a trace
            that computes nothing is complete.
    """

    claims: Counter[tuple[Claim, Truth]]
    adds_up: bool | None
    follows: bool | None
    complete: bool = True

    @property
    def sound(self) -> bool:
        """Whether there are claims, all of them are true, and none is missing."""
        wrong = self.count(Truth.FALSE) + self.count(Truth.UNKNOWN)
        return bool(self.claims) and not wrong and self.complete

    @property
    def computes(self) -> bool:
        """Whether it adds up what may follow an event, which can go wrong; saying what the events
        of the answer are worth cannot."""
        return any(claim == Claim.SUM for claim, _ in self.claims)

    def count(self, truth: Truth) -> int:
        return sum(self.claims[claim, truth] for claim in Claim)


#: A line that claims something: the event, if any, and the rest. Longer numbers make no claim;
#: Python converts very long ones in quadratic time.
_FORMS = {
    Claim.VALUE: re.compile(r"(.*) = ([0-9]{1,9})"),
    Claim.TOTAL: re.compile(r"()Total ([0-9]{1,9})"),
    Claim.OVERLAP: re.compile(r"(.*?) overlaps (.*)"),
    Claim.RULE: re.compile(r"(.*) breaks (.*)"),
}


def _claims(reasoning: str) -> Iterator[tuple[Claim, str, str]]:
    """(kind, event, the rest) of each line that claims something."""
    for line in map(str.strip, reasoning.split("\n")):
        for claim, form in _FORMS.items():
            if match := form.fullmatch(line):
                yield claim, match[1], match[2]
                break


def check_trace(problem: Problem, completion: str) -> Trace:
    """Read the claims of a completion's reasoning and check each against the problem.

    A rule is broken as ``data.prompts.narration`` means it: by the event beside those that the
    reasoning keeps. A total is true when it is the weighted minutes of the events kept.
    """
    reasoning = reasoning_of(completion)
    if any(COMPUTED_SUM.fullmatch(line.strip()) for line in reasoning.split("\n")):
        return _check_computed(problem, reasoning, parse(completion))
    claims = list(_claims(reasoning))
    said = {name: int(number) for kind, name, number in claims if kind == Claim.VALUE}
    events = problem.by_name
    kept = sorted(events[name] for name in said if name in events)
    total = problem.objective(kept)

    @cache
    def breaks(name: str, kind: str) -> bool:
        """Whether a rule of this kind is violated in a new way when the event joins those kept."""
        without = [other for other in kept if other.name != name]
        together = sorted([*without, events[name]])
        return any(
            set(rule.violations(together)) - set(rule.violations(without))
            for rule in problem.rules
            if rule.kind == kind
        )

    def truth(kind: Claim, name: str, rest: str) -> Truth:
        if kind == Claim.TOTAL:
            return _truth(len(kept) == len(said) and int(rest) == total)
        if name not in events:
            return Truth.UNKNOWN
        if kind == Claim.VALUE:
            return _truth(int(rest) == problem.value[name])
        if kind == Claim.OVERLAP and rest in events:
            return _truth(name != rest and events[name].overlaps(events[rest]))
        if kind == Claim.RULE and rest in KINDS:
            return _truth(breaks(name, rest))
        return Truth.UNKNOWN

    schedule = parse(completion)
    totals = [int(number) for kind, _, number in claims if kind == Claim.TOTAL]
    follows = None
    if said and not isinstance(schedule, ParseFailure):
        follows = said.keys() == {event.name for event in schedule}
    return Trace(
        Counter((claim[0], truth(*claim)) for claim in claims),
        adds_up=totals[-1] == sum(said.values()) if totals else None,
        follows=follows,
    )


def _truth(holds: bool) -> Truth:
    return Truth.TRUE if holds else Truth.FALSE


def _check_computed(problem: Problem, reasoning: str, answered: Schedule | ParseFailure) -> Trace:
    """Check a trace that computes, see ``data.prompts.computation``."""
    truths = _StepTruths(problem)
    claims: Counter[tuple[Claim, Truth]] = Counter()
    order: list[str] = []
    sums: list[bool] = []
    following: dict[str, str] = {}
    head = NOTHING
    for line in map(str.strip, reasoning.split("\n")):
        if repeated := COMPUTED_EVENT.fullmatch(line):
            order.append(repeated["name"])
            claims[Claim.EVENT, truths.repeats(repeated)] += 1
        elif order and (summed := COMPUTED_SUM.fullmatch(line)):
            head = summed["head"]
            following[order[-1]] = summed["after_head"]
            sums.append(int(summed["value"]) + int(summed["after"]) == int(summed["total"]))
            claims.update(truths.adds(order[-1], summed))
    led_to = []
    while head in following:
        led_to.append(head)
        head = following.pop(head)
    return Trace(
        claims,
        adds_up=all(sums) if sums else None,
        follows=(
            None if isinstance(answered, ParseFailure) else led_to == [e.name for e in answered]
        ),
        complete=order == [event.name for event in sorted(problem.events, reverse=True)],
    )


class _StepTruths:
    """Whether the lines of a computed trace are true of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        steps = backward_steps(problem) if is_computable(problem) else []
        self.steps = {step.event.name: step for step in steps}

    def repeats(self, line: re.Match[str]) -> Truth:
        """The event's line: its times and how often it counts."""
        event = self.problem.by_name.get(line["name"])
        if event is None:
            return Truth.UNKNOWN
        weight = WEIGHT_WORDS[event.name in self.problem.priorities]
        said = (line["weight"], line["start"], line["end"])
        return _truth(said == (weight, CLOCK[event.start], CLOCK[event.end]))

    def adds(self, name: str, line: re.Match[str]) -> Iterator[tuple[Claim, Truth]]:
        """The line of sums below it, of the event ``name``."""
        step = self.steps.get(name)
        if step is None:
            yield from (
                (c, Truth.UNKNOWN) for c in (Claim.VALUE, Claim.AFTER, Claim.SUM, Claim.BEST)
            )
            return
        value, after, total, best = (int(line[k]) for k in ("value", "after", "total", "best"))
        yield Claim.VALUE, _truth(value == step.value)
        begun = self._begins(line["after_head"], step.after, step.earliest)
        yield Claim.AFTER, _truth(after == step.after and begun)
        yield Claim.SUM, _truth(total == step.total)
        begun = self._begins(line["head"], step.best, step.event.start)
        yield Claim.BEST, _truth(best == step.best and begun)

    def _begins(self, name: str, worth: int, earliest: int) -> bool:
        """Whether a schedule of ``worth`` from ``earliest`` on may begin with this event."""
        if not worth:
            return name == NOTHING
        step = self.steps.get(name)
        return step is not None and step.event.start >= earliest and step.total == worth
