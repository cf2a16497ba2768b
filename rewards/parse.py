"""Completion to Schedule, or a named failure: the only place that reads model text.

Model text is hostile by default, so everything here is linear in its length: plain ``find``, and
patterns in which no two parts can match the same character.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from enum import StrEnum
from itertools import groupby

from data.clock import MINUTE
from data.event import Event, Schedule


class ParseFailure(StrEnum):
    """Why no schedule could be read."""

    CUT_OFF = "cut_off"
    UNTERMINATED_REASONING = "unterminated_reasoning"
    NO_SCHEDULE = "no_schedule"
    UNTERMINATED = "unterminated"
    MULTIPLE_SCHEDULES = "multiple_schedules"
    MALFORMED_EVENT = "malformed_event"
    MALFORMED_TIME = "malformed_time"


#: How servers name the end of an answer that did not end by itself.
_CUT = {
    "length", "max_tokens", "max_output_tokens", "max_length", "model_length", "incomplete",
    "model_context_window_exceeded", "content_filter", "abort", "cancelled", "error",
}  # fmt: skip

_TAGS = ("think", "thinking", "thought", "reasoning", "scratchpad", "seed:think")
#: Marks that open reasoning, of any family of models, each with the mark that closes it.
_REASONING = {
    **{f"<{tag}>": f"</{tag}>" for tag in _TAGS},
    "[THINK]": "[/THINK]",  # Mistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|channel>thought": "<channel|>",  # Gemma
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker
    "<|channel|>analysis": "<|channel|>final",  # gpt-oss
    "<|channel|>commentary": "<|channel|>final",
}
#: Tokens that end a model's turn, or begin the user's.
_TURN_ENDS = {
    *(f"<|{name}|>" for name in (
        "im_end", "endoftext", "end_of_text", "eot_id", "eom_id", "eot", "return", "call", "end",
        "user", "end_of_turn", "END_OF_TURN_TOKEN", "eos",
    )),
    "<|im_start|>user", "<|start_header_id|>user", "<|start|>user", "<start_of_turn>user",
    "<end_of_turn>", "<turn|>", "<eos>", "</s>", "<seed:eos>", "<｜end▁of▁sentence｜>",
    "<｜User｜>", "[|endofturn|]",
}  # fmt: skip
#: gpt-oss ends each message so, Phi its turn; another message may follow.
_MESSAGE_END, _MESSAGE = "<|end|>", "<|start|>assistant"
#: Stands between the channel and the text of a message of gpt-oss.
_BODY = "<|message|>"
#: gpt-oss's channels where its special tokens were dropped.
_BARE_ANALYSIS, _BARE_FINAL = re.compile(r"analysis(?=[^\W\d_]|<)"), "assistantfinal"


def _any_of(words: Iterable[str]) -> str:
    """A pattern of literal words that tries only those with the two characters that stand there."""
    groups = groupby(sorted(set(words)), key=lambda word: word[:2])
    return "|".join(
        f"{re.escape(begin)}(?:{'|'.join(re.escape(word[2:]) for word in group)})"
        for begin, group in groups
    )


_MARK = re.compile(_any_of([*_TURN_ENDS, *_REASONING, *_REASONING.values()]))

#: One event at the given position. Blanks between tags do not matter.
_EVENT = re.compile(
    r"\s*<event>\s*<name>([^<]*)</name>\s*<start>([^<]*)</start>\s*<end>([^<]*)</end>\s*</event>",
    re.ASCII,
)
_BLANK = " \t\r\n\f\v"
_OPEN, _CLOSE = "<schedule>", "</schedule>"


def is_cut_off(finish_reason: object) -> bool:
    """Whether this reason says that an answer did not end by itself; None says nothing."""
    return str(finish_reason).casefold() in _CUT


def whole(completion: str, finish_reason: object) -> str:
    """A completion that ended by itself; else "", which is no answer."""
    return "" if is_cut_off(finish_reason) else completion


def opened_reasoning(text: str) -> str:
    """The mark with which a rendered prompt opens the reasoning at its end, or nothing."""
    text = text.rstrip().removesuffix(_BODY)
    return next((mark for mark in _REASONING if text.endswith(mark)), "")


def reopened(completion: str) -> str:
    """A completion whose template opened the reasoning, with a mark that its own text may close."""
    opened = (mark for mark, closing in _REASONING.items() if closing in completion)
    return next(opened, "<think>") + completion


def _split(completion: str) -> tuple[str, str, bool]:
    """What stands before the end of the reasoning, what the model says after it in its turn, and
    False; or, where the reasoning does not end, what stands before it, the reasoning, and True.

    Reasoning ends at its own closing mark, which alone will do: a template may have opened it.
    """
    if _BARE_ANALYSIS.match(completion):
        before, final, after = completion.rpartition(_BARE_FINAL)
        return (before, after, False) if final else ("", completion, True)
    closing, start, end = "", 0, len(completion)
    for mark in _MARK.finditer(completion):
        word = mark[0]
        if word in _TURN_ENDS:
            if word == _MESSAGE_END and completion.startswith(_MESSAGE, mark.end()):
                continue
            end = mark.start()
            break
        if word in _REASONING:
            if not closing:
                closing, start = _REASONING[word], mark.end()
        elif closing in ("", word):
            closing, start = "", mark.end()
    return completion[:start], completion[start:end], bool(closing)


def reasoning_of(completion: str) -> str:
    """The reasoning of a completion, whichever marks it has, or what there is of it where it does
    not end; empty where none is marked."""
    before, after, unended = _split(completion)
    text = after if unended else before
    return _MARK.sub("\n", text).replace(_BODY, "\n")


def parse(completion: str) -> Schedule | ParseFailure:
    """Read the final schedule of a completion.

    The answer is what follows the reasoning, up to the end of the turn; a schedule inside the
    reasoning is not read. Text before and after the schedule does no harm, but there must be
    exactly one, with nothing but well-formed events inside. Whether they exist is not judged here.
    """
    _, answer, unended = _split(completion)
    if unended:
        return ParseFailure.UNTERMINATED_REASONING
    opening = answer.find(_OPEN)
    if opening < 0:
        return ParseFailure.NO_SCHEDULE
    body_start = opening + len(_OPEN)
    if answer.find(_OPEN, body_start) >= 0:
        return ParseFailure.MULTIPLE_SCHEDULES
    body_end = answer.find(_CLOSE, body_start)
    if body_end < 0:
        return ParseFailure.UNTERMINATED
    return _parse_events(answer[body_start:body_end])


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


# --- reading what can be read ----------------------------------------------------------------

_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[\da-f]{1,6}|\w{1,31});", re.ASCII | re.IGNORECASE)
_TAG = re.compile(
    rf"<\s*+(/?)\s*+({'|'.join(_TAGS)}|schedule|event|name|start|end)(?:_?time)?(?![\w:-])([^<>]*)>",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(
    r"\b(name|start|end)(?:_?time)?\s*+=\s*+(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE
)
#: Fences and closing tags, which may follow a schedule that ends an answer.
_TRAILING = re.compile(r"(?:[\s`]|</\w{1,20}>)*+")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_TIME = re.compile(
    r"(?:\d{4}-\d\d-\d\d[T ])?(\d\d?)(?:[:.h：](\d\d)(?::00(?:\.0+)?)?)? ?(?:([ap])\.?m\.?)?",
    re.ASCII | re.IGNORECASE,
)


def parse_leniently(completion: str, ended: bool = False) -> Schedule | ParseFailure:
    """Read what can be read: the events of the last schedule after the reasoning, or of the whole
    answer where there is none, whatever stands between them.

    Tags may have any case and attributes; names come as ``plain_name`` makes them. Reasoning that
    never closes, or closes last of all, is an answer where a whole schedule is its end; the former
    also where the completion is known to have ``ended`` by itself. For asking what a model could
    do if form did not matter; the schedule must still be right.
    """
    if "<event" not in completion.lower():
        completion = _unescaped(completion)
    completion = _TAG.sub(_plain_tag, completion)
    _, answer, unended = _split(completion)
    if not answer.strip():  # closed behind its answer, which must then be its end
        last = max(map(completion.rfind, _REASONING.values()))
        answer, unended, ended = _split(completion[: max(0, last)])[1], True, False
    before, *parts = answer.split("<!--")
    answer = before + "".join(part.partition("-->")[2] for part in parts)
    answer = answer.replace("<![CDATA[", "").replace("]]>", "")
    if unended:
        read, closed, rest = answer.rpartition(_CLOSE)
        if not closed or not (ended or _TRAILING.fullmatch(rest)):
            return ParseFailure.UNTERMINATED_REASONING
        answer = read + closed
    body = answer[max(0, answer.rfind(_OPEN, 0, answer.rfind("<event>") + 1)) :]
    body, closed, _ = body[max(0, body.find("<event>")) :].partition(_CLOSE)
    _, *blocks = body.split("<event>")
    events = []
    for number, block in enumerate(blocks, 1):
        content, end, _ = block.partition("</event>")
        if not (end or closed or number < len(blocks)):
            return ParseFailure.MALFORMED_EVENT
        event = _read_event(content)
        if isinstance(event, ParseFailure):
            return event
        events.append(event)
    return tuple(events) or ParseFailure.NO_SCHEDULE


def _read_event(content: str) -> Event | ParseFailure:
    fields = [content.split(f"<{tag}>") for tag in ("name", "start", "end")]
    if any(len(parts) != 2 for parts in fields):
        return ParseFailure.MALFORMED_EVENT
    name, *times = (plain_name(after.partition("<")[0]) for _, after in fields)
    start, end = map(_minutes, times)
    if start is None or end is None:
        return ParseFailure.MALFORMED_TIME
    return Event(start, end, name)


def _plain_tag(tag: re.Match[str]) -> str:
    """A tag in lower case; the attributes of an event become tags in it."""
    slash, name, rest = tag[1], tag[2].lower(), tag[3]
    if name != "event" or slash:
        return f"<{slash}{name}>"
    found = ((key.lower(), one or other) for key, one, other in _ATTRIBUTE.findall(rest))
    given = "".join(f"<{key}>{value}</{key}>" for key, value in found)
    return f"<event>{given}" + ("</event>" if rest.endswith("/") else "")


def _unescaped(text: str) -> str:
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def plain_name(text: str) -> str:
    """A name without entities, invisible characters, marks of emphasis, and with single blanks."""
    return " ".join(_unescaped(text).translate(_INVISIBLE).split()).strip("*_`\"'")


def _minutes(text: str) -> int | None:
    """Minutes of a time such as ``9:00``, ``09:00:00`` or ``9 PM``; None where it is none."""
    time = _TIME.fullmatch(text)
    if time is None or not (time[2] or time[3]):
        return None
    hour, half = int(time[1]), (time[3] or "").lower()
    if half and hour <= 12:
        hour = hour % 12 + 12 * (half == "p")
    elif half == "a":
        return None
    return MINUTE.get(f"{hour:02}:{time[2] or '00'}")
