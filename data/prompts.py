"""Every prompt, gold answer and reasoning trace is rendered here and only here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data.clock import CLOCK
from data.event import Event
from data.problem import Problem

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


def trace(problem: Problem, schedule: Sequence[Event]) -> str:
    """A short reasoning trace in which every claim can be checked: each event in turn is kept, with
    its weighted minutes, or left out, with a kept event that it overlaps or the rule that it would
    break beside them; then the total."""
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


def answer(schedule: Sequence[Event], reasoning: str | None) -> str:
    """A whole completion: the reasoning, if any, and the schedule."""
    thought = "" if reasoning is None else f"<think>\n{reasoning}\n</think>\n"
    return thought + schedule_xml(schedule)
