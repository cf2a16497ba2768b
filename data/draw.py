"""Drawing the problems of every split."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from rich.console import Console

from data.common.console import paced, say
from data.common.errors import UserError, require
from data.common.seeds import seed_of
from data.problem import Problem
from data.published import read_published
from data.sections import TierUse
from data.solver import UnprovenError, prove
from data.tiers import EFFORT, Tier

#: Test problems are drawn first, so they are the same however many train problems are asked for.
_DRAWING_ORDER = ("test", "val", "train")
#: Draws before giving up: of one problem with a proof, and of one that is not there already.
_DRAWS = 100


def make_problem(
    seed: int, split: str, name: str, tier: Tier, index: int, draw: int = 0
) -> Problem:
    """Problem ``index`` of one split of a tier, its optimum proven by CP-SAT.

    Depends on nothing but its arguments: ``draw`` above 0 replaces a problem that a split has
    already. A draw without a proof within the limit (``data.tiers.EFFORT``) is dropped.

    Raises:
        UserError: when the tier yields no feasible problem.
    """
    for attempt in range(_DRAWS):
        rng = random.Random(seed_of(seed, split, name, index, draw, attempt))
        try:
            problem = tier.sample(rng)
            best = prove(problem, EFFORT)
        except UserError as error:
            raise UserError(f"tier {name!r}: {error}") from None
        except UnprovenError:
            continue
        if best is not None:
            return problem.proven(problem.objective(best))
    raise UserError(
        f"tier {name!r}: no feasible problem with a proof in {_DRAWS} draws; relax its rules"
    )


def draw_splits(
    seed: int, uses: Mapping[str, TierUse], console: Console
) -> Iterator[tuple[str, str, list[Problem]]]:
    """Yield (split, tier, problems), no two problems with the same fingerprint."""
    seen: set[str] = set()
    imported = {name: _imported(use, console) for name, use in uses.items() if use.source}
    for split in _DRAWING_ORDER:
        for name, use in uses.items():
            count = getattr(use, split)
            if name in imported:
                yield split, name, _take(imported[name][split], count, seen, use, split)
                continue
            problems = []
            for index in paced(range(count), count, f"data, {split} {name}", " problems"):
                draws = (make_problem(seed, split, name, use.tier, index, d) for d in range(_DRAWS))
                problem = next((p for p in draws if p.fingerprint not in seen), None)
                if problem is None:
                    raise UserError(f"tier {name!r} has fewer than {count} different problems")
                seen.add(problem.fingerprint)
                problems.append(problem)
            yield split, name, problems


def _imported(use: TierUse, console: Console) -> dict[str, list[Problem]]:
    """The sound problems of a published data set by split; what is left out is named.

    Val is the end of train. Of rows that are in no splits, test is the beginning.
    """

    def read(split: str) -> list[Problem]:
        sound, rejected = read_published(use.published(split))
        for reason in rejected:
            say(console, f"left out: {reason}")
        return [problem for problem, _ in sound]

    train = read("train")
    one = use.published("test") == use.published("train")
    return {"test": train if one else read("test"), "val": train[::-1], "train": train}


def _take(
    problems: list[Problem], count: int, seen: set[str], use: TierUse, split: str
) -> list[Problem]:
    """The first ``count`` problems not used before."""
    taken: list[Problem] = []
    for problem in problems:
        if len(taken) < count and problem.fingerprint not in seen:
            seen.add(problem.fingerprint)
            taken.append(problem)
    require(
        len(taken) == count, f"{use.source} has {len(taken)} sound {split} problems, not {count}"
    )
    return taken
