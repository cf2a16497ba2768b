"""Judges answers; CP-SAT confirms each distinct schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.files import finished, sha256, stage_facts, write_jsonl
from data.problem import Problem
from data.recipe import Recipe
from data.run import VERDICTS
from eval.answers.files import Key, read_answers
from rewards import blog
from rewards.parse import ParseFailure, parse, parse_leniently
from rewards.verify import Verdict, confirm, verify

#: What a verdict takes over from its sample, where the sample has it.
_CARRIED = ("index", "id", "arm", "sample", "finish_reason")


def score_rows(
    problems: Mapping[Key, Problem],
    samples: Iterable[dict[str, Any]],
    key: str = "id",
    lenient: bool = False,
) -> Iterator[dict[str, Any]]:
    """Judge samples ``{id or index, completion, …}`` in order, one verdict row each:
    ``{id, arm, sample, status, violations, objective, optimum, ratio}``.

    Each distinct (problem, schedule) is confirmed by CP-SAT once, about half a millisecond; a
    sample beyond that costs some 20 microseconds. ``lenient`` judges what can be read of a
    malformed answer too.

    Raises:
        DisagreementError: when CP-SAT does not confirm a verdict.
    """
    for sample in samples:
        problem = problems[sample[key]]
        verdict = _confirmed(problem, sample["completion"], lenient)
        yield {**_carried(sample), **verdict.to_json()}


def _confirmed(problem: Problem, completion: str, lenient: bool = False) -> Verdict:
    schedule = parse(completion)
    if lenient and isinstance(schedule, ParseFailure):
        schedule = parse_leniently(completion)
    if isinstance(schedule, ParseFailure):
        return verify(problem, completion)  # nothing that CP-SAT could confirm
    return confirm(problem, schedule)


def score_rows_as_published(
    rows: Mapping[Key, Mapping[str, Any]], samples: Iterable[dict[str, Any]], key: str = "index"
) -> Iterator[dict[str, Any]]:
    """The published evaluator's judgement of samples: ``{index, status, score}`` each."""
    for sample in samples:
        row = rows[sample[key]]
        status, score = blog.judge(row, sample["completion"])
        yield {**_carried(sample), "status": status, "score": score}


def _carried(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: sample[name] for name in _CARRIED if name in sample}


def judge_arm(
    problems: Mapping[str, Problem], samples: Path, lenient: bool = False
) -> Iterator[dict[str, Any]]:
    """Judge one arm's samples, write ``verdicts.jsonl`` beside them, and yield its rows.

    Raises:
        UserError: naming the line of a sample that is not as it was written.
    """
    answers = list(read_answers(samples, problems))
    rows = list(score_rows(problems, answers, lenient=lenient))
    write_jsonl(samples.with_name(VERDICTS), rows)
    for row, answer in zip(rows, answers, strict=True):
        # The answer itself, so that distinct ones can be counted.
        yield {**row, "answer": answer["completion"]}


def check_judged(recipe: Recipe, names: Iterable[str]) -> None:
    """Raise UserError unless what was judged of these arms is the samples that are there now."""
    folder = recipe.run.eval
    judged = stage_facts(folder)["inputs"] if finished(folder) else {}
    for path in (recipe.run.samples(arm) for arm in names):
        if judged.get(str(path)) != sha256(path):
            raise UserError(f"{path} is not judged yet, or has changed; `make eval` judges it")
