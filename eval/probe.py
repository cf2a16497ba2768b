"""Stage ``make probe``: has GRPO anything to work with? Asked before training, of one arm's model.

The model answers a few hundred training prompts, decoded as GRPO would and paid by the recipe's
reward; ``eval.stats.readiness`` says what groups of the recipe's size would look like. They are training
prompts because those are what GRPO sees; an SFT model has seen their gold answers.

Writes ``runs/<run>/probe/<arm>``: ``samples.jsonl``, ``probe.json`` and ``probe.md``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import Stage, sha256, write_json, write_text
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, read_split
from data.sections import LEVEL, EvalSection, RewardSection
from eval.answers.asker import Asker, write_answers
from eval.answers.files import read_answers
from eval.answers.parts import claimed
from eval.show.tables import Sheet, label, markdown_of, print_sheets
from eval.stats.estimate import cell
from eval.stats.readiness import ALL, RULE, THRESHOLDS, Outcomes, in_words, summarise
from pipeline.train.trainer import model_inputs
from rewards.reward import totals
from rewards.verify import VALID, Status, verify_text

SAMPLES, REPORT, PAGE = "samples.jsonl", "probe.json", "probe.md"
#: Decoding settings of GRPO that the sampler here does not have, and their neutral values.
_NOT_FOLLOWED = {"top_k": (0, None), "min_p": (0, None), "repetition_penalty": (1, None)}


def judge(
    rows: Sequence[Mapping[str, Any]], problems: Mapping[str, str], reward: RewardSection
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
class Plan:
    """How the probe asks: a number of training problems, as GRPO would decode.

    ``ignored`` are settings of GRPO's decoding that are not followed.
    """

    group: int
    problems: int
    asking: EvalSection
    ignored: tuple[str, ...]


def plan_for(recipe: Recipe, problems: int, samples: int | None) -> Plan:
    """The plan of a recipe; ``samples`` defaults to 64, or twice the group if that is more.

    Raises:
        UserError: when there are fewer samples than a group has answers, or TRL refuses the recipe.
    """
    from pipeline.train.settings import grpo_config

    config = grpo_config(recipe, Path("unused"))
    group = config.num_generations
    samples = max(64, 2 * group) if samples is None else samples
    if problems < 1:
        raise UserError(f"--problems must be 1 or more, not {problems}")
    if samples < group:
        raise UserError(
            f"--samples must be at least grpo.num_generations, which is {group}, not {samples}"
        )
    asking = replace(
        EvalSection(rows=recipe.eval.rows),
        samples=samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=recipe.grpo.get("max_completion_length"),
    )
    ignored = [
        key for key, neutral in _NOT_FOLLOWED.items() if getattr(config, key, None) not in neutral
    ]
    return Plan(group, problems, asking, tuple(ignored))


def chosen_rows(recipe: Recipe, count: int) -> list[Row]:
    """``count`` training problems at random, so tiers come in the shares of the training data; in
    the order of the data."""
    rows = read_split(recipe.run, "train")
    rng = random.Random(seed_of(recipe.seed, "probe"))
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), min(count, len(rows))))]


def probe_folder(recipe: Recipe, arm: str) -> Path:
    return recipe.run.probe(arm)


def run(recipe: Recipe, arm: str, problems: int, samples: int | None, force: bool) -> None:
    """Sample, judge and report, unless that is up to date; sampling goes on where it stopped.

    Raises:
        UserError: when there is no such arm, or its model is not trained.
    """
    if arm not in recipe.run.names:
        raise UserError(f"--arm must be one of {', '.join(recipe.run.names)}, not {arm!r}")
    recipe.run.require_trained(arm)
    plan = plan_for(recipe, problems, samples)
    model = recipe.run.model(arm)
    settings = {
        "arm": arm,
        "model": model,
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "reward": [recipe.reward.shape, recipe.reward.weights],
        "resamples": recipe.eval.resamples,
        **asdict(plan),
    }
    folder = probe_folder(recipe, arm)
    stage = Stage(
        folder, f"probe {arm}", settings, [recipe.run.split("train"), *model_inputs(model)]
    )
    if not stage.begin_unless_done(force, [folder / SAMPLES]):
        return
    asked = chosen_rows(recipe, plan.problems)
    asker = Asker(recipe.run, arm, recipe.dtype, recipe.seed)
    limit = plan.asking.max_tokens or asker.limit(read_split(recipe.run, "train"))
    asking = replace(plan.asking, max_tokens=limit)
    with claimed(folder / SAMPLES):
        write_answers(asker, asked, asking, folder / SAMPLES, "probe", stage.goes_on)
    texts = {row["id"]: json.dumps(row["problem"].to_json()) for row in asked}
    answers = read_answers(folder / SAMPLES, texts, f"make probe ARM={arm}")
    outcomes = judge(list(answers), texts, recipe.reward)
    report = {
        "arm": arm,
        "model": model,
        "group": plan.group,
        "samples": plan.asking.samples,
        "temperature": plan.asking.temperature,
        "top_p": plan.asking.top_p,
        "ignored": list(plan.ignored),
        "reward": {"shape": recipe.reward.shape, "weights": recipe.reward.weights},
        "interval": f"{100 * LEVEL:.0f} % interval, problems resampled "
        f"{recipe.eval.resamples:,} times",
        "thresholds": THRESHOLDS,
        "tiers": summarise(
            outcomes,
            [row["tier"] for row in asked],
            plan.group,
            recipe.seed,
            recipe.eval.resamples,
        ),
    }
    write_json(folder / REPORT, report)
    shown = list(sheets(report))
    write_text(folder / PAGE, f"{headline(report)}\n\n{markdown_of(shown)}\n{rule_text()}")
    console = plain_console()
    print_sheets(shown, console)
    console.print(f"\n{headline(report)}", markup=False, soft_wrap=True)
    stage.finish([SAMPLES, REPORT, PAGE], sha256=sha256(folder / SAMPLES))
    print(f"probe: {folder} has {REPORT}, {PAGE} and {SAMPLES}", flush=True)


# --- in words --------------------------------------------------------------------------------


def headline(report: Mapping[str, Any]) -> str:
    """The advice as a sentence; that of all tiers where there are several."""
    name, found = list(report["tiers"].items())[-1]
    given = found["advice"]
    more = ""
    if given["group"]:
        more = f" (grpo.num_generations: {given['group']})"
    if given["tiers"]:
        more = f" ({', '.join(given['tiers'])})"
    where = "the training problems" if name == ALL else f"tier {name}"
    return (
        f"Probe of {label(report['arm'])} on {where}: {given['advice']}{more}, because "
        f"{given['because']}. The same in {100 * given['firmness']:.0f} % of the resamples."
    )


def sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """The tables of ``probe.json``."""
    tiers, n, group = report["tiers"], report["samples"], report["group"]
    asked = ", ".join(f"{name} {t['problems']}" for name, t in tiers.items())
    basis = f"{n} samples a problem; problems: {asked}; {report['interval']}"
    size = str(group)
    picks: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
        "answers that can be read": lambda t: t["readable"],
        "answers that break no rule": lambda t: t["valid"],
        "answers cut off": lambda t: t["truncated"],
        "optimal answers (pass@1)": lambda t: t["pass_at_k"]["1"],
        f"groups of {group} with mixed outcomes": lambda t: t["groups"][size]["mixed"],
        f"groups of {group} with equal rewards": lambda t: t["groups"][size]["flat"],
        f"groups of {group}, all optimal": lambda t: t["solved"],
        f"groups of {group}, none optimal": lambda t: t["unsolved"],
    }
    rows = [[name, *(cell(pick(t)) for t in tiers.values())] for name, pick in picks.items()]
    rows.append(
        ["mean reward (no %)", *(_plain(t["reward"]) for t in tiers.values())],
    )
    rows.append(
        ["tries to solve half of them", *(_tries(t["half_solved"]) for t in tiers.values())]
    )
    rows.append(["advice", *(t["advice"]["advice"] for t in tiers.values())])
    rows.append(
        ["  same in resamples", *(f"{100 * t['advice']['firmness']:.0f} %" for t in tiers.values())]
    )
    notes = [basis]
    if report["ignored"]:
        notes.append(f"Not followed: grpo.{', grpo.'.join(report['ignored'])}.")
    yield Sheet(f"Is {label(report['arm'])} ready for GRPO? shares in %", ["", *tiers], rows, notes)
    for key, title in (("mixed", "mixed outcomes"), ("flat", "equal rewards")):
        first = next(iter(tiers.values()))
        yield Sheet(
            f"Groups with {title} by their size, in %",
            ["group", *tiers],
            [[g, *(cell(t["groups"][g][key]) for t in tiers.values())] for g in first["groups"]],
            [basis],
        )
    yield Sheet(
        f"pass@k in %, success = {Status.OPTIMAL}",
        ["k", *tiers],
        [[k, *(cell(t["pass_at_k"][k]) for t in tiers.values())] for k in first["pass_at_k"]],
        [basis],
    )


def _plain(estimate: Mapping[str, float]) -> str:
    value, low, high = (f"{estimate[key]:.3g}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _tries(found: Mapping[str, Any]) -> str:
    value, low, high = (
        f"over {found['n']}" if found[key] is None else str(found[key])
        for key in ("k", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def rule_text() -> str:
    """The rule in Markdown."""
    lines = [f"| {advice} | {in_words(when)} |" for advice, when, _ in RULE]
    return (
        "\n".join(
            [
                "The advice is the first of these that holds:",
                "",
                "| advice | when |",
                "|---|---|",
                *lines,
            ]
        )
        + "\n"
    )


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
