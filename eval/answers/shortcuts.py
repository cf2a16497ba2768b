"""Do valid answers follow a shortcut? On problems whose optimum no greedy policy finds, whose
schedule is theirs: the optimum, a policy's, or another one.

The question is that of arXiv 2510.27044, where RL made models of activity scheduling better by
heuristics that look right.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data.common.seeds import seed_of
from data.event import Schedule
from data.policies import SHORTCUTS, random_maximal, shortcuts
from data.problem import Problem
from eval.answers.files import AnsweredRow
from eval.stats.estimate import Values, bootstrap_weights, by_name, ratio_interval
from rewards.verify import VALID, read

#: Schedules that a valid answer can agree with; ``any`` is that of a policy or several.
KINDS = ("optimal", *SHORTCUTS, "any")
#: The answer by no model, and how often it is drawn: events at random while they fit.
RANDOM, DRAWS = "random_maximal", 16


def shortcut_shares(
    problems: Mapping[str, Problem],
    tiers: Mapping[str, str],
    answers: Mapping[str, Iterable[AnsweredRow]],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """``{tier: {"problems": n, "agree": {arm: {kind: Estimate}}}}``: of an arm's valid answers to
    the n problems that no shortcut solves, the share with each of ``KINDS``; a schedule that
    several policies have counts for each. Beside the arms stands ``RANDOM``. Tiers without such a
    problem are left out.

    Args:
        problems, tiers: by the problem's id.
        answers: of each arm.
    """
    taken = {name: of for name, problem in problems.items() if (of := shortcuts(problem))}
    rng = random.Random(seed_of(seed, "shortcuts"))
    drawn = ((name, random_maximal(problems[name], rng)) for name in taken for _ in range(DRAWS))
    valid = {arm: _valid(problems, rows) for arm, rows in answers.items()} | {RANDOM: drawn}
    counts = {arm: _counted(problems, taken, schedules) for arm, schedules in valid.items()}
    tier_of = np.array([tiers[name] for name in taken])
    shares: dict[str, Any] = {}
    for tier in dict.fromkeys(tier_of.tolist()):
        here = tier_of == tier
        weights = bootstrap_weights(int(here.sum()), resamples, seed_of(seed, "shortcuts", tier))
        agree = {
            arm: by_name(KINDS, ratio_interval(of[here, 1:], of[here, :1], weights))
            for arm, of in counts.items()
        }
        shares[tier] = {"problems": int(here.sum()), "agree": agree}
    return shares


def _valid(
    problems: Mapping[str, Problem], rows: Iterable[AnsweredRow]
) -> Iterator[tuple[str, Schedule]]:
    """The problem and the schedule of each answer that breaks no rule."""
    for row in rows:
        if row["status"] in VALID and row["id"] in problems:
            # A lenient reading of what reads strictly is the same.
            schedule = read(problems[row["id"]], row["completion"], row.get("finish_reason"), True)
            assert isinstance(schedule, tuple), "a valid answer has a schedule"
            yield row["id"], schedule


def _counted(
    problems: Mapping[str, Problem],
    taken: Mapping[str, Mapping[str, Schedule]],
    schedules: Iterable[tuple[str, Schedule]],
) -> Values:
    """Schedules of each problem in ``taken``, and how many agree with each of ``KINDS``, [problems,
    1 + kinds]."""
    place = {name: i for i, name in enumerate(taken)}
    counts = np.zeros((len(place), 1 + len(KINDS)))
    for name, schedule in schedules:
        if name in place:
            follows = [schedule == other for other in taken[name].values()]
            optimal = problems[name].is_optimal(schedule)
            counts[place[name]] += (1, optimal, *follows, any(follows))
    return counts
