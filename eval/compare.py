"""Compares the arms of a recipe over training seeds: the last part of ``make ablate``.

Arms that differ only in their training seed are one line. For arms that were paid, it says how far
the reward agrees with the truth. Writes ``runs/<run>/eval/compare``: ``compare.json`` and
``compare.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import Stage, finished, write_json, write_text
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import VERDICTS
from data.sections import LEVEL, RewardSection
from eval.answers.files import answered
from eval.answers.judge import check_judged
from eval.show.tables import Sheet, label, markdown_of, print_sheets
from eval.stats.estimate import (
    Estimate,
    bootstrap_indices,
    cell,
    crossed_interval,
    resampled_means,
    widened_by_seeds,
    with_interval,
)
from rewards.parse import ParseFailure, parse
from rewards.reward import totals
from rewards.verify import VALID, Status

OUTPUTS = ("compare.json", "compare.md")
#: Means over problems: shares of answers that are optimal, feasible, with overlaps, of a single
#: event (what a reward that is gamed by brevity leads to); tokens an answer; and whether any answer
#: is optimal.
RATES = ("optimal", "feasible", "overlaps", "single", "tokens", "solved")
#: Columns of an arm's table: RATES, then five moments of reward and truth.
COLUMNS = len(RATES) + 5

#: Of one arm: per problem, RATES, and the means over its answers of reward x, truth y, xx, yy and
#: xy, from which correlations follow.
Table = NDArray[np.float64]


def arm_table(
    asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], reward: RewardSection
) -> Table:
    """One arm's ``answers`` to the problems ``asked``, with the verdicts on them (see
    ``eval.answers.files.answered``), under ``reward``: [problems, COLUMNS].

    Truth is the verdict's ratio to the optimum, 0 where a rule is broken.
    """
    place = {row["id"]: i for i, row in enumerate(asked)}
    texts = [row["problem"].text for row in asked]
    at = np.array([place[row["id"]] for row in answers])
    paid = np.array(
        totals(reward, [texts[i] for i in at], [row["completion"] for row in answers]), dtype=float
    )
    truth = np.array([row["ratio"] for row in answers])
    columns = [
        [row["status"] == Status.OPTIMAL for row in answers],
        [row["status"] in VALID for row in answers],
        [any(v.startswith("overlap:") for v in row["violations"]) for row in answers],
        [_is_single(row["completion"]) for row in answers],
        [row["tokens"] for row in answers],
        *(paid, truth, paid**2, truth**2, paid * truth),
    ]
    counts = np.bincount(at, minlength=len(asked))
    sums = [np.bincount(at, np.asarray(c, dtype=float), minlength=len(asked)) for c in columns]
    means = np.stack(sums, axis=1) / counts[:, None]
    return np.insert(means, RATES.index("solved"), means[:, 0] > 0, axis=1)


def _is_single(completion: str) -> bool:
    schedule = parse(completion)
    return not isinstance(schedule, ParseFailure) and len(schedule) == 1


def correlation(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of reward and truth from the last five columns of ``means``
    [..., COLUMNS]; nan where either does not vary."""
    x, y, xx, yy, xy = np.moveaxis(means[..., len(RATES) :], -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12, (xy - x * y) / spread, np.nan)


def correlation_interval(tables: Table, indices: NDArray[np.int32]) -> Estimate | None:
    """Correlation of reward and truth, the mean over training seeds, of tables [seeds, problems,
    COLUMNS], with an interval for other problems and seeds. None where either never varies."""
    of_seeds = correlation(tables.mean(axis=1))
    resampled = np.mean([correlation(resampled_means(t, indices)) for t in tables], axis=0)
    if np.isnan(of_seeds).any() or np.isnan(resampled).any():
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    found = Estimate(float(of_seeds.mean()), float(low), float(high), tables.shape[1])
    if len(tables) == 1:
        return found
    variance = of_seeds.var(ddof=1, keepdims=True)
    return widened_by_seeds([found], len(tables), variance, LEVEL, (-1.0, 1.0))[0]


def compare_tier(
    arms: Mapping[str, Table],
    start: Mapping[str, Table],
    against: Sequence[tuple[str, str]],
    indices: NDArray[np.int32],
) -> dict[str, Any]:
    """One tier of ``compare.json``.

    Args:
        arms: per arm, tables [training seeds, problems, columns].
        start: the same of the starting model's answers, under the arm's reward, for GRPO arms.
        against: pairs of arms to be compared, by problem and seed.
        indices: resamples of the problems.
    """

    def rates(tables: Table, least: float) -> dict[str, Any]:
        # A share ends at 1, a difference of shares at -1 too. A number of tokens ends nowhere, and
        # nothing is claimed beyond what was seen.
        ends = dict.fromkeys(RATES, (least, 1.0))
        tokens = tables[..., RATES.index("tokens")]
        ends["tokens"] = (tokens.min(), tokens.max())
        return {
            name: crossed_interval(tables[..., [column]], indices, LEVEL, ends[name])[0].to_json()
            for column, name in enumerate(RATES)
        }

    def agreement(name: str, tables: Mapping[str, Table]) -> dict[str, float] | None:
        found = correlation_interval(tables[name], indices) if name in start else None
        return found and found.to_json()

    return {
        "problems": indices.shape[1],
        "arms": {
            name: {
                "seeds": len(tables),
                **rates(tables, 0.0),
                "agreement_at_start": agreement(name, start),
                "agreement": agreement(name, arms),
            }
            for name, tables in arms.items()
        },
        "differences": [
            {"arm": a, "reference": b, **rates(arms[a] - arms[b], -1.0)} for a, b in against
        ],
    }


