"""The problems as a taskset for verifiers 0.4: ``eval slotwise --env.taskset.tier busy``."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

from data.prompts import prompt
from rewards.environments import score, take


class SlotwiseConfig(vf.TasksetConfig):
    """``tier`` is one of ``slotwise.TIERS``, or a problem file, or a hub data set."""

    tier: str = "dense"
    shape: str = "graded"
    seed: int = 0
    num_tasks: int = 500


class SlotwiseData(vf.TaskData):
    problem: str
    shape: str


class SlotwiseTask(vf.Task[SlotwiseData]):
    """One problem, answered in one turn; an answer that was cut off is none."""

    @vf.reward(weight=1.0)
    async def schedule(self, trace: vf.Trace) -> float:
        reply = "" if trace.is_truncated else trace.last_reply
        return score(self.data.problem, reply, self.data.shape)


class SlotwiseTaskset(vf.Taskset[SlotwiseTask, SlotwiseConfig]):
    def load(self) -> Iterator[SlotwiseTask]:
        config = self.config
        for problem in take(config.tier, config.num_tasks, config.seed):
            data = SlotwiseData(prompt=prompt(problem), problem=problem.text, shape=config.shape)
            yield SlotwiseTask(data, config.task)
