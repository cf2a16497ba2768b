"""Every prompt, gold answer and reasoning trace is rendered here and only here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from data.clock import CLOCK
from data.event import Event
from data.problem import Problem
from data.solver import backward_steps

TASK = (
    "Choose events for one day so that their weighted minutes add up to as much as possible. "
    "A priority event counts twice, any other event once.\n\nEvents:\n"
)
PRIORITIES = "\nPriorities:\n"
RULES = "\nRules:\n"
FORMAT = (
    "\nThink first, between <think> and </think>. Then answer with names and times exactly as "
    "given, in this form:\n"
    "<schedule>\n<event>\n<name>...</name>\n<start>HH:MM</start>\n<end>HH:MM</end>\n</event>\n"
    "</schedule>"
)


def prompt(problem: Problem) -> str:
    """The question to a model: one user message."""
    rules = [sentence for rule in problem.rules if (sentence := rule.sentence())]
    return (
        TASK
        + "".join(f"- {e.name} ({CLOCK[e.start]} - {CLOCK[e.end]})\n" for e in problem.events)
        + (PRIORITIES if problem.priorities else "")
        + "".join(f"- {name}\n" for name in problem.priorities)
        + RULES
        + "".join(f"- {sentence}\n" for sentence in rules)
        + FORMAT
    )


def messages(text: str, answer: str | None = None) -> list[dict[str, str]]:
    """A prompt, and its answer if given, as the conversation that chat templates and TRL take."""
    asked = {"role": "user", "content": text}
    return [asked] if answer is None else [asked, {"role": "assistant", "content": answer}]


def schedule_xml(schedule: Iterable[Event]) -> str:
    """A schedule in the form that the prompt asks for."""
    return (
        "<schedule>\n"
        + "".join(
            f"<event>\n<name>{e.name}</name>\n<start>{CLOCK[e.start]}</start>\n"
            f"<end>{CLOCK[e.end]}</end>\n</event>\n"
            for e in schedule
        )
        + "</schedule>"
    )


def narration(problem: Problem, schedule: Sequence[Event]) -> str:
    """A reasoning trace that tells of a schedule which its writer has already: each event in turn
    is kept, with its weighted minutes, or left out, with a kept event that it overlaps or the rule
    that it would break beside them; then the total."""
    kept = set(schedule)
    lines = []
    for event in problem.events:
        if event in kept:
            lines.append(f"{event.name} = {problem.value[event.name]}")
        else:
            rival = next((k for k in schedule if event.overlaps(k)), None)
            if rival:
                lines.append(f"{event.name} overlaps {rival.name}")
            elif rule := problem.obstacle(schedule, event):
                lines.append(f"{event.name} breaks {rule.kind}")
            else:
                lines.append(f"{event.name} is left out")
    return "\n".join([*lines, f"Total {problem.objective(schedule)}"])


#: The marks around the reasoning of an answer.
THINK, THOUGHT = "<think>\n", "\n</think>\n"
#: How a computed trace says how often an event counts, by priority, and that nothing follows.
WEIGHT_WORDS = {False: "once", True: "twice"}
NOTHING = "nothing"


def computation(problem: Problem, raised: Mapping[str, int] | None = None) -> str:
    """A reasoning trace that computes the optimum, two lines an event, from the last to the first.

    The event is repeated from the prompt with how often it counts. Then: its weighted minutes, the
    best that may follow it and the first event of that, their sum, and the best from here on with
    its first event. Every number stands right after what it is computed from, so a model that
    writes from left to right can execute it, and each claim can be checked. ``raised`` falsifies
    totals, as in ``data.solver.backward_steps``.
    """
    priorities = frozenset(problem.priorities)
    return "\n".join(
        f"{s.event.name} {WEIGHT_WORDS[s.event.name in priorities]} "
        f"({CLOCK[s.event.start]} - {CLOCK[s.event.end]})\n"
        f"{s.value} + {s.after} from {s.after_head.name if s.after_head else NOTHING} = {s.total}, "
        f"best {s.best} from {s.head.name}"
        for s in backward_steps(problem, raised)
    )


#: The two lines of a step in ``computation``.
COMPUTED_EVENT = re.compile(
    r"(?P<name>.+) (?P<weight>once|twice) \((?P<start>\d\d:\d\d) - (?P<end>\d\d:\d\d)\)", re.ASCII
)
COMPUTED_SUM = re.compile(
    r"(?P<value>\d{1,9}) \+ (?P<after>\d{1,9}) from (?P<after_head>.+) = (?P<total>\d{1,9}), "
    r"best (?P<best>\d{1,9}) from (?P<head>.+)",
    re.ASCII,
)


def answer(schedule: Sequence[Event], reasoning: str | None) -> str:
    """A whole completion: the reasoning, if any, and the schedule."""
    thought = "" if reasoning is None else THINK + reasoning + THOUGHT
    return thought + schedule_xml(schedule)
