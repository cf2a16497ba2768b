"""The published experiment, reproduced, and what its table leaves out: ``make blog``.

``--begin`` prints where the recipe departs from the published settings and writes the recipe of the
run; without it, after training and sampling, the published table follows: the published evaluator's
judgement of every arm, and of the answers that came with the published files. Beside it stand how
many answers are optimal, and what blind guessing and copying would reach.
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
from data.common.files import Stage, write_json, write_text
from data.common.seeds import seed_of
from data.policies import floor
from data.problem import Problem
from data.prompts import answer
from data.published import read_rows
from data.recipe import Recipe, load_recipe, recipe_arguments, recipe_from
from data.sections import LEVEL, RESAMPLES
from eval.answers.files import Key, ProblemFile, read_samples
from eval.answers.judge import score_rows_as_published
from eval.show.tables import Sheet, label, markdown_of, print_sheets
from eval.stats.estimate import Estimate, bootstrap_indices, cell, mean_interval
from rewards import blog
from rewards.blog import BlogStatus

#: The published settings.
PUBLISHED = Path(__file__).parents[1] / "pipeline" / "recipes" / "blog-7b.yaml"
#: Keys of a recipe that say nothing about the experiment.
_NAMES = ("name", "path", "run_name")
#: The published table's columns.
_STATUS_HEADINGS = {
    BlogStatus.FORMAT_ERROR: "format",
    BlogStatus.FEWER_THAN_2_EVENTS: "<2",
    BlogStatus.NON_EXISTING: "non-existing",
    BlogStatus.UNSORTED: "unsorted",
    BlogStatus.OVERLAPS: "overlap",
    BlogStatus.VALID: "valid",
}

# --- the recipe ----------------------------------------------------------------------------------

#: (key, published value, our value) of a setting; None where a recipe leaves it out.
ChangedSetting = tuple[str, object, object]


def changed_settings(recipe: Recipe) -> list[ChangedSetting]:
    """Every setting in which a recipe differs from the published ones."""
    there, here = _flat(asdict(load_recipe(PUBLISHED))), _flat(asdict(recipe))
    pairs = [(key, there.get(key), here.get(key)) for key in {**there, **here}]
    return [(key, a, b) for key, a, b in pairs if a != b and key not in _NAMES]


def _flat(section: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Values by dotted key."""
    flat: dict[str, object] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def departures(source: Path, settings: Sequence[ChangedSetting]) -> Sheet:
    """The settings of a recipe that are not as published, as a table."""
    return Sheet(
        f"{source}: settings that are not as published ({PUBLISHED.name})",
        ["setting", "published", "here"],
        [[key, *("none" if v is None else str(v) for v in values)] for key, *values in settings],
        [] if settings else ["None: every setting is as published."],
    )


