"""Who is judged against whom: the arms of a recipe in their roles for a conclusion."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from data.policies import random_maximal_success
from data.problem import Problem
from data.recipe import Recipe
from data.rows import read_split
from eval.stats.power import Detectable, detectable


@dataclass(frozen=True)
class Case:
    """One judged entry of ``arms:`` and what it is held against, by the names of the samples.

    Attributes:
        name: the entry; it has one member for each training seed.
        tiers: those of the test problems that it is judged on.
        start: the arm that it was trained from, None where that is the base.
        base_best, format_only: None where the recipe names none, or it was not sampled.
    """

    name: str
    members: tuple[str, ...]
    tiers: tuple[str, ...]
    start: str | None
    base_best: str | None
    format_only: tuple[str, ...]

    @property
    def bases(self) -> tuple[str, ...]:
        return ("base", self.base_best) if self.base_best else ("base",)

    @property
    def rivals(self) -> tuple[str, ...]:
        """Arms that may explain what the judged one gained."""
        return (*((self.start,) if self.start else ()), *self.format_only)

    @property
    def everyone(self) -> tuple[str, ...]:
        return (*self.bases, *self.rivals, *self.members)


def cases(recipe: Recipe, sampled: Collection[str]) -> list[Case]:
    """The conclusions that can be made of the arms that were sampled; what cannot is said."""
    tested = [name for name, use in recipe.tier_uses.items() if use.test]
    best, form = recipe.conclusion.base_best, recipe.conclusion.format_only
    if best and best not in sampled:
        print(f"eval: {best} was not sampled, so the base is held to be at its best as it is")
        best = None
    forms = tuple(recipe.arms[form].members(form)) if form else ()
    if not set(forms) <= set(sampled):
        print(f"eval: {form} was not sampled, so the conclusion does not ask what it explains")
        forms = ()
    found = []
    for name in recipe.judged():
        arm = recipe.arms[name]
        members = tuple(recipe.arms[name].members(name))
        start = None if arm.start == "base" else arm.start
        missing = {"base", *members, *([start] if start else [])} - set(sampled)
        if missing:
            print(
                f"eval: no conclusion on {name}, since {', '.join(sorted(missing))} is not sampled"
            )
            continue
        tiers = tuple(tier for tier in tested if not arm.tiers or tier in arm.tiers)
        if not tiers:
            print(f"eval: no conclusion on {name}, since its tiers have no test problems")
            continue
        found.append(Case(name, members, tiers, start, best, forms))
    return found


def guesses(problems: list[Problem]) -> list[float]:
    """The chance of a blind guess at each problem: of a random maximal schedule to be optimal."""
    return [float(random_maximal_success(problem)) for problem in problems]


def planned(recipe: Recipe, problems: list[Problem]) -> Detectable:
    """What the recipe's samples of one tier's problems can detect."""
    return detectable(
        len(problems),
        recipe.eval.samples,
        recipe.conclusion.fresh,
        recipe.conclusion.margins,
        guesses(problems),
    )


def beforehand(recipe: Recipe, sampled: Collection[str]) -> Iterator[str]:
    """What the planned samples can detect, a sentence for each tier that is judged."""
    found = cases(recipe, sampled)
    rows = read_split(recipe.run, "test") if found else []
    for tier in dict.fromkeys(tier for case in found for tier in case.tiers):
        here = [row["problem"] for row in rows if row["tier"] == tier]
        yield f"{tier}: {planned(recipe, here).sentence}"