def sheets(summary: Mapping[str, Any]) -> Iterator[Sheet]:
    """The summary as two tables a tier: the arms, and their differences."""
    samples = summary["samples"]
    columns = ("optimal", "solved", "feasible", "overlaps", "single")
    headings = [
        "optimal", f"solved in {samples}", "feasible", "overlaps", "a single event", "tokens"
    ]  # fmt: skip

    def tokens(estimate: Mapping[str, float], sign: str = "") -> str:
        return with_interval(estimate, lambda count: f"{count:{sign}.0f}")

    def correlated(estimate: Mapping[str, float] | None) -> str:
        return with_interval(estimate, "{:.2f}".format)

    for tier, found in summary["tiers"].items():
        basis = (
            f"{found['problems']} problems x {samples} samples; {100 * summary['level']:.0f} % "
            f"intervals for other problems (resampled {summary['resamples']:,} times) and other "
            "training seeds (Student's t)"
        )
        yield Sheet(
            f"{tier}: what each arm answers, in %",
            ["arm", "seeds", *headings, "r at start", "r"],
            [
                [
                    label(name),
                    str(arm["seeds"]),
                    *(cell(arm[column]) for column in columns),
                    tokens(arm["tokens"]),
                    correlated(arm["agreement_at_start"]),
                    correlated(arm["agreement"]),
                ]
                for name, arm in found["arms"].items()
            ],
            [
                basis,
                "r: correlation of the arm's reward with the ratio to the optimum (0 where a rule "
                "is broken), over the answers of the model it starts from, and over its own; "
                "blank where either does not vary.",
            ],
        )
        if found["differences"]:
            yield Sheet(
                f"{tier}: paired differences in points",
                ["", *headings],
                [
                    [
                        f"{label(pair['arm'])} - {label(pair['reference'])}",
                        *(cell(pair[column], "+") for column in columns),
                        tokens(pair["tokens"], "+"),
                    ]
                    for pair in found["differences"]
                ],
                [basis],
            )


def pairs(recipe: Recipe, tier: str) -> list[tuple[str, str]]:
    """The comparisons of a tier: each arm trained on it with what it started from, then the GRPO
    arms among each other."""
    trained = [name for name, arm in recipe.arms.items() if tier in (arm.tiers or recipe.tier_uses)]
    paid = [name for name in trained if recipe.arms[name].trainer == "grpo"]
    # An arm with seeds is one line, whichever of its models another arm starts from.
    starts = [(name, recipe.arms[name].start.partition(".")[0]) for name in trained]
    return starts + [pair for pair in combinations(paid, 2) if pair[::-1] not in starts]


def run(recipe: Recipe, force: bool) -> None:
    """Compare the recipe's arms, unless that is up to date."""
    if len({len(arm.seeds) for arm in recipe.arms.values() if arm.seeds}) > 1:
        raise UserError(
            f"{recipe.path}: arms are compared seed by seed, so each needs equally many seeds"
        )
    asked = read_split(recipe.run, "test")
    if not finished(recipe.run.eval):
        raise UserError(
            f"{recipe.run.folder / 'eval'} is not judged to the end; `make eval` judges it"
        )
    inputs, names = [recipe.run.split("test")], ["base", *recipe.all_arms]
    for name in names:
        samples = recipe.run.samples(name)
        if not finished(samples.parent) or not samples.with_name(VERDICTS).is_file():
            raise UserError(f"arm {name!r} is not judged yet; `make eval` judges it")
        inputs += [samples, samples.with_name(VERDICTS)]
    check_judged(recipe.run, names)
    rewards = {name: (arm.reward or recipe.reward).__dict__ for name, arm in recipe.arms.items()}
    settings = {"seed": recipe.seed, "resamples": recipe.eval.resamples, "rewards": rewards}
    stage = Stage(recipe.run.eval / "compare", "compare", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    summary: dict[str, Any] = {
        "level": LEVEL,
        "resamples": recipe.eval.resamples,
        "samples": recipe.eval.samples,
        "tiers": {},
    }
    ids = {row["id"] for row in asked}
    answers = {name: list(answered(recipe.run.samples(name), ids)) for name in names}
    for tier in dict.fromkeys(row["tier"] for row in asked):
        here = [row for row in asked if row["tier"] == tier]
        rng = np.random.default_rng(seed_of(recipe.seed, "compare", tier))
        indices = bootstrap_indices(len(here), recipe.eval.resamples, rng)
        arms, start = _tables(recipe, here, answers)
        summary["tiers"][tier] = compare_tier(arms, start, pairs(recipe, tier), indices)
    tables = list(sheets(summary))
    write_json(stage.folder / OUTPUTS[0], summary)
    write_text(stage.folder / OUTPUTS[1], markdown_of(tables))
    print_sheets(tables, plain_console())
    stage.finish(OUTPUTS)
    print(f"compare: {stage.folder} has {', '.join(OUTPUTS)}", flush=True)


def _tables(
    recipe: Recipe,
    asked: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, Table], dict[str, Table]]:
    """Per arm, the tables of its seeds; and for GRPO arms that of the start under their reward."""
    wanted = {row["id"] for row in asked}

    def table(name: str, reward: RewardSection) -> Table:
        return arm_table(asked, [row for row in answers[name] if row["id"] in wanted], reward)

    arms, start = {"base": table("base", recipe.reward)[None]}, {}
    for name, arm in recipe.arms.items():
        reward = arm.reward or recipe.reward
        trained = [f"{name}.{seed}" for seed in arm.seeds] or [name]
        arms[name] = np.stack([table(one, reward) for one in trained])
        if arm.trainer == "grpo":
            start[name] = table(arm.start, reward)[None]
    return arms, start


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
