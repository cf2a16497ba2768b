"""Reads the files of answers and verdicts, and anyone's problems and completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data.common.errors import UserError, shown
from data.common.fields import dataclass_from
from data.common.files import MANIFEST, read_jsonl, stage_facts
from data.problem import Problem
from data.published import check_row, prove_rows, read_rows
from data.run import VERDICTS
from data.sections import EvalSection
from data.solver import prove
from rewards import blog
from rewards.verify import Status

#: Beside an arm's samples.
#: What a problem is called by: ``id`` in our layout, ``index`` in the published one.
Key = str | int


_KEY_TYPES: dict[str, type] = {"id": str, "index": int}


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_whole(value: Any) -> bool:
    return type(value) is int


#: Keys of rows that ``make eval`` writes: in words and as a check.
_SAMPLE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "completion": ("a text", _is_text),
    "finish_reason": ("a text", _is_text),
    "tokens": ("a whole number", _is_whole),
}


_VERDICT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "status": (f"one of {', '.join(Status)}", lambda value: value in list(Status)),
    "violations": ("a list of texts", _is_texts),
    "objective": ("a whole number", _is_whole),
    "ratio": ("a number from 0 to 1", _is_share),
}


_REASON = ("a text or null", lambda value: value is None or _is_text(value))


def read_answers(
    path: Path, ids: Container[str], by: str = "make eval"
) -> Iterator[dict[str, Any]]:
    """The rows of a ``samples.jsonl`` of answers to the problems ``ids``, drawn ``by`` a command.

    Raises:
        UserError: naming the line that is not as the command writes it, and the way out.
    """
    return _read_ours(path, ids, _SAMPLE, f"`{by}` draws")


def read_verdicts(path: Path, ids: Container[str]) -> Iterator[dict[str, Any]]:
    """The rows of a ``verdicts.jsonl``, like ``read_answers``."""
    return _read_ours(path, ids, {**_VERDICT, "finish_reason": _REASON}, "`make eval` judges")


def answered(samples: Path, ids: Collection[str]) -> Iterator[dict[str, Any]]:
    """Every answer of a ``samples.jsonl`` to the problems ``ids``, with what the file of verdicts
    beside it says: ``{id, arm, sample, completion, finish_reason, tokens, status, violations,
    objective, ratio}``. A million of them need no memory.

    Raises:
        UserError: naming the file, and its line, that is not as ``make eval`` writes it, or where
            the two files are not of the same answers, or lack a problem.
    """
    verdicts, lacking = samples.with_name(VERDICTS), set(ids)
    pairs = zip_longest(read_answers(samples, ids), read_verdicts(verdicts, ids), fillvalue={})
    for sample, verdict in pairs:
        if any(sample.get(key) != verdict.get(key) for key in ("id", "sample")):
            raise UserError(
                f"{verdicts} is not of the answers beside it; delete it, and `make eval` judges "
                "them again"
            )
        lacking.discard(sample["id"])
        yield {**sample, **{key: verdict[key] for key in _VERDICT}}
    if lacking:
        raise UserError(f"{samples} lacks problems; delete it, and `make eval` draws it again")


def _read_ours(
    path: Path,
    ids: Container[str],
    keys: Mapping[str, tuple[str, Callable[[Any], bool]]],
    does: str,
) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; {does} it")
    way_out = f"delete {path.name}, and {does} it again"
    count: Counter[str] = Counter()
    try:
        for number, row in read_jsonl(path):
            where, name = f"{path}:{number}", row.get("id")
            if not isinstance(name, str) or name not in ids:
                raise UserError(f'{where}: "id" is {shown(name)}, no problem that was asked')
            # So are lines found that are there twice, or no more.
            if type(row.get("sample")) is not int or row["sample"] != count[name]:
                raise UserError(
                    f'{where}: "sample" is {shown(row.get("sample"))} where the one to be expected '
                    f"of {name} is {count[name]}"
                )
            count[name] += 1
            for key, (what, good) in keys.items():
                if not good(row.get(key)):
                    raise UserError(f'{where}: "{key}" must be {what}, not {shown(row.get(key))}')
            yield row
    except UserError as error:
        raise UserError(f"{error}; {way_out}") from None


class ProblemFile:
    """The problems of one file (or hub dataset) in either layout.

    Attributes:
        key: ``id`` or ``index``, what its problems are called by.
        records: (row number, where it stands, record) of each problem by its key.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.records: dict[Key, tuple[int, str, dict[str, Any]]] = {}
        self.key = ""
        for number, where, record in read_rows(source):
            self.key = self.key or ("id" if "problem" in record else "index")
            name = _named(record, self.key, where, "a problem")
            if name in self.records:
                hint = "" if Path(source).exists() else "; name a split, as in owner/name:test"
                raise UserError(
                    f"{where} has {self.key} {name!r} again, first at {self.records[name][1]}{hint}"
                )
            self.records[name] = (number, where, record)
        if not self.records:
            raise UserError(f"{source} holds no problem")

    def problems(self) -> tuple[dict[Key, Problem], list[str]]:
        """Problems by key, proven again, and why others of the published layout were left out.

        Raises:
            UserError: naming the line, when a problem of our own layout is not sound.
        """
        if self.key == "index":
            sound, rejects = prove_rows(self.records.values())
            return {row["index"]: problem for _, problem, row in sound}, rejects
        return {
            name: _our_problem(where, record) for name, (_, where, record) in self.records.items()
        }, []

    def rows(self) -> dict[Key, Mapping[str, Any]]:
        """Problems as rows for the published evaluator; published ones as they stand."""
        if self.key == "id":
            return {name: blog.row_of(problem) for name, problem in self.problems()[0].items()}
        for _, where, row in self.records.values():
            check_row(where, row)
        return {name: row for name, (_, _, row) in self.records.items()}


