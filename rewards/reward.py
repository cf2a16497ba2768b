"""Verdict to named components to one number, and the adapter for TRL.

GRPO needs nothing but a prompt and a deterministic reward. The reward is a function of the verdict,
never a second judgement of the text, so what training pays for is what evaluation counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewards.verify import Status, Verdict, verify_text

Component = Callable[[Verdict], float]


def format(verdict: Verdict) -> float:
    """1 when a schedule could be read."""
    return float(verdict.status != Status.UNPARSABLE)


def validity(verdict: Verdict) -> float:
    """1 when the schedule breaks no rule."""
    return float(verdict.status in (Status.FEASIBLE, Status.OPTIMAL))


def ratio(verdict: Verdict) -> float:
    """Weighted minutes over the optimum; 0 when a rule is broken."""
    return verdict.ratio


def optimal(verdict: Verdict) -> float:
    """1 when nothing better exists: what evaluation counts as success."""
    return float(verdict.status == Status.OPTIMAL)


COMPONENTS: dict[str, Component] = {f.__name__: f for f in (format, validity, ratio, optimal)}


def reward(verdict: Verdict, weights: dict[str, float]) -> float:
    """The weighted sum of the components."""
    return sum(weight * COMPONENTS[name](verdict) for name, weight in weights.items())


def text_of(completion: str | Sequence[dict[str, str]]) -> str:
    """The text of a completion as TRL hands it over: a string, or messages in a conversation."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def trl_rewards(names: Sequence[str], prefix: str = "") -> list[Callable[..., list[float]]]:
    """One TRL reward function per component, which TRL logs by name and sums by its weights.

    Each takes TRL's ``completions`` and the dataset column ``problem`` (a JSON string). ``prefix``
    is put before every completion: where a chat template opens ``<think>`` itself, the model's text
    begins inside the reasoning, and the verifier must see that.
    """

    def adapter(component: Component) -> Callable[..., list[float]]:
        def trl_reward(completions: Sequence[Any], problem: Sequence[str], **_: Any) -> list[float]:
            return [
                component(verify_text(text, prefix + text_of(completion)))
                for text, completion in zip(problem, completions, strict=True)
            ]

        trl_reward.__name__ = component.__name__
        return trl_reward

    return [adapter(COMPONENTS[name]) for name in names]
