"""The published experiment, reproduced, and what its table does not say: ``make blog``.

``--begin`` prints where the recipe departs from the published settings and writes the recipe of the
run; without it, after training and sampling, the published table follows: the published evaluator's
judgement of every arm, and of the answers that came with the published files. Beside it stands what
that table leaves out: how many answers are optimal, what blind guessing and copying would reach.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import Stage, finished, write_json, write_text
from data.common.seeds import seed_of
from data.policies import floor
from data.problem import Problem
from data.prompts import answer
from data.published import read_rows
from data.recipe import Recipe, load_recipe, recipe_arguments, recipe_from
from data.sections import LEVEL, RESAMPLES
from eval.answers.files import Key, Layout, ProblemFile, SampleRow, read_samples
from eval.answers.judge import score_rows_as_published
from eval.show.tables import Sheet, label, markdown_of, print_sheets
from eval.stats.estimate import Estimate, bootstrap_indices, cell, mean_interval
from rewards import blog
from rewards.blog import BlogStatus

#: The published settings.
PUBLISHED = Path(__file__).parents[1] / "pipeline" / "recipes" / "blog-7b.yaml"
#: Where the tables lie in a run's ``eval``, and as what.
FOLDER, OUTPUTS = "published", ("blog.json", "blog.md")
#: What says nothing about the experiment.
_NAMES = ("name", "path", "run_name")
#: The published table's columns.
_HEADINGS = {
    BlogStatus.FORMAT_ERROR: "format",
    BlogStatus.FEWER_THAN_2_EVENTS: "<2",
    BlogStatus.NON_EXISTING: "non-existing",
    BlogStatus.UNSORTED: "unsorted",
    BlogStatus.OVERLAPS: "overlap",
    BlogStatus.VALID: "valid",
}


# --- the recipe ------------------------------------------------------------------------------


def differences(published: Recipe, ours: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, published value, our value) of every setting in which two recipes differ; None where a
    recipe leaves it out."""
    found, here = (
        _flat({key: value for key, value in asdict(one).items() if key not in _NAMES})
        for one in (published, ours)
    )
    return [
        (key, found.get(key), here.get(key))
        for key in {**found, **here}
        if found.get(key) != here.get(key)
    ]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def departures(recipe: Recipe) -> Sheet:
    """Where a recipe departs from the published settings, as a table."""
    found = differences(load_recipe(PUBLISHED), recipe)
    return Sheet(
        f"{recipe.path}: settings that are not as published ({PUBLISHED.name})",
        ["setting", "published", "here"],
        [[key, *("none" if value is None else str(value) for value in two)] for key, *two in found],
        [] if found else ["None: every setting is as published."],
    )


