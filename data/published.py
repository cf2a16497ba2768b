"""Problems in the published layout, of anakin87/events-scheduling: import, check, prove again.

A row is ``{index, events: [[name, "HH:MM", "HH:MM"]], priority_events, optimal_score, prompt}``.
Its prompt is not taken over: ours is rendered from the problem (``data.prompts``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.common.errors import UserError, require
from data.common.files import read_jsonl
from data.event import event_from_json
from data.problem import Problem
from data.solver import prove

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
        check_row(where, row)
        try:
            sound.append((problem_of(row), row))
        except UserError as broken:
            rejects.append(f"{where}: {broken}")
    return sound, rejects


def read_rows(source: str) -> Iterator[RawRow]:
    """Records of a JSONL file, or of one split of a hub dataset by its id: ``owner/name:split``,
    ``train`` where it names none. A hub row gets its place in the split, from 0, as ``index``.

    Raises:
        UserError: when the file is missing, a line is corrupt, or the dataset is not available.
    """
    path, hub_id = Path(source), _HUB_ID.fullmatch(source)
    if path.exists() or path.suffix in (".jsonl", ".json") or hub_id is None:
        for number, record in read_jsonl(path):
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


def check_row(where: str, row: Mapping[str, Any]) -> None:
    """Raise UserError, naming ``where`` and the key, unless a row is of the published layout.

    Whether it keeps the rules is not judged here.
    """
    for key, what, good in (
        ("events", 'a list of ["name", "HH:MM", "HH:MM"]', _is_events),
        ("priority_events", "a list of names", _is_names),
        ("optimal_score", "a whole number above 0", lambda n: type(n) is int and n > 0),
    ):
        message = f'{where}: a row of the published layout needs "{key}", {what}'
        require(good(row.get(key)), message)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_events(value: Any) -> bool:
    return isinstance(value, list) and all(_is_names(e) and len(e) == 3 for e in value)


def problem_of(row: Mapping[str, Any]) -> Problem:
    """A row (checked by ``check_row``) as a Problem: events by start, its optimum proven by CP-SAT.

    Raises:
        UserError: naming the rule that the row breaks.
    """
    # A stable sort by start alone: events that start together keep the order of the row's prompt.
    events = sorted(map(event_from_json, row["events"]), key=lambda event: event.start)
    problem = Problem(tuple(events), tuple(row["priority_events"]))
    problem.check()
    best = prove(problem)
    assert best is not None, "any single event is a schedule"
    optimum = problem.objective(best)
    if optimum != row["optimal_score"]:
        raise UserError(f'"optimal_score" is {row["optimal_score"]}, the proven optimum {optimum}')
    return problem.proven(optimum)
