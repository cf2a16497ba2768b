"""Compares the arms of a recipe over training seeds: the last part of ``make ablate``.

Arms that differ only in their training seed are one line. Writes ``runs/<run>/eval/compare``:
``compare.json``, ``compare.md`` and ``breadth.png``, gain at one try against change at the most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from data.common.errors import UserError, require, run_main
from data.common.files import Stage, write_bytes
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, read_split
from data.run import BASE, Run, goal
from data.sections import LEVEL, Arm
from eval.answers.files import AnsweredRow, answered
from eval.answers.judge import check_judged
from eval.show.charts import breadth_chart
from eval.show.tables import Sheet, label, publish
from eval.stats.estimate import Values, Weights, bootstrap_weights, by_name, cell, crossed_interval
from rewards.parse import ParseFailure, parse
from rewards.verify import VALID, Status

COMPARISON, COMPARISON_PAGE, BREADTH = "compare.json", "compare.md", "breadth.png"
#: Means over problems: shares of answers that are optimal, valid, with overlaps, of a single
#: event (what a reward that is gamed by brevity leads to); and whether any answer is optimal.
RATES = ("optimal", "valid", "overlaps", "single", "solved")

#: RATES of one arm by problem, [problems, rates]; with training seeds, [seeds, problems, rates].
ArmTable = Values


def arm_table(rows: Sequence[Row], answers: Iterable[AnsweredRow]) -> ArmTable:
    """One arm's answers to the problems of ``rows``."""
    place = {row["id"]: i for i, row in enumerate(rows)}
    counts = np.zeros((len(rows), 5))  # all answers, then those with each of RATES but the last
    for answer in answers:
        if answer["id"] in place:
            counts[place[answer["id"]]] += (
                1,
                answer["status"] == Status.OPTIMAL,
                answer["status"] in VALID,
                any(v.startswith("overlap:") for v in answer["violations"]),
                _is_single(answer["completion"]),
            )
    shares = counts[:, 1:] / counts[:, :1]
    return np.column_stack([shares, shares[:, 0] > 0])


def _is_single(completion: str) -> bool:
    schedule = parse(completion)
    return not isinstance(schedule, ParseFailure) and len(schedule) == 1


def _rates(tables: ArmTable, least: float, weights: Weights) -> Mapping[str, object]:
    """RATES of one arm's table, which end at ``least`` and 1."""
    return by_name(RATES, crossed_interval(tables, weights, LEVEL, (least, 1.0)))


def compare_tier(
    arms: Mapping[str, ArmTable], pairs: Iterable[tuple[str, str]], weights: Weights
) -> dict[str, object]:
    """One tier of ``compare.json``.

    Args:
        arms: tables with training seeds.
        pairs: arms to be compared, by problem and seed.
        weights: resamples of the problems.
    """
    return {
        "problems": next(iter(arms.values())).shape[1],
        "arms": {
            name: {"seeds": len(tables), **_rates(tables, 0.0, weights)}
            for name, tables in arms.items()
        },
        "differences": [
            {"arm": a, "reference": b, **_rates(arms[a] - arms[b], -1.0, weights)} for a, b in pairs
        ],
    }


def comparison_sheets(summary: Mapping[str, Any]) -> Iterator[Sheet]:
    """Two tables a tier: the arms, and their differences."""
    samples = summary["samples"]
    columns = {
        "optimal": "optimal",
        "solved": f"solved in {samples}",
        "valid": "breaks no rule",
        "overlaps": "overlaps",
        "single": "a single event",
    }

    for tier, compared in summary["tiers"].items():
        basis = (
            f"{compared['problems']} problems x {samples} samples; {100 * summary['level']:.0f} % "
            f"intervals for other problems (resampled {summary['resamples']:,} times) and, where "
            "an arm has several, other training seeds (Student's t)"
        )
        yield Sheet(
            f"{tier}: what each arm answers, in %",
            ["arm", "seeds", *columns.values()],
            [
                [label(name), str(arm["seeds"]), *(cell(arm[key]) for key in columns)]
                for name, arm in compared["arms"].items()
            ],
            [basis],
        )
        if compared["differences"]:
            yield Sheet(
                f"{tier}: paired differences in points",
                ["", *columns.values()],
                [
                    [
                        f"{label(pair['arm'])} - {label(pair['reference'])}",
                        *(cell(pair[key], "+") for key in columns),
                    ]
                    for pair in compared["differences"]
                ],
                [basis],
            )


