"""The arms of a recipe in their roles for a conclusion: judged ones, and those beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from data.policies import random_maximal_success
from data.problem import Problem
from data.recipe import Recipe
from data.rows import read_split
from data.run import BASE
from data.sections import ConclusionSection
from eval.stats.power import Detectable, detectable


@dataclass(frozen=True)
class JudgedArm:
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
        return (BASE, self.base_best) if self.base_best else (BASE,)

    @property
    def everyone(self) -> tuple[str, ...]:
        start = (self.start,) if self.start else ()
        return (*self.bases, *start, *self.format_only, *self.members)


def cases(recipe: Recipe, sampled: Collection[str]) -> list[JudgedArm]:
    """The judged arms that were sampled, with those beside them; says which are left out."""
    tested = [name for name, use in recipe.tier_uses.items() if use.test]
    best, form = recipe.conclusion.base_best, recipe.conclusion.format_only
    if best and best not in sampled:
        print(f"eval: {best} was not sampled, so the base is held to be at its best as it is")
        best = None
    forms = tuple(recipe.arms[form].members(form)) if form else ()
    if not set(forms) <= set(sampled):
        print(f"eval: {form} was not sampled, so the conclusion does not ask what it explains")
        forms = ()
    judged = []
    for name in recipe.judged():
        arm = recipe.arms[name]
        members = tuple(arm.members(name))
        start = None if arm.start == BASE else arm.start
        tiers = tuple(tier for tier in tested if not arm.tiers or tier in arm.tiers)
        case = JudgedArm(name, members, tiers, start, best, forms)
        missing = set(case.everyone) - set(sampled)
        if missing:
            print(f"eval: no conclusion on {name}: {', '.join(sorted(missing))} not sampled")
        elif not tiers:
            print(f"eval: no conclusion on {name}: its tiers have no test problems")
        else:
            judged.append(case)
    return judged


def guesses(problems: Iterable[Problem]) -> list[float]:
    """The chance of a blind guess at each problem: of a random maximal schedule to be optimal."""
    return [float(random_maximal_success(problem)) for problem in problems]


def detectable_on(
    tier: str,
    chances: Sequence[float],
    judged: Sequence[JudgedArm],
    samples: int,
    section: ConclusionSection,
) -> Detectable:
    """The least effects that ``samples`` of each problem of a tier, and the fresh ones, find.

    Tests for a new skill share the chance of error: those on the tiers of an arm and their pool,
    times the judged arms; the most of any arm that has the tier.

    Args:
        chances: of a blind guess at each of its problems.
    """
    tests = 1
    if section.margins.correction != "none":
        most = max(len(case.tiers) for case in judged if tier in case.tiers)
        tests = len(judged) * (most + (most > 1))
    return detectable(len(chances), samples, section.fresh, section.margins, chances, tests=tests)


def beforehand(recipe: Recipe, sampled: Collection[str]) -> Iterator[str]:
    """Sentences on the effects that the planned samples can detect, one for each judged tier."""
    judged = cases(recipe, sampled)
    rows = read_split(recipe.run, "test") if judged else []
    for tier in dict.fromkeys(tier for case in judged for tier in case.tiers):
        chances = guesses(row["problem"] for row in rows if row["tier"] == tier)
        planned = recipe.eval.samples, recipe.conclusion
        yield f"{tier}: {detectable_on(tier, chances, judged, *planned).sentence}"
    for case in judged:
        if not case.base_best:
            yield (
                f"{case.name} cannot come out as a new capability: no arm asks the base at its "
                "best (at a lower temperature, read leniently); name one in conclusion.base_best"
            )
