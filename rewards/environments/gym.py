"""The problems as a data set of reasoning-gym: ``import slotwise.gym`` registers it by its name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reasoning_gym.factory import ProceduralDataset, register_dataset

from data.common.errors import require
from data.problem import Problem
from data.prompts import prompt
from data.rows import gold_answer
from rewards.environments import score, take


@dataclass
class SlotwiseConfig:
    """``tier`` is one of ``slotwise.TIERS``, or a problem file, or a hub data set."""

    tier: str = "dense"
    shape: str = "graded"
    seed: int = 0
    size: int = 500

    def validate(self) -> None:
        require(self.size > 0, f"size must be above 0, not {self.size}")


class SlotwiseDataset(ProceduralDataset):
    """Days to plan; an answer is judged by the verifier, so every optimal one earns 1."""

    def __init__(self, config: SlotwiseConfig) -> None:
        super().__init__(config=config, seed=config.seed, size=config.size)

    @cached_property
    def _problems(self) -> list[Problem]:
        return take(self.config.tier, self.size, self.config.seed)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        problem = self._problems[idx]
        return {
            "question": prompt(problem),
            "answer": gold_answer(problem, "none"),
            "metadata": {
                "source_dataset": "slotwise",
                "source_index": idx,
                "problem": problem.text,
                "difficulty": {"tier": self.config.tier},
            },
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return score(entry["metadata"]["problem"], answer or "", self.config.shape)


register_dataset("slotwise", SlotwiseDataset, SlotwiseConfig)
