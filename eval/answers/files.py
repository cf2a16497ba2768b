"""Reads the files of answers and verdicts, ours and anyone's; every mistake names its line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from data.common.errors import UserError, brief, require
from data.common.fields import Limit, dataclass_from, one_of
from data.common.files import MANIFEST, read_jsonl, stage_facts
from data.problem import Problem
from data.published import RawRow, check_row, prove_rows, read_rows
from data.run import VERDICTS, goal
from data.sections import EvalSection
from data.solver import prove
from rewards import blog
from rewards.parse import reopened
from rewards.reward import text_of
from rewards.verify import Status

#: The key that names a problem, in our layout or the published one, and its values.
Layout = Literal["id", "index"]
Key = str | int


class AnswerPlace(TypedDict, total=False):
    """The arm and problem of an answer; ours have every key but ``index``, others at least a name.

    Attributes:
        sample: its number among the answers of this arm to this problem, from 0.
        finish_reason: ``stop``, or ``length`` where the answer was cut off.
    """

    index: int
    id: str
    arm: str
    sample: int
    finish_reason: str | None


class SampleRow(AnswerPlace):
    """One answer; ``tokens`` were drawn, the end token included."""

    completion: str
    tokens: NotRequired[int]


class VerdictRow(AnswerPlace):
    """The judgement of one answer, see ``rewards.verify.Verdict``."""

    status: str
    violations: list[str]
    objective: int
    optimum: int
    ratio: float


class AnsweredRow(SampleRow, VerdictRow):
    """One answer with its verdict."""


#: A right line of completions, by the layout of their problems.
_RIGHT: dict[Layout, str] = {
    "id": '{"id": "test-dense-00000", "completion": "<think>…</think><schedule>…</schedule>"}',
    "index": '{"index": 0, "completion": "<think>…</think><schedule>…</schedule>"}',
}
#: Names that servers have for the reason why an answer ended.
_REASONS = ("finish_reason", "stop_reason", "done_reason")

_TEXT = Limit(lambda value: isinstance(value, str), "a text")
_WHOLE = Limit(lambda value: type(value) is int, "a whole number")
_SAMPLE = {"arm": _TEXT, "completion": _TEXT, "finish_reason": _TEXT, "tokens": _WHOLE}
_VERDICT = {
    "status": one_of(*Status),
    "violations": Limit(
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "a list of texts",
    ),
    "objective": _WHOLE,
    "ratio": Limit(
        lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"
    ),
    "finish_reason": Limit(lambda value: value is None or isinstance(value, str), "a text or null"),
}


def read_answers(path: Path, ids: Container[str], by: str = "") -> Iterator[SampleRow]:
    """The rows of a ``samples.jsonl`` of answers to the problems ``ids``, drawn ``by`` a command,
    ``make eval`` by default.

    Raises:
        UserError: naming the line that differs from what the command writes, and the way out.
    """
    rows = _checked_rows(path, ids, _SAMPLE, f"{by or goal('eval')} draws")
    return cast(Iterator[SampleRow], rows)


def read_verdicts(path: Path, ids: Container[str]) -> Iterator[VerdictRow]:
    """The rows of a ``verdicts.jsonl``, like ``read_answers``."""
    rows = _checked_rows(path, ids, _VERDICT, f"{goal('eval')} judges")
    return cast(Iterator[VerdictRow], rows)


def answered(samples: Path, ids: Collection[str]) -> Iterator[AnsweredRow]:
    """Every answer of a ``samples.jsonl`` to the problems ``ids``, with its verdict from the file
    beside it. Streams: a million answers need no memory.

    Raises:
        UserError: naming the file and line that differs from what ``make eval`` writes, or where
            the two files are of different answers, or lack a problem.
    """
    path, lacking = samples.with_name(VERDICTS), set(ids)
    for sample, verdict in zip_longest(read_answers(samples, ids), read_verdicts(path, ids)):
        place, judged = (row and (row["id"], row["sample"]) for row in (sample, verdict))
        if place != judged:
            raise UserError(
                f"{path} is not of the answers beside it; delete it, and {goal('eval')} judges "
                "them again"
            )
        lacking.discard(sample["id"])
        yield cast(AnsweredRow, {**verdict, **sample})
    require(not lacking, f"{samples} lacks problems; delete it, and {goal('eval')} draws it again")


def _checked_rows(
    path: Path, ids: Container[str], limits: Mapping[str, Limit], does: str
) -> Iterator[dict[str, Any]]:
    """Rows whose keys keep their ``limits`` and whose samples count from 0 for every problem."""
    require(path.is_file(), f"{path} does not exist; {does} it")
    count: Counter[str] = Counter()
    try:
        for number, row in read_jsonl(path):
            where, name = f"{path}:{number}", row.get("id")
            if not isinstance(name, str) or name not in ids:
                raise UserError(f'{where}: "id" is {brief(name)}, no problem that was asked')
            if type(row.get("sample")) is not int or row["sample"] != count[name]:
                raise UserError(
                    f'{where}: "sample" is {brief(row.get("sample"))}, the next one of {name} '
                    f"is {count[name]}"
                )
            count[name] += 1
            for key, (holds, words) in limits.items():
                if not holds(row.get(key)):
                    raise UserError(f'{where}: "{key}" must be {words}, not {brief(row.get(key))}')
            yield row
    except UserError as error:
        raise UserError(f"{error}; delete {path.name}, and {does} it again") from None


def way_of_asking(folder: Path) -> EvalSection:
    """The way in which a sampled arm was asked: all is resolved that was tuned or left open.

    Raises:
        UserError: when its manifest does not say, or not in the keys of this version.
    """
    asking = stage_facts(folder).get("asking")
    try:
        return dataclass_from(EvalSection, asking, str(folder / MANIFEST), "asking.")
    except UserError as error:
        raise UserError(f"{error}; {goal('eval', 'FORCE=1')} redoes it") from None


class ProblemFile:
    """The problems of one file (or hub dataset) in either layout.

    Attributes:
        key: the key that names its problems.
        records: (where it stands, record) of each problem by its name.

    Raises:
        UserError: naming the line without a name, or with a name that an earlier line has.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.key: Layout = "id"
        self.records: dict[Key, RawRow] = {}
        for where, record in read_rows(source):
            if not self.records:
                self.key = "id" if "problem" in record else "index"
            if self.key == "index":
                record = {"index": len(self.records), **record}
            name = _named(record, self.key, where, "a problem")
            if name in self.records:
                first, _ = self.records[name]
                raise UserError(f"{where} has {self.key} {name!r} again, first at {first}")
            self.records[name] = (where, record)
        require(self.records, f"{source} holds no problem")

    def problems(self) -> tuple[dict[Key, Problem], list[str]]:
        """Problems by name, proven again, and why unsound ones of the published layout are left
        out.

        Raises:
            UserError: naming the line, when a problem of our own layout is not sound.
        """
        if self.key == "index":
            sound, rejects = prove_rows(self.records.values())
            return {row["index"]: problem for problem, row in sound}, rejects
        return {name: _our_problem(*record) for name, record in self.records.items()}, []

    def rows(self) -> dict[Key, Mapping[str, Any]]:
        """Problems as rows for the published evaluator; published ones as they stand."""
        if self.key == "id":
            return {name: blog.row_of(problem) for name, problem in self.problems()[0].items()}
        for where, row in self.records.values():
            check_row(where, row)
        return {name: row for name, (_, row) in self.records.items()}