def pairs_on(arms: Mapping[str, Arm], tier: str) -> list[tuple[str, str]]:
    """The comparisons of a tier: each arm trained on it with what it started from, if that is
    there, then the GRPO arms among each other."""
    trained = {name: arm for name, arm in arms.items() if not arm.tiers or tier in arm.tiers}
    paid = [name for name, arm in trained.items() if arm.trainer == "grpo"]
    # An arm with seeds is one line, whichever of its models another arm starts from.
    pairs = [(name, arm.start.partition(".")[0]) for name, arm in trained.items()]
    starts = [(name, start) for name, start in pairs if start in {BASE, *arms}]
    return starts + [pair for pair in combinations(paid, 2) if pair[::-1] not in starts]


def sampled_arms(run: Run, arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The entries of a recipe's ``arms:`` whose answers are all drawn; says which are left out.

    Raises:
        UserError: where that leaves nothing to compare.
    """
    there, whole = {*run.sampled()}, {}
    for name, arm in arms.items():
        if there.issuperset([BASE, *arm.members(name)]):
            whole[name] = arm
        else:
            print(f"compare: {name} is left out, for not all of its answers are drawn")
    require(whole, f"{run.folder} has no answers to compare; {goal('data arms eval')} draws them")
    return whole


def run(recipe: Recipe, force: bool) -> None:
    """Compare the recipe's arms as far as they are sampled, unless that is done."""
    run, resamples = recipe.run, recipe.eval.resamples
    arms = sampled_arms(run, recipe.arms)
    if len({len(arm.seeds) for arm in arms.values() if arm.seeds}) > 1:
        raise UserError(
            f"{recipe.path}: arms are compared seed by seed, so each needs equally many seeds"
        )
    rows = read_split(run, "test")
    members = {BASE: [BASE], **{name: arm.members(name) for name, arm in arms.items()}}
    names = [member for of_arm in members.values() for member in of_arm]
    check_judged(run, names)
    files = [file for name in names for file in (run.samples(name), run.verdicts(name))]
    settings = {"seed": recipe.seed, "resamples": resamples}
    stage = Stage(run.comparison, "compare", settings, [run.split("test"), *files])
    if not stage.begin_unless_done(force):
        return
    ids = {row["id"] for row in rows}
    answers = {name: list(answered(run.samples(name), ids)) for name in names}
    tiers = {}
    for tier in dict.fromkeys(row["tier"] for row in rows):
        here = [row for row in rows if row["tier"] == tier]
        weights = bootstrap_weights(len(here), resamples, seed_of(recipe.seed, "compare", tier))
        tables = {
            name: np.stack([arm_table(here, answers[member]) for member in of_arm])
            for name, of_arm in members.items()
        }
        tiers[tier] = compare_tier(tables, pairs_on(arms, tier), weights)
    summary = {
        "level": LEVEL,
        "resamples": resamples,
        "samples": recipe.eval.samples,
        "tiers": tiers,
    }
    publish(stage.folder / COMPARISON, summary, list(comparison_sheets(summary)))
    write_bytes(stage.folder / BREADTH, breadth_chart(summary))
    made = [COMPARISON, COMPARISON_PAGE, BREADTH]
    stage.finish(made)
    print(f"compare: {stage.folder} has {', '.join(made)}", flush=True)


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
