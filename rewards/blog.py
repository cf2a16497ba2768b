"""The published experiment's own evaluator and rewards, kept for comparison only.

They are those of anakin87/qwen-scheduler-grpo, rewritten with the same meaning. They take a row
of the published layout as it stands, past midnight too (``data.published``); ``row_of`` makes one
of a Problem. Their flaws, kept here because reproducing them is the point:

- The rewards are not the judgement. ``reward_score`` drops both events of every pair that overlaps
  and pays for the rest, so copying every event of the prompt earns about 69 of 100.
- Overlap means two things: touching events overlap for ``reward_score``, not for ``judge`` nor for
  the optimum, so some optimal schedules are not paid in full.
- Events are read from the whole text, those inside ``<think>`` too.
- ``reward_sorted`` does not ask whether the events exist: invented ones earn its 20 points.
- The format needs its tags in order, somewhere, once: whatever stands between them is accepted.
- Events that start together are never in order, and a single event is never a schedule, even where
  the optimum is a single event.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import combinations, pairwise
from typing import Any

from data.event import Event
from data.problem import PRIORITY_WEIGHT, Problem


class BlogStatus(StrEnum):
    """Judgements of the published evaluator, in the order of its checks."""

    FORMAT_ERROR = "format_error"
    FEWER_THAN_2_EVENTS = "fewer_than_2_events"
    NON_EXISTING = "non_existing"
    UNSORTED = "unsorted"
    OVERLAPS = "overlaps"
    VALID = "valid"


FORMAT_POINTS, SORTED_POINTS, SCORE_POINTS = 10.0, 20.0, 70

#: Possessive quantifiers: nothing is tried twice, so reading is linear in the text. ``\d`` and
#: ``\s`` are Unicode's here, as they were there.
_BLOG_EVENT = re.compile(
    r"<event>\s*+<name>([^<]++)</name>\s*+<start>(\d\d:\d\d)</start>\s*+<end>(\d\d:\d\d)</end>"
    r"\s*+</event>"
)

#: The format as pieces of fixed length with any text between; one event will do, further ones are
#: text between pieces.
_PIECES = [
    re.compile(piece)
    for piece in (
        "<schedule>", "<event>", "<name>", "</name>", r"<start>\d\d:\d\d</start>",
        r"<end>\d\d:\d\d</end>", "</event>", "</schedule>",
    )
]  # fmt: skip


def _has_format(text: str, position: int = 0, name: int = 0) -> bool:
    """Whether the pieces follow each other from ``position`` on, with ``name`` characters of a name
    or more. If they do anywhere, they do with each at its earliest place, so one pass decides what
    a backtracking pattern tries in many ways."""
    for piece in _PIECES:
        found = piece.search(text, position + (name if piece.pattern == "</name>" else 0))
        if found is None:
            return False
        position = found.end()
    return True


def _event(item: tuple[str, str, str]) -> Event:
    """The event of (name, start, end); any two digits are hours here, 24 and 99 too."""
    start, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in item[1:])
    return Event(start, end, item[0])


def _is_sorted(events: list[Event]) -> bool:
    return all(before.start < after.start for before, after in pairwise(events))


def _all_exist(row: Mapping[str, Any], listed: list[tuple[str, str, str]]) -> bool:
    """Whether each event listed is one of the row's; one listed twice counts as not existing."""
    return len(set(listed) & set(map(tuple, row["events"]))) == len(listed)


def _ratio(row: Mapping[str, Any], events: list[Event]) -> float:
    """Weighted minutes over the row's optimum."""
    weighted = sum(
        e.duration * (PRIORITY_WEIGHT if e.name in row["priority_events"] else 1) for e in events
    )
    return weighted / row["optimal_score"]


def judge(row: Mapping[str, Any], completion: str) -> tuple[BlogStatus, float]:
    """The published evaluator: status, and weighted minutes over the optimum, 0 unless valid."""
    if not _has_format(completion):
        return BlogStatus.FORMAT_ERROR, 0.0
    listed = _BLOG_EVENT.findall(completion)
    if len(listed) < 2:
        return BlogStatus.FEWER_THAN_2_EVENTS, 0.0
    if not _all_exist(row, listed):
        return BlogStatus.NON_EXISTING, 0.0
    events = list(map(_event, listed))
    if not _is_sorted(events):
        return BlogStatus.UNSORTED, 0.0
    if any(a.overlaps(b) for a, b in combinations(events, 2)):
        return BlogStatus.OVERLAPS, 0.0
    return BlogStatus.VALID, _ratio(row, events)


def reward_format(row: Mapping[str, Any], completion: str) -> float:
    """10 for the format: ``<think>`` first, and the tags of one event in order."""
    closed = completion.find("</think>", len("<think>") + 1)  # some text must be thought
    good = completion.startswith("<think>") and closed >= 0
    return FORMAT_POINTS if good and _has_format(completion, closed, name=1) else 0.0


def reward_sorted(row: Mapping[str, Any], completion: str) -> float:
    """20 for two events or more, each starting later than the one before."""
    events = list(map(_event, _BLOG_EVENT.findall(completion)))
    return SORTED_POINTS if len(events) >= 2 and _is_sorted(events) else 0.0


def reward_score(row: Mapping[str, Any], completion: str) -> float:
    """70 times the ratio of what is left after both events of every pair that overlaps or touches
    are dropped; 0 where an event does not exist or fewer than two are listed."""
    listed = _BLOG_EVENT.findall(completion)
    if len(listed) < 2 or not _all_exist(row, listed):
        return 0.0
    events = list(map(_event, listed))
    dropped: set[Event] = set()
    for a, b in combinations(events, 2):
        if a.start <= b.end and b.start <= a.end:
            dropped |= {a, b}
    return _ratio(row, [event for event in events if event not in dropped]) * SCORE_POINTS


REWARDS: dict[str, Callable[[Mapping[str, Any], str], float]] = {
    "reward_format": reward_format,
    "reward_sorted": reward_sorted,
    "reward_score": reward_score,
}


def rewards(row: Mapping[str, Any], completion: str) -> dict[str, float]:
    """The three published rewards by name; training added them up, to 100 at most."""
    return {name: reward(row, completion) for name, reward in REWARDS.items()}


def row_of(problem: Problem) -> Mapping[str, Any]:
    """A proven problem as a row of the published layout, for these judges. Rules beyond the base
    ones are lost: the published experiment knows none."""
    return {
        "events": [event.to_json() for event in problem.events],
        "priority_events": list(problem.priorities),
        "optimal_score": problem.optimum,
    }