def _our_problem(where: str, record: Mapping[str, Any]) -> Problem:
    try:
        problem = Problem.from_json(record.get("problem", {}))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    best = prove(problem)
    optimum = None if best is None else problem.objective(best)
    says = f"{where}: its optimum is {optimum}, not {problem.optimum} as it says"
    require(optimum == problem.optimum, says)
    return problem


def _named(record: Mapping[str, Any], key: Layout, where: str, what: str, right: str = "") -> Key:
    """The name that a record gives its problem; UserError when it gives none."""
    kind, words = (str, "a text") if key == "id" else (int, "a whole number")
    name = record.get(key)
    require(type(name) is kind, f'{where}: {what} needs "{key}", {words}, not {brief(name)}{right}')
    return cast(Key, name)


def _unfolded(line: Mapping[str, Any], key: Layout) -> Iterator[dict[str, Any]]:
    """The completions of a line: itself, with its conversation under ``messages``; or each choice
    of a response of OpenAI's API, a line of a batch too, whose problem is its ``custom_id``: those
    of a batch come in any order."""
    row = {"completion": line.get("messages"), **line}
    if "custom_id" in line:
        row["id"] = name = line["custom_id"]
        if key == "index":
            row["index"] = int(name) if re.fullmatch("[0-9]{1,9}", str(name)) else name
    response = line.get("response")
    body = response.get("body") if isinstance(response, Mapping) else line
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not choices:
        yield row
        return
    for choice in choices:
        said = choice if isinstance(choice, Mapping) else {}
        text = said.get("message", said.get("text"))
        yield {**row, "completion": text, "finish_reason": said.get("finish_reason")}


def read_samples(path: Path, problem_file: ProblemFile) -> list[SampleRow]:
    """Completions of the problems of a file, in order.

    Where the problems count from 0, so do an arm's completions that do not name theirs.
    Conversations become their answer, and reasoning that the template opened is opened. A line may
    be what OpenAI's API returns (``_unfolded``).

    Raises:
        UserError: naming the line, and showing a right one, when a key is missing or its problem
            unknown.
    """
    samples, key, source = [], problem_file.key, problem_file.source
    right = f"; a right line: {_RIGHT[key]}"
    try:
        rows = list(read_jsonl(path))
    except UserError as error:
        raise UserError(f"{error}{right}") from None
    count: Counter[str] = Counter()
    for number, line in rows:
        where, what = f"{path}:{number}", f"a completion of {source}"
        arm = str(line.get("arm"))
        line = {"index": count[arm], **line} if key == "index" else line
        count[arm] += 1
        for sample in _unfolded(line, key):
            name = _named(sample, key, where, what, right)
            unknown = f"{where}: {source} has no problem of {key} {brief(name)}{right}"
            require(name in problem_file.records, unknown)
            try:
                text = text_of(sample.get("completion"))
            except UserError as error:
                raise UserError(f'{where}: {what} needs "completion", {error}{right}') from None
            if sample.get("reasoning_opened_by_template") is True:
                text = reopened(text)
            reasons = (sample.get(name) for name in _REASONS)
            reason = next((one for one in reasons if isinstance(one, str)), None)
            sample.pop("finish_reason", None)
            sample |= {"completion": text, **({"finish_reason": reason} if reason else {})}
            samples.append(cast(SampleRow, sample))
    require(samples, f"{path} holds no completion")
    return samples
