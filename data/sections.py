"""The sections of a recipe and their defaults, one frozen dataclass each.

``data.recipe`` reads and checks them. The ``sft`` and ``grpo`` sections are TRL's own and have no
class here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data.common.errors import UserError
from data.tiers import Tier

#: Of every interval, unless a recipe says otherwise.
LEVEL = 0.95
#: Of the problems, for intervals.
RESAMPLES = 10_000


@dataclass(frozen=True)
class TierUse:
    """How a recipe uses one tier: problems per split, from our generator or from ``source``."""

    train: int = 0
    val: int = 0
    test: int = 0
    source: str | None = None
    tier: Tier = field(default_factory=Tier)


@dataclass(frozen=True)
class DataSection:
    """``data:`` which problems, and how their gold answers read.

    ``curriculum`` orders the training problems: ``mixture`` (shuffled; how many of each tier is
    the mixture) or ``easy_to_hard`` (by the chance of a random maximal schedule, best first).
    """

    tiers: dict[str, Any]
    main: str
    reasoning: bool = True
    curriculum: str = "mixture"


@dataclass(frozen=True)
class RewardSection:
    """``reward:`` what GRPO is paid for.

    Attributes:
        shape: see ``rewards.reward``.
        weights: of a graded one's components; null for the shape's own.
        unsound: train though the audit (``rewards.audit``) fails.
    """

    shape: str = "graded"
    weights: dict[str, float] | None = None
    unsound: bool = False


@dataclass(frozen=True)
class Arm:
    """One entry of ``arms:``, a model that is trained, or asked in another way, and evaluated
    beside the base.

    Attributes:
        trainer: ``sft``, ``grpo``, ``rejection`` (SFT on the start's own verified successes), or
            ``none``: the start itself, asked in another way.
        start: the arm whose merged model it starts from.
        seeds: train it once with each; the arms are then called ``name.seed``.
        tiers: train on the problems of these tiers alone.
        reward, backend: instead of the recipe's.
        settings: instead of single arguments in the recipe's ``sft`` or ``grpo`` section.
        eval: instead of single keys of the recipe's ``eval`` section.
        tune: keys of ``eval`` with the values to try on the val problems; the best is taken.
    """

    trainer: str
    start: str = "base"
    seeds: tuple[int, ...] = ()
    tiers: tuple[str, ...] = ()
    reward: RewardSection | None = None
    backend: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def section(self) -> str | None:
        """The recipe's section that its training takes its arguments from."""
        return {"rejection": "sft", "none": None}.get(self.trainer, self.trainer)


#: What an experiment trains unless its recipe says otherwise.
ARMS = {"sft": Arm("sft"), "grpo": Arm("grpo", "sft")}


@dataclass(frozen=True)
class EvalSection:
    """``eval:`` how answers are drawn, the same for every arm that does not say otherwise.

    Attributes:
        samples: answers to each problem.
        temperature, top_p: of sampling.
        shots: solved training problems shown before each question.
        lenient: judge what can be read of a malformed answer (``rewards.parse.parse_leniently``).
        max_tokens: of an answer; null allows twice the longest gold answer.
        rows: answers sampled at a time.
        resamples: of the problems, for intervals.
        server: address of an OpenAI-compatible server that holds the model, such as vLLM's
            ``http://host:8000/v1``; null samples here (``eval.answers.server``).
    """

    samples: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    shots: int = 0
    lenient: bool = False
    max_tokens: int | None = None
    rows: int = 256
    resamples: int = RESAMPLES
    server: str | None = None


@dataclass(frozen=True)
class MonitorSection:
    """``monitor:`` how a training is watched; what it ends with does not depend on it.

    Attributes:
        every: steps from one measurement on val problems to the next, at logging steps; 0 for none.
        problems, samples: how many of val, the same every time, and answers to each.
        kl_every: steps from one measurement of ``kl_start`` to the next; 0 for none.
        sampled: the stages, ``sft`` or ``grpo``, in which answers are drawn for this; elsewhere
            there is ``val/loss`` alone. A step of SFT takes no longer than a few answers.
        stop: findings that end a training, by the names of ``make doctor``, such as ``hacking``;
            all others are only said. A loss that is not a number always ends it.
    """

    every: int = 25
    problems: int = 32
    samples: int = 2
    kl_every: int = 5
    sampled: tuple[str, ...] = ("grpo",)
    stop: tuple[str, ...] = ()

    def validate(self, source: str = "monitor") -> None:
        """Raise UserError naming ``source`` and the key whose value makes no sense."""
        for key, least in (("every", 0), ("kl_every", 0), ("problems", 1), ("samples", 1)):
            if getattr(self, key) < least:
                raise UserError(
                    f"{source}.{key} must be {least} or more, not {getattr(self, key)!r}"
                )
        for stage in self.sampled:
            if stage not in ("sft", "grpo"):
                raise UserError(f"{source}.sampled takes sft and grpo, not {stage!r}")


@dataclass(frozen=True)
class Margins:
    """What counts as much, as little, and as sure; shares of problems as fractions of 1.

    Attributes:
        level: of every interval; each of its ends is wrong with ``(1 - level) / 2``.
        gain: a gain in pass@1 below this is none.
        narrowed: a loss of pass@n surely below this is none.
        new: new capability is more than this share of problems beyond the reference.
        reach: elicited is less than this share of problems beyond the base.
        lift: sharpening up to this many times over is no new capability.
        luck: a problem counts as beyond only if chance makes at most this share of them do so.
        floor: ``tries`` are limited to where guessing solves at most this share.
        correction: over the tiers, ``holm`` or ``none``.
        resamples: of the problems.
    """

    level: float = LEVEL
    gain: float = 0.03
    narrowed: float = 0.05
    new: float = 0.02
    reach: float = 0.05
    lift: int = 16
    luck: float = 0.01
    floor: float = 0.5
    correction: str = "holm"
    resamples: int = RESAMPLES

    def validate(self, source: str = "conclusion") -> None:
        """Raise UserError naming ``source`` and the key whose value makes no sense."""
        for key in ("gain", "narrowed", "new", "reach"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(
                    f"{source}.{key} must be a share of problems, 0 to below 1, "
                    f"not {getattr(self, key)!r}"
                )
        if self.new > self.reach:
            raise UserError(
                f"{source}.new ({self.new}) must not be above {source}.reach ({self.reach}): what "
                "is too little to be new would be too much to be elicited"
            )
        for key, low, high in (("level", 0.5, 1), ("floor", 0, 1), ("luck", 0, self.new)):
            if not low < getattr(self, key) < high:
                raise UserError(
                    f"{source}.{key} must be above {low} and below {high}, "
                    f"not {getattr(self, key)!r}"
                )
        for key, least in (("lift", 1), ("resamples", 100)):
            if getattr(self, key) < least:
                raise UserError(
                    f"{source}.{key} must be {least} or more, not {getattr(self, key)!r}"
                )
        if self.correction not in ("holm", "none"):
            raise UserError(f"{source}.correction must be holm or none, not {self.correction!r}")


@dataclass(frozen=True)
class ConclusionSection:
    """``conclusion:`` which arms are judged, elicited or learnt, by ``eval.stats.conclusion``.

    Attributes:
        arms: judged, each against the base and the arm that it starts from; null judges ``grpo``
            where there is such an arm.
        base_best: the arm that is the base at its best.
        format_only: the arm that was rewarded for the form of an answer alone.
        fresh: confirmation samples, with new seeds, of every problem that the base left unsolved.
    """

    arms: tuple[str, ...] | None = None
    base_best: str | None = None
    format_only: str | None = None
    fresh: int = 256
    margins: Margins = Margins()