def _our_problem(where: str, record: dict[str, Any]) -> Problem:
    try:
        problem = Problem.from_json(record.get("problem"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    best = prove(problem)
    optimum = None if best is None else problem.objective(best)
    if optimum != problem.optimum:
        raise UserError(f"{where}: its optimum is {optimum}, not {problem.optimum} as it says")
    return problem


def _named(record: dict[str, Any], key: str, where: str, what: str) -> Key:
    """What the record calls its problem; UserError when it does not."""
    kind = _KEY_TYPES[key]
    if type(record.get(key)) is not kind:
        wanted = "a text" if kind is str else "a whole number"
        found = f"not {record[key]!r:.80}" if key in record else "which is missing"
        raise UserError(f'{where}: {what} needs "{key}", {wanted}, {found}')
    return record[key]


def read_samples(path: Path, problem_file: ProblemFile) -> list[dict[str, Any]]:
    """Completions of the problems of a file, in order.

    Raises:
        UserError: naming the line, when a key is missing or its problem unknown.
    """
    samples = []
    what = f"a completion of {problem_file.source}"
    for number, sample in read_jsonl(path):
        where = f"{path}:{number}"
        name = _named(sample, problem_file.key, where, what)
        if name not in problem_file.records:
            raise UserError(
                f"{where}: {problem_file.source} has no problem of {problem_file.key} {name!r:.80}"
            )
        if not isinstance(sample.get("completion"), str):
            raise UserError(f'{where}: {what} needs "completion", a text')
        samples.append(sample)
    if not samples:
        raise UserError(f"{path} holds no completion")
    return samples


def way_of_asking(folder: Path) -> EvalSection:
    """How a sampled arm was asked, all that was tuned or left open resolved."""
    asking = stage_facts(folder).get("asking")
    if asking is None:
        raise UserError(f"{folder} was sampled by an earlier version; FORCE=1 make eval redoes it")
    try:
        return dataclass_from(EvalSection, asking, str(folder / MANIFEST), "asking.")
    except UserError as error:  # of another version's keys, or by hand
        raise UserError(f"{error}; FORCE=1 make eval redoes it") from None
