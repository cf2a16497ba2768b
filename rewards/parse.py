"""Completion to Schedule, or a named failure: the only place that reads model text.

Model text is hostile by default, so everything here is linear in its length: plain ``find``, and a
pattern in which no two parts can match the same character.
"""

from __future__ import annotations

import re
from enum import StrEnum

from data.clock import MINUTE
from data.event import Event, Schedule


class ParseFailure(StrEnum):
    """Why no schedule could be read."""

    UNTERMINATED_REASONING = "unterminated_reasoning"
    NO_SCHEDULE = "no_schedule"
    UNTERMINATED = "unterminated"
    MULTIPLE_SCHEDULES = "multiple_schedules"
    MALFORMED_EVENT = "malformed_event"
    MALFORMED_TIME = "malformed_time"


#: One event at the given position. Blanks between tags do not matter.
_EVENT = re.compile(
    r"\s*<event>\s*<name>([^<]*)</name>\s*<start>([^<]*)</start>\s*<end>([^<]*)</end>\s*</event>",
    re.ASCII,
)
_BLANK = " \t\r\n\f\v"


def parse(completion: str) -> Schedule | ParseFailure:
    """Read the final schedule of a completion.

    The answer is what follows the last ``</think>``; a schedule inside the reasoning is not read.
    Text before and after the schedule does no harm, but there must be exactly one schedule, and
    nothing but well-formed events inside it. Whether these events exist is not judged here.
    """
    answer = completion.rpartition("</think>")[2]
    if "<think>" in answer:
        return ParseFailure.UNTERMINATED_REASONING
    opening = answer.find("<schedule>")
    if opening < 0:
        return ParseFailure.NO_SCHEDULE
    body_start = opening + len("<schedule>")
    if answer.find("<schedule>", body_start) >= 0:
        return ParseFailure.MULTIPLE_SCHEDULES
    body_end = answer.find("</schedule>", body_start)
    if body_end < 0:
        return ParseFailure.UNTERMINATED
    return _parse_events(answer[body_start:body_end])


def parse_leniently(completion: str) -> Schedule | ParseFailure:
    """Read what can be read: the events of the last schedule after the reasoning, or of the whole
    answer where there is none, whatever stands between them.

    For asking what a model could do if form did not matter; the schedule must still be right.
    """
    answer = completion.rpartition("</think>")[2]
    if "<think>" in answer:
        return ParseFailure.UNTERMINATED_REASONING
    found, position = [], max(0, answer.rfind("<schedule>"))
    while (position := answer.find("<event>", position)) >= 0:
        match = _EVENT.match(answer, position)
        if match is None:
            return ParseFailure.MALFORMED_EVENT
        found.append(match[0])
        position = match.end()
    return _parse_events("".join(found)) if found else ParseFailure.NO_SCHEDULE


def _parse_events(body: str) -> Schedule | ParseFailure:
    body = body.rstrip(_BLANK)
    events, position = [], 0
    while position < len(body):
        match = _EVENT.match(body, position)
        if match is None:
            return ParseFailure.MALFORMED_EVENT
        name, start, end = (text.strip(_BLANK) for text in match.groups())
        if start not in MINUTE or end not in MINUTE:
            return ParseFailure.MALFORMED_TIME
        events.append(Event(MINUTE[start], MINUTE[end], name))
        position = match.end()
    return tuple(events)
