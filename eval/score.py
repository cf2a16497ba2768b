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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from data.common.console import plain_console, say
from data.common.errors import UserError, require, run_main
from data.common.files import write_jsonl
from data.common.flags import Parser
from data.policies import floor
from data.problem import Problem
from eval.answers.files import Key, Layout, ProblemFile, SampleRow, VerdictRow, read_samples
from eval.answers.judge import PublishedRow, score_rows, score_rows_as_published
from eval.show.report_sheets import pass_sheet
from eval.show.tables import Sheet, label, print_sheets
from eval.stats.passk import ks_for
from eval.stats.summary import summarise_arms
from rewards.blog import BlogStatus
from rewards.verify import Status


def summary(verdicts: Sequence[Mapping[str, Any]], statuses: Iterable[str], measure: str) -> Sheet:
    """Counts of completions by status, and the mean of ``measure``, a column for each arm."""
    arms = _by_arm(verdicts)
    counts = [Counter(verdict["status"] for verdict in rows) for rows in arms.values()]
    means = (fmean(row[measure] for row in rows) for rows in arms.values())
    rows = [
        *([status, *(str(count[status]) for count in counts)] for status in statuses),
        ["judged", *(str(len(rows)) for rows in arms.values())],
        [f"mean {measure}", *(f"{mean:.4f}" for mean in means)],
    ]
    return Sheet("Verdicts", ["status", *arms], rows, [])


def _by_arm(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        arms.setdefault(str(verdict.get("arm", "completions")), []).append(verdict)
    return arms


def pass_sheets(
    problem_file: ProblemFile, problems: Mapping[Key, Problem], verdicts: Sequence[VerdictRow]
) -> Iterator[Sheet]:
    """pass@k of every arm beside blind guessing, tier by tier, on the problems that every arm
    answered; k ends at the fewest answers to one of them."""
    arms = _by_arm({**verdict, "id": str(verdict[problem_file.key])} for verdict in verdicts)
    counts = {arm: Counter(row["id"] for row in rows) for arm, rows in arms.items()}
    tiers: dict[str, list[Key]] = {}
    for name in problems:
        tier = problem_file.records[name][1].get("tier", "all problems")
        tiers.setdefault(str(tier), []).append(name)
    for tier, names in tiers.items():
        lacking = {arm: sum(not count[str(n)] for n in names) for arm, count in counts.items()}
        notes = [
            f"{lacks} of {len(names)} problems have no answer of {label(arm)}"
            for arm, lacks in lacking.items()
            if lacks
        ]
        common = [n for n in names if all(count[str(n)] for count in counts.values())]
        shared = {str(name): tier for name in common}
        if not shared:
            yield Sheet(f"{tier}: no problem that every arm answered", [], [], notes)
            continue
        fewest = min(count[name] for count in counts.values() for name in shared)
        report = summarise_arms(
            tiers=[tier],
            main="",
            floors={tier: floor([problems[name] for name in common], ks_for(fewest))},
            verdict_rows={
                arm: [row for row in rows if row["id"] in shared] for arm, rows in arms.items()
            },
            problems_by_id=shared,
            seed=0,
            comparisons=(),
            alike=False,
        )
        sheet = pass_sheet(report, tier)
        yield replace(sheet, notes=[*sheet.notes, *notes])


def _each_once(samples: Sequence[SampleRow], key: Layout) -> list[SampleRow]:
    """Rows of the same problem, arm, number and text are one answer; without numbers all count."""
    once: dict[tuple[str, ...], SampleRow] = {}
    for place, row in enumerate(samples):
        number = row.get("sample", f"row {place}")
        once.setdefault((*map(str, (row[key], row.get("arm"), number)), row["completion"]), row)
    return list(once.values())


def _options() -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
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
    parser.add_argument(
        "--lenient", action="store_true", help="read malformed answers too, as far as can be"
    )
    parser.add_argument("--out", type=Path, help="write one verdict a judged completion here")
    options = parser.parse_args()
    require(
        not (options.lenient and options.judge == "blog"),
        "--judge blog reads as the published evaluator does; leave --lenient out",
    )
    for given in (Path(options.problems), options.completions):
        if options.out and options.out.resolve() == given.resolve():
            raise UserError(f"OUT= (--out) {options.out} would replace an input; name another file")
    return options


def _judge(
    problem_file: ProblemFile, samples: Sequence[SampleRow], lenient: bool, console: Console
) -> list[VerdictRow]:
    """Judge the samples of sound problems, print what came out, and say which problems and how
    many are left out."""
    problems, rejects = problem_file.problems()
    for reject in rejects:
        say(console, f"left out: {reject}")
    judged = [sample for sample in samples if sample[problem_file.key] in problems]
    if skipped := len(samples) - len(judged):
        note = f"{skipped} completions of problems left out are skipped; --judge blog judges"
        say(console, f"{note} them as published")
    require(judged, f"all completions are of problems of {problem_file.source} left out")
    verdicts = list(score_rows(problems, judged, problem_file.key, lenient))
    print_sheets([summary(verdicts, Status, "ratio")], console)
    print_sheets(pass_sheets(problem_file, problems, verdicts), console)
    return verdicts


def main() -> None:
    options = _options()
    console = plain_console()
    problem_file = ProblemFile(options.problems)
    rows = read_samples(options.completions, problem_file)
    samples = _each_once(rows, problem_file.key)
    if again := len(rows) - len(samples):
        say(console, f"{again} lines repeat an answer, which counts once")
    verdicts: Sequence[VerdictRow] | Sequence[PublishedRow]
    if options.judge == "blog":
        verdicts = list(score_rows_as_published(problem_file.rows(), samples, problem_file.key))
        print_sheets([summary(verdicts, BlogStatus, "score")], console)
    else:
        verdicts = _judge(problem_file, samples, options.lenient, console)
    if options.out:
        write_jsonl(options.out, verdicts)
        say(console, f"{options.out}: {len(verdicts)} verdicts")


if __name__ == "__main__":
    run_main(main)
