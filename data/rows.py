"""Row: one problem as it travels through the stages, and the files that hold the rows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

from data.common.errors import UserError, require
from data.common.fields import is_text
from data.common.files import read_jsonl
from data.common.seeds import seed_of
from data.problem import Problem
from data.prompts import answer, computation, narration, prompt
from data.run import Run, goal
from data.sections import Arm, DataSection
from data.solver import (
    has_base_rules,
    is_computable,
    is_interval_problem,
    optimal_schedule,
    relaxed_optimum,
)


class Row(TypedDict):
    """One problem of a run.

    Attributes:
        id: unique in the run, ``<split>-<tier>-<number>``.
        problem: with its proven optimum; a file has its JSON form (``row_to_json``).
        optimum: weighted minutes.
        gold: an optimal answer, with its reasoning trace where the recipe wants one.
        prompt: what a model is asked.
    """

    id: str
    split: str
    tier: str
    problem: Problem
    optimum: int
    gold: str
    prompt: str


def gold_answer(problem: Problem, reasoning: str) -> str:
    """An optimal answer, the same one always.

    Args:
        reasoning: ``computed``, ``narrated`` or ``none``. Problems that are not computed event by
            event (``data.solver.is_computable``) have no computed trace.

    Raises:
        AssertionError: when the dynamic programme and CP-SAT disagree on the optimum.
    """
    best = optimal_schedule(problem)
    assert best is not None
    assert problem.objective(best) == problem.optimum, "dynamic programme and CP-SAT disagree"
    if reasoning == "computed" and is_computable(problem):
        return answer(best, computation(problem))
    return answer(best, narration(problem, best) if reasoning == "narrated" else None)


def trace_of(identity: str, data: DataSection) -> str:
    """``data.reasoning`` where the row of this id is of the share ``data.reasoned``; the rows of a
    smaller share are among those of a larger one."""
    reasons = random.Random(seed_of("reasoned", identity)).random() < data.reasoned
    return data.reasoning if reasons else "none"


def retold(rows: Iterable[Row], data: DataSection) -> list[Row]:
    """The rows with gold answers of which ``data.reasoned`` reason."""
    return [{**row, "gold": gold_answer(row["problem"], trace_of(row["id"], data))} for row in rows]


def longest_told(rows: Iterable[Row], data: DataSection, arms: Iterable[Arm]) -> list[Row]:
    """The rows with gold answers of the arm that is shown the most reasoning: none are longer."""
    shares = [arm.reasoned for arm in arms if arm.reasoned is not None]
    if not shares:
        return list(rows)
    return retold(rows, replace(data, reasoned=max(*shares, data.reasoned)))


def new_row(identity: str, split: str, tier: str, problem: Problem, reasoning: str) -> Row:
    """The row of a problem with a proven optimum."""
    return {
        "id": identity,
        "split": split,
        "tier": tier,
        "problem": problem,
        "optimum": problem.optimum,
        "gold": gold_answer(problem, reasoning),
        "prompt": prompt(problem),
    }


def row_to_json(row: Row) -> Mapping[str, object]:
    """The row as its line in a file has it."""
    return {**row, "problem": row["problem"].to_json()}


def problems_by_tier(rows: Iterable[Row]) -> dict[str, list[Problem]]:
    """The problems of rows, by tiers in the order in which they come."""
    problems: dict[str, list[Problem]] = {}
    for row in rows:
        problems.setdefault(row["tier"], []).append(row["problem"])
    return problems


def read_problems(path: Path) -> list[Row]:
    """Rows of a problem file, ``problem`` a checked Problem; UserError names a broken line."""
    rows: list[Row] = []
    first: dict[str, int] = {}
    for number, row in read_jsonl(path):
        for key in ("id", "tier", "prompt", "gold"):
            require(
                is_text(row.get(key)),
                f"{path}:{number}: {key!r} must be text, not {row.get(key)!r:.80}",
            )
        require(
            first.setdefault(row["id"], number) == number,
            f"{path}:{number} has id {row['id']!r} again, as line {first[row['id']]}",
        )
        try:
            problem = Problem.from_json(row.get("problem"))
            _check_optimum(problem)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        rows.append(cast(Row, {**row, "problem": problem}))
    require(rows, f"{path} has no problems; {goal('data', 'FORCE=1')} writes them again")
    return rows


def _check_optimum(problem: Problem) -> None:
    """Raise UserError where an optimum is surely not the proven one, so that no answer beats it.

    The cost of further rules is not proven again, nor what lacks base rules: that takes CP-SAT.
    """
    if not has_base_rules(problem):
        return
    best = problem.objective(relaxed_optimum(problem))
    exact = is_interval_problem(problem)
    require(
        problem.optimum == best or (problem.optimum < best and not exact),
        f'"optimum" is {problem.optimum}, the proven one {best}',
    )


def read_split(run: Run, split: str) -> list[Row]:
    """``read_problems`` of one split of a run; UserError unless the data stage ran to its end."""
    run.require_data(split)
    return read_problems(run.split(split))
