"""Stage ``make probe``: has GRPO anything to work with? Asked before training, of one arm's model.

The model answers a few hundred training prompts, decoded as GRPO would and paid by the recipe's
reward; ``eval.stats.readiness`` says what groups of the recipe's size would look like. They are
training prompts because those are what GRPO sees; an SFT model has seen their gold answers.

Writes ``runs/<run>/probe/<arm>``: ``samples.jsonl``, ``probe.json`` and ``probe.md``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import Stage, sha256, write_json, write_text
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, read_split
from data.run import SAMPLES
from data.sections import LEVEL, EvalSection, RewardSection
from eval.answers.asker import Asker, write_answers
from eval.answers.files import read_answers
from eval.show.tables import Sheet, label, markdown_of, print_sheets
from eval.stats.estimate import cell, with_interval
from eval.stats.readiness import ALL_TIERS, LIMITS, Outcomes, readiness_by_tier
from pipeline.model.load import model_inputs
from rewards.reward import totals
from rewards.verify import VALID, Status, verify_text

if TYPE_CHECKING:
    from trl import GRPOConfig

PROBE, PROBE_PAGE = "probe.json", "probe.md"
#: Decoding settings of GRPO that the sampler here does not have, and their neutral values.
_NOT_FOLLOWED = {"top_k": (0, None), "min_p": (0, None), "repetition_penalty": (1, None)}


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
        texts = [row["completion"] for row in answers[name]]
        statuses.append([verify_text(problem, text).status for text in texts])
        rewards.append(totals(reward, [problem] * len(texts), texts))
        cut.append([row.get("finish_reason") == "length" for row in answers[name]])
    status = np.array(statuses, dtype=object)
    return Outcomes(
        optimal=status == Status.OPTIMAL,
        valid=np.isin(status, VALID),
        readable=status != Status.UNPARSABLE,
        truncated=np.array(cut),
        reward=np.array(rewards),
    )


@dataclass(frozen=True)
class ProbePlan:
    """How the probe asks: a number of training problems, as GRPO would decode.

    Attributes:
        group: answers to a prompt in GRPO.
        ignored: settings of GRPO's decoding that are not followed.
    """

    group: int
    problems: int
    asking: EvalSection
    ignored: tuple[str, ...]


def probe_plan(
    config: GRPOConfig, limit: int | None, rows: int, problems: int, samples: int | None
) -> ProbePlan:
    """The plan for GRPO's settings.

    Args:
        limit: tokens of an answer, None where the recipe does not say.
        rows: answers drawn at once.
        samples: of each problem; 64 by default, or twice the group if that is more.

    Raises:
        UserError: when there are fewer samples than a group has answers.
    """
    group = config.num_generations or 1
    samples = max(64, 2 * group) if samples is None else samples
    if problems < 1:
        raise UserError(f"--problems must be 1 or more, not {problems}")
    if samples < group:
        raise UserError(
            f"--samples must be at least grpo.num_generations, which is {group}, not {samples}"
        )
    asking = replace(
        EvalSection(rows=rows),
        samples=samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=limit,
    )
    ignored = [
        key for key, neutral in _NOT_FOLLOWED.items() if getattr(config, key, None) not in neutral
    ]
    return ProbePlan(group, problems, asking, tuple(ignored))


def chosen_rows(rows: list[Row], count: int, seed: int) -> list[Row]:
    """``count`` problems at random, so tiers come in the shares of the data; in its order."""
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def run(recipe: Recipe, arm: str, problems: int, samples: int | None, force: bool) -> None:
    """Sample, judge and report, unless that is done; sampling goes on where it stopped.

    Raises:
        UserError: when there is no such arm, or its model is not trained.
    """
    from pipeline.train.settings import grpo_config

    recipe.run.require_known(arm)
    recipe.run.require_trained(arm)
    limit = recipe.grpo.get("max_completion_length")
    plan = probe_plan(
        grpo_config(recipe, Path("unused")), limit, recipe.eval.rows, problems, samples
    )
    model, folder = recipe.run.model(arm), recipe.run.probe(arm)
    reward, resamples = recipe.reward, recipe.eval.resamples
    settings = {
        "arm": arm,
        "model": model,
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "reward": [reward.shape, reward.weights],
        "resamples": resamples,
        **asdict(plan),
    }
    inputs = [recipe.run.split("train"), *model_inputs(model)]
    stage = Stage(folder, f"probe {arm}", settings, inputs)
    if not stage.begin_unless_done(force, [folder / SAMPLES]):
        return
    training = read_split(recipe.run, "train")
    asked = chosen_rows(training, plan.problems, seed_of(recipe.seed, "probe"))
    asker = Asker(recipe.run, arm, recipe.dtype, recipe.seed)
    asking = replace(plan.asking, max_tokens=limit or asker.limit(training))
    write_answers(asker, asked, asking, folder / SAMPLES, "probe", stage.goes_on)
    texts = {row["id"]: row["problem"].text for row in asked}
    answers = read_answers(folder / SAMPLES, texts, f"make probe ARM={arm}")
    outcomes, tiers = outcomes_of(answers, texts, reward), [row["tier"] for row in asked]
    report = {
        "arm": arm,
        "model": model,
        "group": plan.group,
        "samples": asking.samples,
        "temperature": asking.temperature,
        "top_p": asking.top_p,
        "ignored": list(plan.ignored),
        "reward": {"shape": reward.shape, "weights": reward.weights},
        "interval": f"{100 * LEVEL:.0f} % interval, problems resampled {resamples:,} times",
        "thresholds": LIMITS,
        "tiers": readiness_by_tier(outcomes, tiers, plan.group, recipe.seed, resamples),
    }
    _publish(report, folder)
    stage.finish([SAMPLES, PROBE, PROBE_PAGE], sha256=sha256(folder / SAMPLES))
    print(f"probe: {folder} has {PROBE}, {PROBE_PAGE} and {SAMPLES}", flush=True)


def _publish(report: Mapping[str, Any], folder: Path) -> None:
    """Write and print a report."""
    tables, advice = list(readiness_sheets(report)), advice_sentence(report)
    write_json(folder / PROBE, report)
    write_text(folder / PROBE_PAGE, f"{advice}\n\n{markdown_of(tables)}")
    console = plain_console()
    print_sheets(tables, console)
    console.print(f"\n{advice}", markup=False, soft_wrap=True)


def advice_sentence(report: Mapping[str, Any]) -> str:
    """The advice as a sentence; that of all tiers where there are several."""
    name, readiness = list(report["tiers"].items())[-1]
    given = readiness["advice"]
    more = ""
    if given["group"]:
        more = f" (grpo.num_generations: {given['group']})"
    if given["tiers"]:
        more = f" ({', '.join(given['tiers'])})"
    where = "the training problems" if name == ALL_TIERS else f"tier {name}"
    return (
        f"Probe of {label(report['arm'])} on {where}: {given['advice']}{more}, because "
        f"{given['because']}. The same in {100 * given['firmness']:.0f} % of the resamples."
    )


def readiness_sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """The tables of ``probe.json``."""
    tiers, n, group = report["tiers"], report["samples"], str(report["group"])
    asked = ", ".join(f"{name} {tier['problems']}" for name, tier in tiers.items())
    basis = f"{n} samples a problem; problems: {asked}; {report['interval']}"
    lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "answers that can be read": lambda tier: cell(tier["readable"]),
        "answers that break no rule": lambda tier: cell(tier["valid"]),
        "answers cut off": lambda tier: cell(tier["truncated"]),
        "optimal answers (pass@1)": lambda tier: cell(tier["pass_at_k"]["1"]),
        f"groups of {group}, mixed outcomes": lambda tier: cell(tier["groups"][group]["mixed"]),
        f"groups of {group}, equal rewards": lambda tier: cell(tier["groups"][group]["flat"]),
        f"groups of {group}, all optimal": lambda tier: cell(tier["solved"]),
        f"groups of {group}, none optimal": lambda tier: cell(tier["unsolved"]),
        "mean reward (no %)": lambda tier: with_interval(tier["reward"], "{:.3g}".format),
        "advice": lambda tier: tier["advice"]["advice"],
        "  same in resamples": lambda tier: f"{100 * tier['advice']['firmness']:.0f} %",
    }
    rows = [[name, *map(written, tiers.values())] for name, written in lines.items()]
    ignored = [f"Not followed: grpo.{', grpo.'.join(report['ignored'])}"] * bool(report["ignored"])
    title = f"Is {label(report['arm'])} ready for GRPO? shares in %"
    yield Sheet(title, ["", *tiers], rows, [basis, *ignored])
    first = next(iter(tiers.values()))
    for key, what in (("mixed", "mixed outcomes"), ("flat", "equal rewards")):
        rows = [
            [size, *(cell(tier["groups"][size][key]) for tier in tiers.values())]
            for size in first["groups"]
        ]
        yield Sheet(f"Groups with {what} by their size, in %", ["group", *tiers], rows, [basis])
    rows = [
        [k, *(cell(tier["pass_at_k"][k]) for tier in tiers.values())] for k in first["pass_at_k"]
    ]
    yield Sheet(f"pass@k in %, success = {Status.OPTIMAL}", ["k", *tiers], rows, [basis])


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", default="base", help="whose model is asked")
    parser.add_argument("--problems", type=int, default=200, help="training problems asked")
    parser.add_argument(
        "--samples", type=int, help="answers to each; 64, or two groups if that is more"
    )
    arguments = parser.parse_args()
    run(
        recipe_from(arguments),
        arguments.arm,
        arguments.problems,
        arguments.samples,
        arguments.force,
    )


if __name__ == "__main__":
    run_main(main)
