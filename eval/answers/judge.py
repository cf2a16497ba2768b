"""Judges answers; CP-SAT confirms each distinct schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from data.common.console import paced
from data.common.errors import UserError
from data.common.files import finished, sha256, stage_facts, write_jsonl
from data.problem import Problem
from data.run import VERDICTS, Run, goal
from eval.answers.files import AnswerPlace, Key, Layout, SampleRow, VerdictRow, read_answers
from rewards import blog
from rewards.parse import ParseFailure
from rewards.verify import confirm, read, unparsable

#: Keys that a verdict copies from its sample, where the sample has them.
_CARRIED = ("index", "id", "arm", "sample", "finish_reason")


class PublishedRow(AnswerPlace):
    """The published evaluator's judgement of one answer."""

    status: str
    score: float


def score_rows(
    problems: Mapping[Any, Problem],
    samples: Iterable[SampleRow],
    key: Layout = "id",
    lenient: bool = False,
) -> Iterator[VerdictRow]:
    """Judge samples in order, one verdict each; ``key`` names their problems.

    Each distinct (problem, schedule) is confirmed by CP-SAT once, about half a millisecond; a
    further sample costs some 20 microseconds. ``lenient`` judges the readable part of a malformed
    answer too.

    Raises:
        DisagreementError: when CP-SAT does not confirm a verdict.
    """
    for sample in samples:
        problem = problems[sample[key]]
        answer = read(problem, sample["completion"], sample.get("finish_reason"), lenient)
        verdict = (
            unparsable(problem, answer)
            if isinstance(answer, ParseFailure)
            else confirm(problem, answer)
        )
        yield cast(VerdictRow, {**_carried(sample), **verdict.to_json()})


def score_rows_as_published(
    rows: Mapping[Key, Mapping[str, Any]], samples: Iterable[SampleRow], key: Layout = "index"
) -> Iterator[PublishedRow]:
    """The published evaluator's judgement of samples."""
    for sample in samples:
        status, score = blog.judge(rows[sample[key]], sample["completion"])
        yield cast(PublishedRow, {**_carried(sample), "status": status, "score": score})


def _carried(sample: SampleRow) -> dict[str, object]:
    row: Mapping[str, object] = sample
    return {name: row[name] for name in _CARRIED if name in row}


def judge_arm(
    problems: Mapping[str, Problem], samples: Path, lenient: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Judge one arm's samples, write ``verdicts.jsonl`` beside them, and yield its rows, each with
    the text that it judges as ``answer``, by which distinct answers are counted.

    Raises:
        UserError: naming the line of a sample that is not as it was written.
    """
    answers = list(read_answers(samples, problems))
    judged = score_rows(problems, answers, lenient=lenient)
    rows = list(paced(judged, len(answers), f"judging {samples.parent.name}", " answers"))
    write_jsonl(samples.with_name(VERDICTS), rows)
    for row, answer in zip(rows, answers, strict=True):
        yield {**row, "answer": answer["completion"]}


def check_judged(run: Run, arms: Iterable[str]) -> None:
    """Raise UserError unless the judged samples of these arms are the ones that are there now."""
    judged = stage_facts(run.eval)["inputs"] if finished(run.eval) else {}
    for path in map(run.samples, arms):
        if judged.get(str(path)) != sha256(path):
            raise UserError(f"{path} is not judged yet, or has changed; {goal('eval')} judges it")
