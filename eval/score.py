"""Judge completions of any model: status counts, and one verdict a completion.

Sampling and judging meet only at a file, so any model can be judged, and as often as one likes.
Two layouts are read, distinguished by their keys:

- ours: problems ``{id, split, tier, problem, …}``, completions ``{id, arm, sample, completion}``;
- published: problems ``{index, events, priority_events, optimal_score}``, completions ``{index,
  completion}``, where several rows with the same index are several samples of one problem.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from data.common.errors import UserError, run_main
from data.common.files import write_jsonl
from eval.answers.files import ProblemFile, SampleRow, VerdictRow, read_samples
from eval.answers.judge import PublishedRow, score_rows, score_rows_as_published
from eval.show.tables import Sheet, print_sheets
from rewards.blog import BlogStatus
from rewards.verify import Status


def summary(verdicts: Sequence[Mapping[str, Any]], statuses: Iterable[str], measure: str) -> Sheet:
    """How many completions have each status, and the mean of ``measure``, a column for each arm."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        arms.setdefault(str(verdict.get("arm", "completions")), []).append(verdict)
    counts = [Counter(verdict["status"] for verdict in rows) for rows in arms.values()]
    means = (fmean(row[measure] for row in rows) for rows in arms.values())
    rows = [
        *([status, *(str(count[status]) for count in counts)] for status in statuses),
        ["judged", *(str(len(rows)) for rows in arms.values())],
        [f"mean {measure}", *(f"{mean:.4f}" for mean in means)],
    ]
    return Sheet("Verdicts", ["status", *arms], rows, [])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.score", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--problems",
        required=True,
        help="problems, one a line; or a hub dataset of the published layout, owner/name:split",
    )
    parser.add_argument(
        "--completions",
        required=True,
        type=Path,
        help="answers, one a line: {index, completion}, or {id, arm, sample, completion}",
    )
    parser.add_argument(
        "--judge",
        choices=("ours", "blog"),
        default="ours",
        help="ours, confirmed by CP-SAT; or what the published evaluator would say of every row",
    )
    parser.add_argument("--out", type=Path, help="write one verdict a judged completion here")
    options = parser.parse_args()
    for given in (Path(options.problems), options.completions):
        if options.out and options.out.resolve() == given.resolve():
            raise UserError(f"--out {options.out} would replace an input; name another file")
    return options


def _judge(
    problem_file: ProblemFile, samples: Sequence[SampleRow], console: Console
) -> list[VerdictRow]:
    """Judge the samples of sound problems, and say which problems and how many are left out."""
    problems, rejects = problem_file.problems()
    for reject in rejects:
        console.print(f"left out: {reject}", markup=False, soft_wrap=True)
    judged = [sample for sample in samples if sample[problem_file.key] in problems]
    if skipped := len(samples) - len(judged):
        note = f"{skipped} completions of problems left out are skipped; --judge blog judges"
        console.print(f"{note} them as published", soft_wrap=True)
    if not judged:
        raise UserError(f"all completions are of problems of {problem_file.source} left out")
    return list(score_rows(problems, judged, problem_file.key))


def main() -> None:
    options = _options()
    console = Console(highlight=False)
    problem_file = ProblemFile(options.problems)
    samples = read_samples(options.completions, problem_file)
    verdicts: Sequence[VerdictRow] | Sequence[PublishedRow]
    if options.judge == "blog":
        verdicts = list(score_rows_as_published(problem_file.rows(), samples, problem_file.key))
        print_sheets([summary(verdicts, BlogStatus, "score")], console)
    else:
        verdicts = _judge(problem_file, samples, console)
        print_sheets([summary(verdicts, Status, "ratio")], console)
    if options.out:
        write_jsonl(options.out, verdicts)
        console.print(f"{options.out}: {len(verdicts)} verdicts", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
