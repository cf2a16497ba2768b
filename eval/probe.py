"""Stage ``make probe``: has GRPO anything to work with? Asked before training, of one arm's model.

The model answers a few hundred training prompts, decoded as GRPO would and paid by the recipe's
reward; ``eval.stats.readiness`` says what groups of the recipe's size would look like. They are
training prompts because those are what GRPO sees; an SFT model has seen their gold answers.

Writes ``runs/<run>/probe/<arm>``: ``samples.jsonl``, ``probe.json`` and ``probe.md``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.common.errors import require, run_main
from data.common.files import Stage, sha256
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, longest_told, read_split
from data.run import SAMPLES, goal
from data.sections import LEVEL, EvalSection, RewardSection
from eval.answers.asker import Asker, write_answers
from eval.answers.files import read_answers
from eval.show.tables import Sheet, label, publish
from eval.stats.estimate import cell, with_interval
from eval.stats.readiness import ALL_TIERS, LIMITS, Outcomes, readiness_by_tier
from pipeline.model.load import model_inputs
from pipeline.train.rollouts import unlike
from pipeline.train.settings import grpo_config
from rewards.parse import is_cut_off, whole
from rewards.reward import totals
from rewards.verify import VALID, Status, verify_text

PROBE, PROBE_PAGE = "probe.json", "probe.md"


def outcomes_of(
    rows: Iterable[Mapping[str, Any]], problems: Mapping[str, str], reward: RewardSection
) -> Outcomes:
    """Outcomes of sample rows ``{id, completion, finish_reason}``, in the order of ``problems``,
    which are JSON strings by id, each with equally many rows. Judged as training does."""
    answers: dict[str, list[Mapping[str, Any]]] = {name: [] for name in problems}
    for row in rows:
        answers[row["id"]].append(row)
    statuses, rewards, cut = [], [], []
    for name, problem in problems.items():
        cut.append([is_cut_off(row.get("finish_reason")) for row in answers[name]])
        texts = [whole(row["completion"], row.get("finish_reason")) for row in answers[name]]
        statuses.append([verify_text(problem, text).status for text in texts])
        rewards.append(totals(reward, [problem] * len(texts), texts))
    status = np.array(statuses, dtype=object)
    return Outcomes(
        optimal=status == Status.OPTIMAL,
        valid=np.isin(status, VALID),
        readable=status != Status.UNPARSABLE,
        truncated=np.array(cut),
        reward=np.array(rewards),
    )


def run(recipe: Recipe, arm: str, problems: int, samples: int | None, force: bool) -> None:
    """Sample, judge and report, unless that is done; sampling goes on where it stopped.

    Args:
        problems: training problems asked, drawn at random, so tiers come in the shares of the data.
        samples: answers to each; 64 by default, or twice GRPO's group if that is more.

    Raises:
        UserError: when there is no such arm, its model is not trained, or samples make no group.
    """
    run, folder = recipe.run, recipe.run.probe(recipe.run.chosen(arm))
    config = grpo_config(recipe, Path("unused"))
    group, without = config.num_generations or 1, unlike(config)
    samples = max(64, 2 * group) if samples is None else samples
    require(problems >= 1, f"--problems must be 1 or more, not {problems}")
    require(
        samples >= group,
        f"--samples must be at least grpo.num_generations, which is {group}, not {samples}",
    )
    training, reward = read_split(run, "train"), recipe.reward
    asker = Asker(run, arm, recipe.dtype, recipe.seed)
    asking = EvalSection(
        samples=samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=recipe.grpo.get("max_completion_length")
        or asker.limit(longest_told(training, recipe.data, recipe.arms.values())),
        rows=recipe.eval.rows,
        resamples=recipe.eval.resamples,
    )
    settings = {
        "arm": arm,
        "model": run.model(arm),
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "reward": reward.key,
        "group": group,
        "problems": problems,
        "asking": asdict(asking),
        **({"without": without} if without else {}),
    }
    inputs = [run.split("train"), *model_inputs(run.model(arm))]
    stage = Stage(folder, f"probe {arm}", settings, inputs)
    if not stage.begin_unless_done(force, [folder / SAMPLES]):
        return
    asked = some_of(training, problems, seed_of(recipe.seed, "probe"))
    write_answers(asker, asked, asking, folder / SAMPLES, "probe", stage.goes_on)
    texts = {row["id"]: row["problem"].text for row in asked}
    answers = read_answers(folder / SAMPLES, texts, goal("probe", f"ARM={arm}"))
    outcomes, tiers = outcomes_of(answers, texts, reward), [row["tier"] for row in asked]
    report = {
        **settings,
        "interval": f"{100 * LEVEL:.0f} % interval, problems resampled {asking.resamples:,} times",
        "thresholds": LIMITS,
        "tiers": readiness_by_tier(outcomes, tiers, group, recipe.seed, asking.resamples),
    }
    notes = [f"Note: drawn without {key}, which training has." for key in without]
    publish(folder / PROBE, report, [readiness_sheet(report)], [advice_sentence(report), *notes])
    stage.finish([SAMPLES, PROBE, PROBE_PAGE], sha256=sha256(folder / SAMPLES))
    print(f"probe: {folder} has {PROBE}, {PROBE_PAGE} and {SAMPLES}", flush=True)


def some_of(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """So many rows or all, drawn at random, in their order."""
    places = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[i] for i in sorted(places)]


def advice_sentence(report: Mapping[str, Any]) -> str:
    """The advice as a sentence; that of all tiers where there are several."""
    name, tier = list(report["tiers"].items())[-1]
    where = "the training problems" if name == ALL_TIERS else f"tier {name}"
    advice = f"{tier['advice']}, because {tier['because']}"
    return f"Probe of {label(report['arm'])} on {where}: {advice}."


def readiness_sheet(report: Mapping[str, Any]) -> Sheet:
    """Answers, and groups of the recipe's size, in shares; a column for each tier."""
    tiers, group = report["tiers"], report["group"]
    asked = ", ".join(f"{name} {tier['problems']}" for name, tier in tiers.items())
    samples = report["asking"]["samples"]
    lines = {
        "answers that can be read": "readable",
        "answers that break no rule": "valid",
        "answers cut off": "truncated",
        "optimal answers (pass@1)": "optimal",
        f"groups of {group}, mixed outcomes": "mixed",
        f"groups of {group}, equal rewards": "flat",
        f"groups of {group}, all optimal": "solved",
        f"groups of {group}, none optimal": "unsolved",
    }
    paid = (with_interval(tier["reward"], "{:.3g}".format) for tier in tiers.values())
    return Sheet(
        f"Is {label(report['arm'])} ready for GRPO? shares in %",
        ["", *tiers],
        [
            *(
                [words, *(cell(tier[key]) for tier in tiers.values())]
                for words, key in lines.items()
            ),
            ["mean reward (no %)", *paid],
            ["advice", *(tier["advice"] for tier in tiers.values())],
        ],
        [f"{samples} samples a problem; problems: {asked}; {report['interval']}"],
    )


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", default="base", help="whose model is asked")
    parser.add_argument("--problems", type=int, default=200, help="training problems asked")
    parser.add_argument(
        "--samples", type=int, help="answers to each; 64, or two groups if that is more"
    )
    arguments = parser.parse_args()
    recipe, problems, samples = recipe_from(arguments), arguments.problems, arguments.samples
    run(recipe, arguments.arm, problems, samples, arguments.force)


if __name__ == "__main__":
    run_main(main)
