"""Compares the arms of a recipe over training seeds: the last part of ``make ablate``.

Arms that differ only in their training seed are one line. For arms that were paid, it says how far
the reward agrees with the truth. Writes ``runs/<run>/eval/compare``: ``compare.json`` and
``compare.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import Stage, write_json, write_text
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, read_split
from data.run import BASE
from data.sections import LEVEL, Arm, RewardSection
from eval.answers.files import AnsweredRow, answered
from eval.answers.judge import check_judged
from eval.show.tables import Sheet, label, markdown_of, print_sheets
from eval.stats.estimate import (
    Estimate,
    Indices,
    Values,
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

COMPARISON, COMPARISON_PAGE = "compare.json", "compare.md"
#: Means over problems: shares of answers that are optimal, feasible, with overlaps, of a single
#: event (what a reward that is gamed by brevity leads to); tokens an answer; and whether any answer
#: is optimal.
RATES = ("optimal", "feasible", "overlaps", "single", "tokens", "solved")
#: Means of x, y, xx, yy and xy, for reward x and truth y: correlations follow from them.
MOMENTS = 5

#: RATES, then MOMENTS of one arm, by problem; [problems, columns].
ArmTable = Values


def arm_table(
    rows: Sequence[Row], answers: Iterable[AnsweredRow], reward: RewardSection
) -> ArmTable:
    """One arm's answers to the problems of ``rows``, under ``reward``.

    Truth is the verdict's ratio to the optimum, 0 where a rule is broken.
    """
    place = {row["id"]: i for i, row in enumerate(rows)}
    problems = [row["problem"].text for row in rows]
    answers = [answer for answer in answers if answer["id"] in place]
    at = np.array([place[answer["id"]] for answer in answers])
    texts = [answer["completion"] for answer in answers]
    paid = np.array(totals(reward, [problems[i] for i in at], texts), dtype=float)
    truth = np.array([answer["ratio"] for answer in answers])
    columns = [
        [answer["status"] == Status.OPTIMAL for answer in answers],
        [answer["status"] in VALID for answer in answers],
        [any(v.startswith("overlap:") for v in answer["violations"]) for answer in answers],
        [_is_single(text) for text in texts],
        [answer["tokens"] for answer in answers],
        *(paid, truth, paid**2, truth**2, paid * truth),
    ]
    counts = np.bincount(at, minlength=len(rows))
    sums = [np.bincount(at, np.asarray(c, dtype=float), minlength=len(rows)) for c in columns]
    means = np.stack(sums, axis=1) / counts[:, None]
    return np.insert(means, RATES.index("solved"), means[:, 0] > 0, axis=1)


def _is_single(completion: str) -> bool:
    schedule = parse(completion)
    return not isinstance(schedule, ParseFailure) and len(schedule) == 1


def correlation(means: Values) -> Values:
    """Pearson's correlation of reward and truth from the moments, the last columns of ``means``
    [..., columns]; nan where either does not vary."""
    x, y, xx, yy, xy = np.moveaxis(means[..., -MOMENTS:], -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12, (xy - x * y) / spread, np.nan)


def correlation_interval(tables: ArmTable, indices: Indices) -> Estimate | None:
    """Correlation of reward and truth, the mean over training seeds, of tables [seeds, problems,
    columns], with an interval for other problems and seeds. None where either never varies."""
    of_seeds = correlation(tables.mean(axis=1))
    resampled = np.mean([correlation(resampled_means(t, indices)) for t in tables], axis=0)
    if np.isnan(of_seeds).any() or np.isnan(resampled).any():
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    estimate = Estimate(float(of_seeds.mean()), float(low), float(high), tables.shape[1])
    if len(tables) == 1:
        return estimate
    variance = of_seeds.var(ddof=1, keepdims=True)
    return widened_by_seeds([estimate], len(tables), variance, LEVEL, (-1.0, 1.0))[0]


def _rates(tables: ArmTable, least: float, indices: Indices) -> dict[str, dict[str, float]]:
    """RATES of tables [seeds, problems, columns]; shares end at ``least`` and 1. A number of tokens
    ends nowhere, and nothing is claimed beyond what was seen."""
    tokens = tables[..., RATES.index("tokens")]
    ends = dict.fromkeys(RATES, (least, 1.0)) | {"tokens": (tokens.min(), tokens.max())}
    return {
        name: asdict(crossed_interval(tables[..., [column]], indices, LEVEL, ends[name])[0])
        for column, name in enumerate(RATES)
    }


def compare_tier(
    arms: Mapping[str, ArmTable],
    start: Mapping[str, ArmTable],
    pairs: Iterable[tuple[str, str]],
    indices: Indices,
) -> dict[str, object]:
    """One tier of ``compare.json``.

    Args:
        arms: per arm, tables [training seeds, problems, columns].
        start: the same of the starting model's answers, under the arm's reward, for GRPO arms.
        pairs: arms to be compared, by problem and seed.
        indices: resamples of the problems.
    """

    def agreement(name: str, tables: Mapping[str, ArmTable]) -> dict[str, float] | None:
        estimate = correlation_interval(tables[name], indices) if name in start else None
        return asdict(estimate) if estimate else None

    return {
        "problems": indices.shape[1],
        "arms": {
            name: {
                "seeds": len(tables),
                **_rates(tables, 0.0, indices),
                "agreement_at_start": agreement(name, start),
                "agreement": agreement(name, arms),
            }
            for name, tables in arms.items()
        },
        "differences": [
            {"arm": a, "reference": b, **_rates(arms[a] - arms[b], -1.0, indices)} for a, b in pairs
        ],
    }


def comparison_sheets(summary: Mapping[str, Any]) -> Iterator[Sheet]:
    """Two tables a tier: the arms, and their differences."""
    samples = summary["samples"]
    columns = {
        "optimal": "optimal",
        "solved": f"solved in {samples}",
        "feasible": "feasible",
        "overlaps": "overlaps",
        "single": "a single event",
    }

    def cells(rates: Mapping[str, Any], sign: str = "") -> list[str]:
        tokens = with_interval(rates["tokens"], lambda count: f"{count:{sign}.0f}")
        return [*(cell(rates[name], sign) for name in columns), tokens]

    for tier, compared in summary["tiers"].items():
        basis = (
            f"{compared['problems']} problems x {samples} samples; {100 * summary['level']:.0f} % "
            f"intervals for other problems (resampled {summary['resamples']:,} times) and other "
            "training seeds (Student's t)"
        )
        yield Sheet(
            f"{tier}: what each arm answers, in %",
            ["arm", "seeds", *columns.values(), "tokens", "r at start", "r"],
            [
                [
                    label(name),
                    str(arm["seeds"]),
                    *cells(arm),
                    with_interval(arm["agreement_at_start"], "{:.2f}".format),
                    with_interval(arm["agreement"], "{:.2f}".format),
                ]
                for name, arm in compared["arms"].items()
            ],
            [
                basis,
                "r: correlation of the arm's reward with the ratio to the optimum (0 where a rule "
                "is broken), over the answers of the model it starts from, and over its own; "
                "blank where either does not vary.",
            ],
        )
        if compared["differences"]:
            yield Sheet(
                f"{tier}: paired differences in points",
                ["", *columns.values(), "tokens"],
                [
                    [f"{label(pair['arm'])} - {label(pair['reference'])}", *cells(pair, "+")]
                    for pair in compared["differences"]
                ],
                [basis],
            )


def pairs_on(arms: Mapping[str, Arm], tier: str) -> list[tuple[str, str]]:
    """The comparisons of a tier: each arm trained on it with what it started from, then the GRPO
    arms among each other."""
    trained = {name: arm for name, arm in arms.items() if not arm.tiers or tier in arm.tiers}
    paid = [name for name, arm in trained.items() if arm.trainer == "grpo"]
    # An arm with seeds is one line, whichever of its models another arm starts from.
    starts = [(name, arm.start.partition(".")[0]) for name, arm in trained.items()]
    return starts + [pair for pair in combinations(paid, 2) if pair[::-1] not in starts]


def _tables(
    arms: Mapping[str, Arm],
    reward: RewardSection,
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[AnsweredRow]],
) -> tuple[dict[str, ArmTable], dict[str, ArmTable]]:
    """Per arm, the tables of its seeds; and for GRPO arms that of the start under their reward,
    which is ``reward`` where they have none of their own."""
    tables, start = {BASE: arm_table(rows, answers[BASE], reward)[None]}, {}
    for name, arm in arms.items():
        paid_by = arm.reward or reward
        tables[name] = np.stack([arm_table(rows, answers[m], paid_by) for m in arm.members(name)])
        if arm.trainer == "grpo":
            start[name] = arm_table(rows, answers[arm.start], paid_by)[None]
    return tables, start


def run(recipe: Recipe, force: bool) -> None:
    """Compare the recipe's arms, unless that is done."""
    run, arms, reward, resamples = recipe.run, recipe.arms, recipe.reward, recipe.eval.resamples
    if len({len(arm.seeds) for arm in arms.values() if arm.seeds}) > 1:
        raise UserError(
            f"{recipe.path}: arms are compared seed by seed, so each needs equally many seeds"
        )
    rows = read_split(run, "test")
    for name in run.names:
        if not run.verdicts(name).is_file():
            raise UserError(f"arm {name!r} is not judged yet; `make eval` judges it")
    check_judged(run, run.names)
    files = [file for name in run.names for file in (run.samples(name), run.verdicts(name))]
    rewards = {name: asdict(arm.reward or reward) for name, arm in arms.items()}
    settings = {"seed": recipe.seed, "resamples": resamples, "rewards": rewards}
    stage = Stage(run.comparison, "compare", settings, [run.split("test"), *files])
    if not stage.begin_unless_done(force):
        return
    ids = {row["id"] for row in rows}
    answers = {name: list(answered(run.samples(name), ids)) for name in run.names}
    tiers = {}
    for tier in dict.fromkeys(row["tier"] for row in rows):
        here = [row for row in rows if row["tier"] == tier]
        rng = np.random.default_rng(seed_of(recipe.seed, "compare", tier))
        indices = bootstrap_indices(len(here), resamples, rng)
        tables, start = _tables(arms, reward, here, answers)
        tiers[tier] = compare_tier(tables, start, pairs_on(arms, tier), indices)
    summary = {
        "level": LEVEL,
        "resamples": resamples,
        "samples": recipe.eval.samples,
        "tiers": tiers,
    }
    sheets = list(comparison_sheets(summary))
    write_json(stage.folder / COMPARISON, summary)
    write_text(stage.folder / COMPARISON_PAGE, markdown_of(sheets))
    print_sheets(sheets, plain_console())
    stage.finish([COMPARISON, COMPARISON_PAGE])
    print(f"compare: {stage.folder} has {COMPARISON}, {COMPARISON_PAGE}", flush=True)


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
