"""``make gallery``: one problem of every tier, its answers, and what each reward pays for them.

Writes ``docs/gallery.md``, the same bytes every time. A tier that is added to ``data.tiers`` and a
shape that is added to ``rewards.reward`` appear in it by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from data.clock import CLOCK
from data.common.errors import run_main
from data.common.files import write_text
from data.common.flags import Parser
from data.draw import make_problem
from data.event import Schedule
from data.policies import greedy_by_value
from data.problem import Problem
from data.prompts import answer, prompt
from data.rows import gold_answer
from data.sections import RewardSection
from data.solver import is_computable, optimal_schedule, relaxed_optimum
from data.tiers import TIERS, Tier
from rewards.reward import SHAPES, totals
from rewards.verify import verify

PAGE = Path("docs/gallery.md")
SEED = 7

_OPENING = f"""# Gallery

Written by `make gallery` (`python -m rewards.gallery`, seed {SEED}); do not edit it.

One problem of every tier of `data/tiers.py`, its proven optimum, a typical mistake, and what each
reward of `rewards/reward.py` pays for each answer. All pay from 0 to 1 but `blog`, the published
reward, which is there for comparison and means to pay from 0 to 100. `ranked`, `passk` and `rare`
compare an answer with the others in the same table. `reasoned` pays gold in full only where its
reasoning computes it; the other answers here begin with an empty phrase.
"""


def page() -> str:
    """The whole page, in Markdown."""
    problems = {name: make_problem(SEED, "gallery", name, tier, 0) for name, tier in TIERS.items()}
    sections = (_section(name, problem) for name, problem in problems.items())
    return "\n".join([_OPENING, _as_text(*next(iter(problems.items()))), *sections])


def _mistake(problem: Problem, gold: Schedule) -> tuple[str, Schedule]:
    """What a model typically gets wrong, in words, and the wrong schedule."""
    careless = relaxed_optimum(problem)
    if not problem.is_feasible(careless):
        return "the best schedule if the further rules were not there", careless
    greedy = greedy_by_value(problem)
    if problem.objective(greedy) != problem.optimum:
        return "most weighted minutes first", greedy
    left_out = next(event for event in problem.events if event not in gold)
    return "the optimum and one event more", tuple(sorted((*gold, left_out)))


def _as_text(name: str, problem: Problem) -> str:
    gold = gold_answer(problem, "computed")
    return (
        f"## A prompt and its gold answer\n\nThe prompt of the first problem, `{name}`:\n\n"
        f"```\n{prompt(problem)}\n```\n\nIts gold answer, with the reasoning trace:\n\n"
        f"```\n{gold}\n```\n"
    )


def _section(name: str, problem: Problem) -> str:
    gold = optimal_schedule(problem) or ()
    called, mistake = _mistake(problem, gold)
    completions = {
        **({"gold, computed": gold_answer(problem, "computed")} if is_computable(problem) else {}),
        "gold": answer(gold, "so"),
        f"mistake: {called}": answer(mistake, "so"),
        "every event copied": answer(problem.events, "so"),
        "gold, cut off": answer(gold, "so").removesuffix("</schedule>"),
    }
    rules = (f"- {said}" for rule in problem.rules if (said := rule.sentence()))
    return "\n".join(
        [
            f"## `{name}`\n\nSettings of the tier: {_tier_settings(TIERS[name])}.\n",
            *rules,
            "\n| event | time | weighted minutes | gold | mistake |\n|---|---|--:|:-:|:-:|",
            *_day(problem, gold, mistake),
            f"\nOptimum: {problem.optimum} weighted minutes.\n",
            *_payments(problem, completions),
            "",
        ]
    )


def _tier_settings(tier: Tier) -> str:
    """What a tier sets otherwise than the default tier."""
    usual = asdict(Tier())
    changed = {key: value for key, value in asdict(tier).items() if value != usual[key]}
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in changed.items())


def _day(problem: Problem, gold: Schedule, mistake: Schedule) -> Iterator[str]:
    for event in problem.events:
        priority = " (priority)" if event.name in problem.priorities else ""
        yield (
            f"| {event.name}{priority} | {CLOCK[event.start]}–{CLOCK[event.end]} "
            f"| {problem.value[event.name]} | {'●' if event in gold else ''} "
            f"| {'●' if event in mistake else ''} |"
        )


def _payments(problem: Problem, completions: Mapping[str, str]) -> Iterator[str]:
    """A table: each answer with its verdict and what each shape pays for it."""
    texts = list(completions.values())
    asked = [problem.text] * len(texts)
    paid = {shape: totals(RewardSection(shape), asked, texts) for shape in SHAPES}
    yield f"| answer | verdict | {' | '.join(paid)} |\n|---|---|{'--:|' * len(paid)}"
    for i, (called, completion) in enumerate(completions.items()):
        verdict = verify(problem, completion)
        first, *others = verdict.violations or ("",)
        why = f": {first}" if first else ""
        more = f" and {len(others)} more" if others else ""
        rewards = " | ".join(f"{rewards[i]:.2f}" for rewards in paid.values())
        yield f"| {called} | {verdict.status}{why}{more} | {rewards} |"


def main() -> None:
    Parser(description=__doc__.split("\n")[0]).parse_args()
    write_text(PAGE, page())
    print(f"{PAGE}: one problem of each of {len(TIERS)} tiers")


if __name__ == "__main__":
    run_main(main)
