"""The published table of a run that repeats the published experiment, with what it leaves out.

``make blog`` trains and samples, then this judges every arm as the published evaluator does; with
``--blog FOLDER`` also the answers that came with the published files, ``completions-<model>.jsonl``
to the problems of ``test.jsonl``. Beside the published columns stand how many answers are optimal,
what the published reward pays, and what blind guessing and copying would reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from data.common.errors import require, run_main
from data.common.files import Stage
from data.common.seeds import seed_of
from data.policies import floor
from data.prompts import answer
from data.recipe import recipe_arguments, recipe_from
from data.run import Run, goal
from data.sections import LEVEL, RESAMPLES
from eval.answers.files import Key, ProblemFile, read_samples
from eval.answers.judge import score_rows_as_published
from eval.show.tables import Sheet, label, publish
from eval.stats.estimate import bootstrap_weights, by_name, cell, mean_interval
from rewards import blog
from rewards.blog import BlogStatus

#: The published table's columns.
_STATUS_HEADINGS = {
    BlogStatus.FORMAT_ERROR: "format",
    BlogStatus.FEWER_THAN_2_EVENTS: "<2",
    BlogStatus.NON_EXISTING: "non-existing",
    BlogStatus.UNSORTED: "unsorted",
    BlogStatus.OVERLAPS: "overlap",
    BlogStatus.VALID: "valid",
}


def judge_as_published(problems: Path, answers: Mapping[str, Path]) -> dict[str, Any]:
    """Judge the files of ``answers``, by model, to a file of problems; blind policies are measured
    on the problems that keep the rules.

    Returns:
        ``problems``, how many; ``guessed``, the share of them that one try of each blind policy
        solves; ``reward_of_copying``, what the published reward pays of 100 for copying every
        event; ``models``, a dict each: ``statuses``, how many answers the published evaluator
        gives each, its average ``score`` (0 where not valid), the mean ``reward``, and the share
        of ``optimal`` answers, an Estimate.

    Raises:
        UserError: when no problem keeps the rules, or an answer cannot be read.
    """
    problem_file = ProblemFile(str(problems))
    rows, sound = problem_file.rows(), list(problem_file.problems()[0].values())
    require(sound, f"{problems} holds no problem that keeps the rules")
    copies = [(blog.row_of(problem), answer(problem.events, "All of them.")) for problem in sound]
    return {
        "problems": len(rows),
        "guessed": {policy: by_k[1] for policy, by_k in floor(sound, (1,)).items()},
        "reward_of_copying": fmean(sum(blog.rewards(row, copy).values()) for row, copy in copies),
        "models": [_line(model, problem_file, rows, path) for model, path in answers.items()],
    }


def _line(
    model: str, problem_file: ProblemFile, rows: Mapping[Key, Mapping[str, Any]], path: Path
) -> dict[str, Any]:
    key, samples = problem_file.key, read_samples(path, problem_file)
    verdicts = list(score_rows_as_published(rows, samples, key))
    right: dict[Key, list[bool]] = {}
    for verdict in verdicts:
        # The score is minutes over minutes: 1 exactly where they are equal.
        right.setdefault(verdict[key], []).append(verdict["score"] == 1)
    shares = np.array([[fmean(tries)] for tries in right.values()])
    weights = bootstrap_weights(len(shares), RESAMPLES, seed_of(0, "blog"))
    paid = [sum(blog.rewards(rows[row[key]], row["completion"]).values()) for row in samples]
    score = sum(verdict["score"] for verdict in verdicts) / len(verdicts)  # as it rounds there
    return {
        "model": model,
        "answers": len(verdicts),
        "statuses": dict(Counter(str(verdict["status"]) for verdict in verdicts)),
        "score": score,
        "reward": fmean(paid),
        **by_name(["optimal"], mean_interval(shares, weights, LEVEL)),
    }


def published_sheet(title: str, table: Mapping[str, Any]) -> Sheet:
    """The published columns up to the score, and beside them what those leave out."""
    guessed = [f"{p.replace('_', ' ')} {100 * share:.1f}" for p, share in table["guessed"].items()]
    return Sheet(
        f"{title}: of 100 answers",
        ["model", *_STATUS_HEADINGS.values(), "score", "optimal", "reward"],
        [
            [
                line["model"],
                *(
                    f"{round(100 * line['statuses'].get(status, 0) / line['answers'], 1):g}"
                    for status in _STATUS_HEADINGS
                ),
                f"{line['score']:.4f}",
                cell(line["optimal"]),
                f"{line['reward']:.1f}",
            ]
            for line in table["models"]
        ],
        [
            f"{table['problems']:,} problems, {table['models'][0]['answers']:,} answers a model. "
            "An answer counts under the first rule that it breaks; score: the published average "
            "over all answers, 0 where not valid.",
            f"Optimal: valid, with the optimal score; {100 * LEVEL:.0f} % interval, problems "
            f"resampled {RESAMPLES:,} times. Without a model, in one try: {', '.join(guessed)}.",
            "Reward: what the published reward pays on average, of 100; "
            f"{table['reward_of_copying']:.1f} for copying every event of the prompt.",
        ],
    )


def run(run: Run, files: Path | None, force: bool = False) -> None:
    """Print the tables and write them to ``runs/<run>/eval/published``, unless that is done.

    Raises:
        UserError: when no arm was sampled to its end, or ``files`` holds no published answers.
    """
    sampled = {label(arm): run.samples(arm) for arm in run.sampled()}
    require(sampled, f"{run.eval} has no finished samples; {goal('blog')} draws them")
    groups = {"this run": (run.split("test"), sampled)}
    if files:
        groups["published answers"] = (files / "test.jsonl", answers_in(files))
    inputs = [file for problems, by in groups.values() for file in (problems, *by.values())]
    stage = Stage(run.published, "blog", {"arms": list(sampled)}, inputs)
    if not stage.begin_unless_done(force):
        return
    tables = {title: judge_as_published(*group) for title, group in groups.items()}
    sheets = [published_sheet(title, table) for title, table in tables.items()]
    publish(stage.folder / "blog.json", tables, sheets)
    stage.finish(["blog.json", "blog.md"])
    print(f"blog: {stage.folder} has blog.json and blog.md", flush=True)


def answers_in(files: Path) -> dict[str, Path]:
    """The answers that came with the published files, by model.

    Raises:
        UserError: when there are none.
    """
    paths = sorted(files.glob("completions-*.jsonl"))
    require(paths, f"{files} has no completions-<model>.jsonl; BLOG= (--blog) names their folder")
    return {path.stem.removeprefix("completions-"): path for path in paths}


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument(
        "--blog", type=Path, help="folder of test.jsonl and completions-<model>.jsonl"
    )
    arguments = parser.parse_args()
    run(recipe_from(arguments).run, arguments.blog, arguments.force)


if __name__ == "__main__":
    run_main(main)
