"""The problems and their judgement for other trainers: the package ``slotwise`` (``make wheel``).

Needs no torch. Parts that need a trainer are imported where they are asked for: ``SlotwiseTaskset``
by verifiers, ``slotwise.gym`` as a data set of reasoning-gym. ``ScheduleEnv`` goes to TRL.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from data.common.errors import require
from data.common.fields import nearest
from data.draw import make_problem
from data.problem import Problem
from data.prompts import prompt
from data.published import read_published
from data.sections import RewardSection
from data.tiers import TIERS
from rewards.environments.trl_env import ScheduleEnv
from rewards.reward import SHAPES, reward_functions, reward_weights, totals
from rewards.verify import verify

__all__ = [
    "TIERS",
    "Problem",
    "RewardSection",
    "ScheduleEnv",
    "SlotwiseTaskset",
    "problems",
    "prompt",
    "reward_functions",
    "reward_weights",
    "score",
    "verify",
]


def problems(source: str = "dense", seed: int = 0, split: str = "train") -> Iterator[Problem]:
    """Proven problems of a tier without end, or those of a file or hub data set.

    Raises:
        UserError: when the source is neither, or a row lacks a key.
    """
    if source in TIERS:
        yield from (make_problem(seed, split, source, TIERS[source], index) for index in count())
        return
    require(
        "/" in source or "." in source,
        f"unknown tier {source!r} (the tiers are {', '.join(TIERS)}){nearest(source, TIERS)}; "
        "or name a file, or a hub data set as owner/name",
    )
    sound, left_out = read_published(source)
    for reason in left_out:
        warnings.warn(f"left out: {reason}", stacklevel=2)
    yield from (problem for problem, _ in sound)


def take(source: str, size: int, seed: int) -> list[Problem]:
    """The first ``size`` of ``problems``; UserError where there are fewer."""
    taken = list(islice(problems(source, seed), size))
    require(len(taken) == size, f"{source} has {len(taken)} sound problems, not {size}")
    return taken


def score(problem: str | Problem, completion: str, shape: str = "graded") -> float:
    """What the reward pays for one answer: 1 for an optimal one (``blog``: 100).

    Args:
        problem: or its JSON text.
        shape: of the reward; one that compares the answers of a group cannot judge one alone.
    """
    alone = [name for name in SHAPES if not SHAPES[name].in_group]
    require(shape in alone, f"shape must be one of {', '.join(alone)}, not {shape!r}")
    text = problem.text if isinstance(problem, Problem) else problem
    return totals(RewardSection(shape=shape), [text], [completion])[0]


def __getattr__(name: str) -> Any:
    if name == "SlotwiseTaskset":  # needs verifiers
        from rewards.environments.taskset import SlotwiseTaskset

        return SlotwiseTaskset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
