"""Edits of an answer's text, from which the audit's search builds its way up."""

from __future__ import annotations

import re
from collections.abc import Callable

from data.clock import CLOCK, MINUTE
from data.prompts import schedule_xml
from rewards.attacks import AttackCase

Edit = Callable[[str, AttackCase], str]

_EVENT_BLOCK = re.compile(r"<event>[^\0]*?</event>\n?")
_HH_MM = re.compile(r"\d\d:\d\d", re.ASCII)
_TAGS = tuple(
    f"<{slash}{tag}>" for tag in ("think", "schedule", "event", "name") for slash in ("", "/")
)


def _of_blocks(change: Callable[[list[str], AttackCase], None]) -> Edit:
    """An edit of the list of events in a text; what stands around them is kept."""

    def edit(text: str, case: AttackCase) -> str:
        blocks = _EVENT_BLOCK.findall(text)
        if not blocks:
            return text
        first = text.index(blocks[0])
        rest = _EVENT_BLOCK.sub("", text[first:])
        change(blocks, case)
        return text[:first] + "".join(blocks) + rest

    return edit


def _place(length: int, case: AttackCase) -> int:
    return case.rng.randrange(length + 1)


@_of_blocks
def _drop(blocks: list[str], case: AttackCase) -> None:
    del blocks[case.rng.randrange(len(blocks))]


@_of_blocks
def _repeat(blocks: list[str], case: AttackCase) -> None:
    blocks.insert(_place(len(blocks), case), case.rng.choice(blocks))


@_of_blocks
def _swap(blocks: list[str], case: AttackCase) -> None:
    i, j = (case.rng.randrange(len(blocks)) for _ in range(2))
    blocks[i], blocks[j] = blocks[j], blocks[i]


@_of_blocks
def _add(blocks: list[str], case: AttackCase) -> None:
    event = case.rng.choice(case.problem.events)
    block = schedule_xml((event,)).removeprefix("<schedule>\n").removesuffix("</schedule>")
    blocks.insert(_place(len(blocks), case), block)


def _retime(text: str, case: AttackCase) -> str:
    times = list(_HH_MM.finditer(text))
    if not times:
        return text
    time = case.rng.choice(times)
    minute = (MINUTE.get(time[0], 0) + case.rng.choice((-60, -15, -5, -1, 1, 5, 15, 60))) % 1440
    return text[: time.start()] + CLOCK[minute] + text[time.end() :]


def _misspell(text: str, case: AttackCase) -> str:
    place = _place(len(text), case)
    return text[:place] + case.rng.choice(("", "x", " ", "\u200b", "<", "é")) + text[place + 1 :]


def _insert_tag(text: str, case: AttackCase) -> str:
    place = _place(len(text), case)
    return text[:place] + case.rng.choice(_TAGS) + text[place:]


def _remove_tag(text: str, case: AttackCase) -> str:
    return text.replace(case.rng.choice(_TAGS), "", 1)


def _think(text: str, case: AttackCase) -> str:
    return f"<think>{text}</think>"


def _append(text: str, case: AttackCase) -> str:
    return text + schedule_xml(case.rng.choice((case.gold, case.gold[:1], ())))


def _cut(text: str, case: AttackCase) -> str:
    return text[: _place(len(text), case)]


EDITS: tuple[Edit, ...] = (
    _drop, _repeat, _swap, _add, _retime, _misspell, _insert_tag, _remove_tag, _think, _append,
    _cut,
)  # fmt: skip
