"""Problems of others, or of ours from the hub: import, check, prove again.

The published layout, of anakin87/events-scheduling, is
``{index, events: [[name, "HH:MM", "HH:MM"]], priority_events, optimal_score, prompt}``. Ours is
``{events, priorities, rules, optimum}``, alone or as ``problem`` of a row, an object or its text.
A missing optimum is proven. The prompt is always rendered from the problem (``data.prompts``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.common.errors import UserError, brief, require
from data.common.files import decoded, read_jsonl
from data.event import event_from_json
from data.problem import Problem
from data.rules import BASE_RULES, rule_from_json
from data.solver import UnprovenError, prove

#: The keys of priorities and optimum, in the published layout and in ours.
_PUBLISHED, _OURS = ("priority_events", "optimal_score"), ("priorities", "optimum")
#: CP-SAT's deterministic time for one proof, about half a minute at most.
_EFFORT = 30.0
#: ``owner/name`` on the hub, or ``owner/name:split``.
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?::(\w+))?", re.ASCII)

#: A row after the words for where it stands; a sound row after its problem.
RawRow = tuple[str, Mapping[str, Any]]
ImportedRow = tuple[Problem, Mapping[str, Any]]


def read_published(source: str) -> tuple[list[ImportedRow], list[str]]:
    """Problems of a JSONL file or hub dataset (see ``read_rows``), each proven again with CP-SAT.

    Returns:
        The sound rows, and a sentence for each row left out because it breaks the rules: an event
        past midnight, a repeated name, a wrong optimum.

    Raises:
        UserError: when the source cannot be read, or naming the row that lacks a key.
    """
    return prove_rows(read_rows(source))


def prove_rows(rows: Iterable[RawRow]) -> tuple[list[ImportedRow], list[str]]:
    """``read_published`` of rows that were read already."""
    sound, rejects = [], []
    for where, row in rows:
        record = _record(where, row)
        keys = _OURS if "priorities" in record else _PUBLISHED
        check_row(where, record, keys, optional=record.get(keys[1]) is None)
        try:
            sound.append((_problem_of(record, keys), row))
        except (UserError, UnprovenError) as broken:
            rejects.append(f"{where}: {broken}")
    return sound, rejects


def read_rows(source: str) -> Iterator[RawRow]:
    """Records of a JSONL file, or of one split of a hub dataset by its id: ``owner/name:split``,
    ``train`` where it names none. A hub row gets its place in the split, from 0, as ``index``.

    Raises:
        UserError: when the file is missing, a line is corrupt, or the dataset is not available.
    """
    hub_id = _hub_id(source)
    if hub_id is None:
        for number, record in read_jsonl(Path(source)):
            yield f"{source}:{number}", record
        return
    import datasets
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries
    try:
        rows = datasets.load_dataset(hub_id[1], split=hub_id[2] or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"{source} is no file here, and no dataset of the hub that is available ({reason}); "
            "check the name and the connection, or give a JSONL file"
        ) from None
    for index, row in enumerate(rows):
        yield f"{source} row {index}", {"index": index, **row}


def source_of(source: str, split: str) -> str:
    """Where a split of a tier's ``source`` is: where it says ``{split}``, in the file of a folder,
    or the split of a hub data set; a file, or a split that is named, holds all of them."""
    if "{split}" in source:
        return source.replace("{split}", split)
    if Path(source).is_dir():
        return f"{source}/{split}.jsonl"
    hub_id = _hub_id(source)
    return f"{source}:{split}" if hub_id and not hub_id[2] else source


def _hub_id(source: str) -> re.Match[str] | None:
    """The id of a hub data set and its split, if any; None where the source is a file."""
    is_file = Path(source).exists() or Path(source).suffix in (".jsonl", ".json")
    return None if is_file else _HUB_ID.fullmatch(source)


def _record(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The problem in a row, without the nulls with which Arrow pads rules to the same keys."""
    record = row.get("problem", row)
    if isinstance(record, str):
        record = decoded(record, f'{where}: "problem"')
    require(isinstance(record, Mapping), f'{where}: "problem" must be an object or its JSON text')
    rules = record.get("rules")
    if not isinstance(rules, list):
        require(rules is None, f'{where}: "rules" must be a list, not {brief(rules)}')
        return record
    bare = [
        {k: v for k, v in rule.items() if v is not None} if isinstance(rule, Mapping) else rule
        for rule in rules
    ]
    return {**record, "rules": bare}


def check_row(
    where: str, row: Mapping[str, Any], keys: tuple[str, str] = _PUBLISHED, optional: bool = False
) -> None:
    """Raise UserError, naming ``where`` and the key, unless a row is of the layout with these
    ``keys``; ``optional`` lets it have no optimum. Whether it keeps the rules is not judged here.
    """
    for key, what, good in (
        ("events", 'a list of ["name", "HH:MM", "HH:MM"]', _is_events),
        (keys[0], "a list of names", _is_names),
        (keys[1], "a whole number above 0", lambda n: optional or (type(n) is int and n > 0)),
    ):
        layout = "the published layout" if keys == _PUBLISHED else "ours"
        require(good(row.get(key)), f'{where}: a row of {layout} needs "{key}", {what}')


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_events(value: Any) -> bool:
    return isinstance(value, list) and all(_is_names(e) and len(e) == 3 for e in value)


def _problem_of(row: Mapping[str, Any], keys: tuple[str, str]) -> Problem:
    """A checked row as a Problem: events by start, its optimum proven by CP-SAT. UserError names
    the rule that the row breaks; UnprovenError: the proof takes too long."""
    # A stable sort by start alone: events that start together keep the order of the row's prompt.
    events = sorted(map(event_from_json, row["events"]), key=lambda event: event.start)
    rules = BASE_RULES if row.get("rules") is None else map(rule_from_json, row["rules"])
    problem = Problem(tuple(events), tuple(row[keys[0]]), tuple(rules))
    problem.check()
    best = prove(problem, _EFFORT)
    if not best:
        raise UserError("no schedule keeps the rules")
    optimum = problem.objective(best)
    says = row.get(keys[1])
    require(says in (None, optimum), f'"{keys[1]}" is {says}, the proven optimum {optimum}')
    return problem.proven(optimum)