def write_recipe(recipe: Recipe, files: Path | None, out: Path) -> None:
    """Write the recipe of the run: ``recipe``, its published data taken from ``files`` if given.

    Raises:
        UserError: when the published data is neither there nor on the hub, or ``recipe`` is the
            one that this writes.
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
            try:
                next(iter(read_rows(use["source"].replace("{split}", "test"))), None)
            except UserError as error:
                raise UserError(
                    f"{error}; BLOG=folder names one that holds the published train.jsonl and "
                    "test.jsonl"
                ) from None
    content = {
        "extends": os.path.relpath(recipe.path, out.parent),
        "name": out.parent.name,
        "data": {"tiers": tiers},
    }
    head = "# Written by `make blog`, which overwrites it.\n"
    write_text(out, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelLine:
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


@dataclass(frozen=True)
class PublishedTable:
    """Models that answered the same problems, and what answers without thought reach there.

    Attributes:
        problems: how many.
        guessed: by each blind policy, the share of problems that one try solves.
        reward_of_copying: what the published reward pays of 100 for copying every event.
    """

    problems: int
    guessed: Mapping[str, float]
    reward_of_copying: float
    models: Sequence[ModelLine]


def judge_as_published(problems: Path, answers: Mapping[str, Path]) -> PublishedTable:
    """Judge the files of ``answers``, by model, to a file of problems. Blind policies are measured
    on the problems that keep the rules."""
    problem_file = ProblemFile(str(problems))
    sound = list(problem_file.problems()[0].values())
    rows = problem_file.rows()
    return PublishedTable(
        len(rows),
        {policy: by_k[1] for policy, by_k in floor(sound, (1,)).items()},
        fmean(map(_copied, sound)),
        [_line(model, problem_file, rows, path) for model, path in answers.items()],
    )


def _copied(problem: Problem) -> float:
    copy = answer(problem.events, "Every event is taken.")
    return sum(blog.rewards(blog.row_of(problem), copy).values())


def _line(
    model: str, problem_file: ProblemFile, rows: Mapping[Key, Mapping[str, Any]], path: Path
) -> ModelLine:
    key, samples = problem_file.key, read_samples(path, problem_file)
    verdicts = list(score_rows_as_published(rows, samples, key))
    right: dict[Key, list[bool]] = {}
    for verdict in verdicts:
        # The score is minutes over minutes: 1 exactly where they are equal.
        right.setdefault(verdict[key], []).append(verdict["score"] == 1)
    shares = np.array([[fmean(tries)] for tries in right.values()])
    rng = np.random.default_rng(seed_of(0, "blog"))
    indices = bootstrap_indices(len(shares), RESAMPLES, rng)
    paid = [sum(blog.rewards(rows[row[key]], row["completion"]).values()) for row in samples]
    return ModelLine(
        model,
        len(verdicts),
        dict(Counter(str(verdict["status"]) for verdict in verdicts)),
        sum(verdict["score"] for verdict in verdicts) / len(verdicts),  # as it rounds there
        fmean(paid),
        mean_interval(shares, indices, LEVEL)[0],
    )


def published_sheets(title: str, table: PublishedTable) -> Iterator[Sheet]:
    """The published table, and beside it what that leaves out."""
    counts = sorted({line.answers for line in table.models})
    each = " or ".join(f"{count:,}" for count in counts)
    yield Sheet(
        f"{title}: the published evaluator, of 100 answers",
        ["model", *_STATUS_HEADINGS.values(), "score"],
        [
            [
                line.model,
                *(
                    f"{round(100 * line.statuses.get(s, 0) / line.answers, 1):g}"
                    for s in _STATUS_HEADINGS
                ),
                f"{line.score:.4f}",
            ]
            for line in table.models
        ],
        [
            f"{table.problems:,} problems, {each} answers a model. An answer counts under the "
            "first rule that it breaks; score: the average over all answers, 0 where not valid."
        ],
    )
    guessed = {policy: f"{100 * share:.1f}" for policy, share in table.guessed.items()}
    policies = ", ".join(f"{p.replace('_', ' ')} {share}" for p, share in guessed.items())
    yield Sheet(
        f"{title}: what that table does not say",
        ["model", "optimal, %", "guessed, %", "reward", "reward of copying"],
        [
            [
                line.model,
                cell(line.optimal.to_json()),
                guessed["random_maximal"],
                f"{line.reward:.1f}",
                f"{table.reward_of_copying:.1f}",
            ]
            for line in table.models
        ],
        [
            f"Optimal: valid, with the optimal score; {100 * LEVEL:.0f} % interval, problems "
            f"resampled {RESAMPLES:,} times. Guessed: by a random maximal schedule.",
            f"Solved without thought in one try, in %: {policies}.",
            "Reward: what the published reward pays on average, of 100, for the model's answers "
            "and for copying every event of the prompt.",
        ],
    )


def run(recipe: Recipe, files: Path | None, force: bool = False) -> None:
    """Print the tables and write them to ``runs/<run>/eval/published``, unless that is done.

    Raises:
        UserError: when no arm was sampled to its end.
    """
    run = recipe.run
    sampled = {label(arm): run.samples(arm) for arm in run.sampled()}
    if not sampled:
        raise UserError(f"{run.eval} has no finished samples; `make blog` draws them")
    groups = {"this run": (run.split("test"), sampled)}
    notes = []
    if files is None:
        notes.append("BLOG=folder with the published files adds the answers that came with them.")
    elif came := answers_in(files):
        groups["published answers"] = (files / "test.jsonl", came)
    else:
        notes.append(f"{files} has no answers (completions-<model>.jsonl).")
    departed = departures(recipe.path, changed_settings(recipe))
    inputs = [file for problems, by in groups.values() for file in (problems, *by.values())]
    settings = {"arms": list(sampled), "differences": departed.rows}
    stage = Stage(run.published, "blog", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    tables = {title: judge_as_published(*group) for title, group in groups.items()}
    sheets = [sheet for title, table in tables.items() for sheet in published_sheets(title, table)]
    console = plain_console()
    print_sheets(sheets, console)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    content = {title: asdict(table) for title, table in tables.items()}
    write_json(stage.folder / "blog.json", {"differences": departed.rows, **content})
    write_text(stage.folder / "blog.md", markdown_of([*sheets, departed]))
    stage.finish(["blog.json", "blog.md"])
    print(f"blog: {stage.folder} has blog.json and blog.md", flush=True)


def answers_in(files: Path) -> dict[str, Path]:
    """The answers that came with the published files, ``completions-<model>.jsonl``, by model."""
    paths = sorted(files.glob("completions-*.jsonl"))
    return {path.stem.removeprefix("completions-"): path for path in paths}


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
        write_recipe(recipe, files, arguments.begin)
        arguments.recipe = arguments.begin
        departed = changed_settings(recipe_from(arguments))
        print_sheets([departures(arguments.begin, departed)], plain_console())
    else:
        run(recipe, files, arguments.force)


if __name__ == "__main__":
    run_main(main)