def begin(recipe: Recipe, files: Path | None, out: Path) -> None:
    """Write the recipe of the run: ``recipe``, its published data taken from ``files`` if given.

    Raises:
        UserError: when the published data is neither there nor to be had from the hub, or
            ``recipe`` is the one that this writes.
    """
    if recipe.path.resolve() == out.resolve():
        raise UserError(
            f"{out} is what `make blog` writes from another recipe; RECIPE= must name that one, or "
            "be left out"
        )
    tiers = {name: dict(use) for name, use in recipe.data.tiers.items()}
    for use in tiers.values():
        if "source" in use:
            if files is not None:
                use["source"] = f"{files}/{{split}}.jsonl"
            _check_source(use["source"])
    content = {
        "extends": os.path.relpath(recipe.path, out.parent),
        "name": out.parent.name,
        "data": {"tiers": tiers},
    }
    head = "# Written by `make blog`, which writes it anew.\n"
    write_text(out, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _check_source(source: str) -> None:
    """Raise UserError, with the way out, unless both files of the published data can be read."""
    for split in ("train", "test"):
        try:
            next(iter(read_rows(source.replace("{split}", split))), None)
        except UserError as error:
            raise UserError(
                f"{error}; BLOG=folder names one that holds the published train.jsonl and "
                "test.jsonl"
            ) from None


# --- the table -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Problems that some models answered, and what answers without thought reach there.

    Attributes:
        guessed: by each blind policy, the share of problems that one try solves.
        copied: what the published reward pays of 100 for copying every event.
    """

    rows: Mapping[Key, Mapping[str, Any]]
    guessed: Mapping[str, float]
    copied: float


@dataclass(frozen=True)
class Line:
    """One model's answers.

    Attributes:
        statuses: how many answers the published evaluator gives each status.
        score: its average score, 0 where not valid.
        reward: mean of what the published reward pays, of 100.
        optimal: share of answers that are valid with the optimal score.
    """

    model: str
    answers: int
    statuses: Mapping[str, int]
    score: float
    reward: float
    optimal: Estimate


def asked(problem_file: ProblemFile) -> Asked:
    """The problems of a file; blind policies are held against those that keep the rules."""
    problems = list(problem_file.problems()[0].values())
    return Asked(
        problem_file.rows(),
        {policy: by_k[1] for policy, by_k in floor(problems, (1,)).items()},
        fmean(map(_copied, problems)),
    )


def _copied(problem: Problem) -> float:
    copy = answer(problem.events, "Every event is taken.")
    return sum(blog.rewards(blog.row_of(problem), copy).values())


def line(model: str, problems: Asked, samples: Sequence[SampleRow], key: Layout) -> Line:
    """Judge one model's answers, each of ``samples`` with its problem's name under ``key``."""
    verdicts = list(score_rows_as_published(problems.rows, samples, key))
    right: dict[Key, list[bool]] = {}
    for verdict in verdicts:
        # The score is minutes over minutes: 1 exactly where they are equal.
        right.setdefault(verdict[key], []).append(verdict["score"] == 1)
    shares = np.array([[fmean(found)] for found in right.values()])
    rng = np.random.default_rng(seed_of(0, "blog"))
    indices = bootstrap_indices(len(shares), RESAMPLES, rng)
    paid = [
        sum(blog.rewards(problems.rows[sample[key]], sample["completion"]).values())
        for sample in samples
    ]
    return Line(
        model,
        len(verdicts),
        dict(Counter(str(verdict["status"]) for verdict in verdicts)),
        sum(verdict["score"] for verdict in verdicts) / len(verdicts),  # as it rounds there
        fmean(paid),
        mean_interval(shares, indices, LEVEL)[0],
    )


def lines_of_run(recipe: Recipe, sampled: Sequence[str]) -> tuple[Asked, list[Line]]:
    """The arms of the run that were sampled to their end."""
    problem_file = ProblemFile(str(recipe.run.split("test")))
    problems = asked(problem_file)
    return problems, [
        line(label(arm), problems, read_samples(recipe.run.samples(arm), problem_file), "id")
        for arm in sampled
    ]


def lines_of_files(files: Path) -> tuple[Asked, list[Line]]:
    """Every model whose answers (``completions-<model>.jsonl``) came with the published files."""
    problem_file = ProblemFile(str(files / "test.jsonl"))
    problems = asked(problem_file)
    return problems, [
        line(
            path.stem.removeprefix("completions-"),
            problems,
            read_samples(path, problem_file),
            problem_file.key,
        )
        for path in _answers_in(files)
    ]


def _answers_in(files: Path) -> list[Path]:
    return sorted(files.glob("completions-*.jsonl"))


def sheets(title: str, problems: Asked, lines: Sequence[Line]) -> Iterator[Sheet]:
    """The published table, and beside it what it does not say."""
    yield Sheet(
        f"{title}: the published evaluator, of 100 answers",
        ["model", *_HEADINGS.values(), "score"],
        [
            [
                one.model,
                *(_of_100(one.statuses.get(status, 0), one.answers) for status in _HEADINGS),
                f"{one.score:.4f}",
            ]
            for one in lines
        ],
        [
            f"{len(problems.rows):,} problems, {_each(lines)}. An answer counts under the first "
            "rule that it breaks; score: the average over all answers, 0 where not valid."
        ],
    )
    guess = 100 * problems.guessed["random_maximal"]
    policies = ", ".join(
        f"{p.replace('_', ' ')} {100 * s:.1f}" for p, s in problems.guessed.items()
    )
    yield Sheet(
        f"{title}: what that table does not say",
        ["model", "optimal, %", "guessed, %", "reward", "reward of copying"],
        [
            [
                one.model,
                cell(asdict(one.optimal)),
                f"{guess:.1f}",
                f"{one.reward:.1f}",
                f"{problems.copied:.1f}",
            ]
            for one in lines
        ],
        [
            f"Optimal: valid, with the optimal score; {100 * LEVEL:.0f} % interval, problems "
            f"resampled {RESAMPLES:,} times. Guessed: by a random maximal schedule.",
            f"Solved without thought in one try, in %: {policies}.",
            "Reward: what the published reward pays on average, of 100, for the model's answers "
            "and for copying every event of the prompt.",
        ],
    )


def _of_100(count: int, answers: int) -> str:
    return f"{round(100 * count / answers, 1):g}"


def _each(lines: Sequence[Line]) -> str:
    counts = sorted({one.answers for one in lines})
    return " or ".join(f"{count:,}" for count in counts) + " answers a model"


def to_json(problems: Asked, lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "problems": len(problems.rows),
        "guessed": dict(problems.guessed),
        "reward_of_copying": problems.copied,
        "models": [asdict(one) for one in lines],
    }


def run(recipe: Recipe, files: Path | None, force: bool = False) -> None:
    """Print the tables and write them to ``runs/<run>/eval/published``, unless that is up to date.

    Raises:
        UserError: when no arm was sampled to its end.
    """
    sampled = [arm for arm in recipe.run.names if finished(recipe.run.samples(arm).parent)]
    if not sampled:
        raise UserError(
            f"{recipe.run.folder / 'eval'} has no finished samples; `make blog` draws them"
        )
    departed = departures(recipe)
    inputs = [recipe.run.split("test"), *(recipe.run.samples(arm) for arm in sampled)]
    if files is not None:
        inputs += [files / "test.jsonl", *_answers_in(files)]
    settings = {"arms": sampled, "differences": departed.rows}
    stage = Stage(recipe.run.eval / FOLDER, "blog", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    console = plain_console()
    groups = {"this run": lines_of_run(recipe, sampled)}
    notes = []
    if files is None:
        notes.append("BLOG=folder with the published files adds the answers that came with them.")
    else:
        groups["published answers"] = lines_of_files(files)
        if not groups["published answers"][1]:
            del groups["published answers"]
            notes.append(f"{files} has no answers (completions-<model>.jsonl).")
    found = [
        sheet
        for title, (problems, lines) in groups.items()
        for sheet in sheets(title, problems, lines)
    ]
    print_sheets(found, console)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    write_json(
        stage.folder / OUTPUTS[0],
        {
            "differences": departed.rows,
            **{title: to_json(problems, lines) for title, (problems, lines) in groups.items()},
        },
    )
    write_text(stage.folder / OUTPUTS[1], markdown_of([*found, departed]))
    stage.finish(OUTPUTS)
    print(f"blog: {stage.folder} has {', '.join(OUTPUTS)}", flush=True)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument(
        "--files",
        type=Path,
        help="folder of the published files: train.jsonl, test.jsonl, completions-<model>.jsonl",
    )
    parser.add_argument(
        "--begin", type=Path, metavar="OUT", help="write the recipe of the run here instead"
    )
    arguments = parser.parse_args()
    recipe, files = recipe_from(arguments), arguments.files
    if files is not None and not (files / "test.jsonl").is_file():
        raise UserError(
            f"{files} has no test.jsonl; BLOG= must name a folder of the published files"
        )
    if arguments.begin:
        begin(recipe, files, arguments.begin)
        arguments.recipe = arguments.begin
        print_sheets([departures(recipe_from(arguments))], plain_console())
    else:
        run(recipe, files, arguments.force)


if __name__ == "__main__":
    run_main(main)
