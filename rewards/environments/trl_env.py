"""ScheduleEnv: for ``environment_factory`` of TRL's GRPOTrainer, an answer that may be mended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.problem import problem_from_text
from data.sections import RewardSection
from rewards.reward import totals
from rewards.verify import VALID, Status, verify_text

#: Answers of one rollout that are judged.
TRIES = 3


def complaint(status: str, violations: Sequence[str]) -> str:
    """What a model hears of its answer that breaks rules or cannot be read, in one sentence."""
    what = "Cannot be read" if status == Status.UNPARSABLE else "Breaks rules"
    return f"{what}: {'; '.join(violations[:9])}."


class ScheduleEnv:
    """One rollout: the model submits an answer, reads which rules it breaks, and may mend it.

    The data set has the columns ``prompt`` and ``problem``. The environment pays by itself, for the
    last answer that it judged; it needs no ``reward_funcs``. Whether an answer is the best one is
    not said, or the model would only have to try.
    """

    def __init__(self, reward: RewardSection | None = None) -> None:
        self._reward = reward or RewardSection()
        self._problem = self._answer = ""
        self._tries = 0

    def reset(self, problem: str | Mapping[str, Any], **_: Any) -> None:
        """Begin a rollout about ``problem``, an object or its JSON text."""
        self._problem = problem if isinstance(problem, str) else json.dumps(problem)
        problem_from_text(self._problem)
        self._answer, self._tries = "", 0

    def submit(self, answer: str) -> str:
        """Submit a schedule and hear which rules it breaks.

        Args:
            answer: The schedule, from <schedule> to </schedule>, in the form that was asked for.

        Returns:
            What is wrong with it, or its weighted minutes.
        """
        if self._tries == TRIES:
            return "No tries are left; the last answer counts."
        self._tries, self._answer = self._tries + 1, str(answer)
        verdict = verify_text(self._problem, self._answer)
        left = f"Tries left: {TRIES - self._tries}."
        if verdict.status in VALID:
            return f"Breaks no rule: {verdict.objective} weighted minutes. {left}"
        return f"{complaint(verdict.status, verdict.violations)} {left}"

    def get_reward(self) -> float:
        """What the last answer is paid; one that was never submitted cannot be read."""
        return totals(self._reward, [self._problem], [self._answer])[0]
