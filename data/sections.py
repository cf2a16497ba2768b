"""The sections of a recipe and their defaults, one frozen dataclass each, with their checks.

``data.recipe`` reads them. The ``sft`` and ``grpo`` sections are TRL's own and have no class here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data.common.errors import UserError, require
from data.common.fields import Limit, at_least, check_keys, dataclass_from, nearest, one_of, setting
from data.common.files import sha256
from data.published import source_of
from data.tiers import TIERS, Tier

SPLITS = ("train", "val", "test")
BACKENDS = ("auto", "unsloth", "trl")
#: Level of every interval, unless a recipe says otherwise.
LEVEL = 0.95
#: Resamples of the problems for an interval.
RESAMPLES = 10_000
#: numpy and torch take no other seeds.
SEEDS = Limit(lambda seed: 0 <= seed < 2**32, f"0 to {2**32 - 1}")
#: Keys that an arm may tune: those that change its answers and nothing else.
_TUNED = ("temperature", "top_p", "shots")
#: Arms are parts of file names, and these are other folders of a run.
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FOLDERS = (
    "base", "data", "eval", "audit", "probe", "compare", "elicitation", "thinking", "export",
    "published",
)  # fmt: skip
#: Names that reports give to all tiers together.
_TOGETHER = ("all", "overall")


@dataclass(frozen=True)
class TierUse:
    """How a recipe uses one tier: problems per split, from our generator or from ``source``."""

    train: int = setting(at_least(0), 0)
    val: int = setting(at_least(0), 0)
    test: int = setting(at_least(0), 0)
    source: str | None = setting(Limit(bool, "a file, folder or hub id"), None)
    tier: Tier = field(default_factory=Tier, metadata={"internal": True})

    def published(self, split: str) -> str:
        """Where an imported tier's ``train`` or ``test`` problems are."""
        return source_of(self.source or "", split)

    @classmethod
    def from_recipe(cls, name: str, content: Any, source: str) -> TierUse:
        """One entry of ``data.tiers``: counts, a source, and attributes of the tier to change: that
        of the name, or the one it is ``like``, or a new one with the defaults of Tier.

        Raises:
            UserError: naming ``source``, the recipe, and the key that is wrong.
        """
        prefix = f"data.tiers.{name}."
        if not isinstance(content, dict):
            raise UserError(f"{source}: {prefix[:-1]} must be a mapping, such as {{train: 100}}")
        own = (*SPLITS, "source")
        check_keys(content, [*own, "like", *(f.name for f in fields(Tier))], source, prefix)
        counts = {key: value for key, value in content.items() if key in own}
        changes = {key: value for key, value in content.items() if key not in own}
        use = dataclass_from(cls, counts, source, prefix)
        if use.source is not None:
            for key in changes:
                raise UserError(f"{source}: {prefix}{key} cannot change an imported tier")
            return use
        is_new = "like" not in changes and name not in TIERS and len(changes) > 0
        like = str(changes.pop("like", name))
        require(
            like in TIERS or is_new,
            f"{source}: unknown tier {like!r} (the tiers are {', '.join(TIERS)}, and any name with "
            f"a source, attributes of its own, or `like: TIER`){nearest(like, TIERS)}",
        )
        changed = dataclass_from(Tier, changes, source, prefix)
        tier = replace(TIERS.get(like, Tier()), **{key: getattr(changed, key) for key in changes})
        tier.validate(f"{source}: tier {name!r}")
        return replace(use, tier=tier)


_PART = Limit(lambda share: 0 <= share <= 1, "a share, 0 to 1")


@dataclass(frozen=True)
class DataSection:
    """``data:`` which problems, and how their gold answers read.

    Attributes:
        tiers: by name; ``uses`` reads them.
        main: the tier that reports speak of first.
        reasoning: the trace of gold answers: ``computed`` works the optimum out event by event
            where the rules allow it, ``narrated`` tells of a schedule known already, or ``none``.
        reasoned: share of the gold answers that have it.
    """

    tiers: dict[str, Any]
    main: str
    reasoning: str = setting(one_of("computed", "narrated", "none"), "computed")
    reasoned: float = setting(_PART, 1.0)

    def uses(self, source: str) -> dict[str, TierUse]:
        """Each tier with its changes applied; UserError names ``source`` and the key."""
        return {n: TierUse.from_recipe(n, content, source) for n, content in self.tiers.items()}

    def validate(self, source: str, uses: Mapping[str, TierUse]) -> None:
        """Raise UserError naming ``source`` and the key whose value makes no sense."""
        require(self.main in uses, f"{source}.main is {self.main!r}, not one of {', '.join(uses)}")
        for name in uses:
            require(name not in _TOGETHER, f"{source}.tiers.{name} cannot be a tier's name")
        for split in SPLITS:
            require(
                getattr(uses[self.main], split),
                f"{source}.tiers: the main tier {self.main!r} needs {split} problems",
            )


@dataclass(frozen=True)
class RewardSection:
    """``reward:`` what GRPO is paid for.

    Attributes:
        shape: see ``rewards.reward``.
        weights: of a graded one's components; null for the shape's own.
        k: tries of the shape ``passk``, of which one has to be right.
        unsound: train though the audit (``rewards.audit``) fails.
        function: instead of a shape, ``my.py:name``: (problem, verdict) -> number.
    """

    shape: str = "graded"
    weights: dict[str, float] | None = None
    unsound: bool = False
    function: str | None = None
    k: int = setting(at_least(2), 4)

    @property
    def name(self) -> str:
        """The shape, or the file and name of the function."""
        return self.function or self.shape

    @property
    def key(self) -> list[object]:
        """What a training depends on: the function's file counts by its content."""
        if self.function is None:
            return [self.shape, self.weights, *([self.k] if self.shape == "passk" else [])]
        return [self.function, sha256(Path(self.function.rpartition(":")[0]))]


@dataclass(frozen=True)
class SamplingSection:
    """``sampling:`` which problems GRPO draws answers to, and how many; see ``train/rollouts.py``.

    Attributes:
        redraws: rounds, at most, in which groups that are paid alike, all right or all wrong, give
            way to groups of other problems; their answers are thrown away.
        by_success: draw a problem less, never not at all, whose group was paid alike when it was
            asked last; one that was never asked counts as its tier does of late.
        answers: end the training before more than these would be drawn, thrown away or not; the
            learning rate's schedule goes by them, as if all steps drew alike. Null: by steps alone.
    """

    redraws: int = setting(at_least(0), 0)
    by_success: bool = False
    answers: int | None = setting(at_least(1), None)

    def __bool__(self) -> bool:
        """Whether anything differs from what TRL does by itself."""
        return self != SamplingSection()


_URL = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[\w./~-]*)?", re.ASCII)
_ADDRESS = Limit(
    lambda text: _URL.fullmatch(text) is not None,
    "an address such as http://host:8000/v1, without a name or password",
)


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

    samples: int = setting(at_least(1), 64)
    temperature: float = setting(at_least(0), 1.0)
    top_p: float = setting(Limit(lambda p: 0 < p <= 1, "above 0 and at most 1"), 1.0)
    shots: int = setting(at_least(0), 0)
    lenient: bool = False
    max_tokens: int | None = setting(at_least(1), None)
    rows: int = setting(at_least(1), 256)
    resamples: int = setting(at_least(1), RESAMPLES)
    server: str | None = setting(_ADDRESS, None)


@dataclass(frozen=True)
class Arm:
    """One entry of ``arms:``, trained or asked in another way, and evaluated beside the base.

    Attributes:
        trainer: ``sft``, ``grpo``, ``rejection`` (SFT on the start's own verified successes), or
            ``none``: the start itself, asked in another way.
        start: the arm whose merged model it starts from.
        seeds: train it once with each; the arms are then called ``name.seed``.
        tiers: train on the problems of these tiers alone.
        reward, backend: instead of the recipe's.
        reasoned: share of the gold answers that reason, instead of the recipe's; for ``sft`` alone.
        settings: instead of single arguments in the recipe's ``sft`` or ``grpo`` section.
        sampling: instead of single keys of the recipe's ``sampling`` section.
        eval: instead of single keys of the recipe's ``eval`` section.
        tune: keys of ``eval`` with the values to try on the val problems; the best is taken.
    """

    trainer: str = setting(one_of("sft", "grpo", "rejection", "none"))
    start: str = "base"
    seeds: tuple[int, ...] = setting(SEEDS, ())
    tiers: tuple[str, ...] = ()
    reward: RewardSection | None = None
    backend: str | None = setting(one_of(*BACKENDS), None)
    reasoned: float | None = setting(_PART, None)
    settings: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def section(self) -> str | None:
        """The recipe's section that its training takes its arguments from."""
        return {"rejection": "sft", "none": None}.get(self.trainer, self.trainer)

    def members(self, name: str) -> list[str]:
        """The names of the entry ``name``, one for each of its seeds."""
        return [f"{name}.{seed}" for seed in self.seeds] or [name]

    def validate(
        self, source: str, name: str, known: Collection[str], trained: Collection[str]
    ) -> None:
        """Raise UserError where the arm cannot be trained, or not after the one it starts from.

        Args:
            source: the recipe and the key, as messages name them.
            known: the arms before it.
            trained: the tiers that have train problems.
        """
        require(
            _ARM_NAME.fullmatch(name),
            f"{source} cannot be an arm's name; take letters, digits, '_' and '-', at most 100",
        )
        require(
            name not in _FOLDERS,
            f"{source} cannot be an arm's name: a run has a folder of that name; take another one",
        )
        require(
            self.start in known,
            f"{source}.start must be an arm before it ({', '.join(known)}), not {self.start!r}",
        )
        for tier in self.tiers:
            require(
                tier in trained, f"{source}.tiers: data.tiers has no train problems of {tier!r}"
            )
        require(
            self.reasoned is None or self.trainer == "sft",
            f"{source}.reasoned is of the gold answers, which {self.trainer} does not train on; "
            "leave it out",
        )
        paid = self.trainer == "grpo"
        for key, given, is_read in (
            ("settings", self.settings, self.section),
            ("sampling", self.sampling, paid),
            ("reward", self.reward, paid),
        ):
            require(
                is_read or not given,
                f"{source}.{key} is not read by the trainer {self.trainer}; leave it out",
            )
        for key in {"samples", "resamples"} & self.eval.keys():
            raise UserError(f"{source}.eval.{key} cannot differ: arms are compared at the same k")
        for key, values in self.tune.items():
            require(
                key in _TUNED and values,
                f"{source}.tune takes {', '.join(_TUNED)}, each with a list of values to try, "
                f"not {key}: {list(values)}",
            )
        tried = [("tune", {key: value}) for key, values in self.tune.items() for value in values]
        recipe, _, key = source.rpartition(": ")
        for section, changes in [("eval", self.eval), *tried]:
            dataclass_from(EvalSection, changes, recipe, f"{key}.{section}.")
        dataclass_from(SamplingSection, self.sampling, recipe, f"{key}.sampling.")
        require(len(set(self.seeds)) == len(self.seeds), f"{source}.seeds must be different")


#: An arm of this name is the base at its best, unless the recipe names another one.
BASE_BEST = "base-best"
#: The arms of a recipe that names none; the first is a control: what decoding alone gives.
ARMS = {
    BASE_BEST: Arm("none", eval={"lenient": True}, tune={"temperature": (0.4, 0.7, 1.0)}),
    "sft": Arm("sft"),
    "grpo": Arm("grpo", "sft"),
}


@dataclass(frozen=True)
class MonitorSection:
    """``monitor:`` how a training is watched; its result does not depend on it.

    Attributes:
        every: steps from one measurement on val problems to the next, at logging steps; 0 for none.
        problems, samples: how many of val, the same every time, and answers to each; SFT, whose
            step takes no longer than a few answers, draws none and has ``val/loss`` alone.
        kl_every: steps from one measurement of ``kl_start`` to the next; 0 for none.
        stop: findings that end a training, by the names of ``make doctor``, such as ``hacking``;
            all others are only said. A loss that is not a number always ends it. By default
            answers that are not drawn from the model that is trained end it.
    """

    every: int = setting(at_least(0), 25)
    problems: int = setting(at_least(1), 32)
    samples: int = setting(at_least(1), 2)
    kl_every: int = setting(at_least(0), 5)
    stop: tuple[str, ...] = ("foreign-answers",)


#: A share of problems.
_SHARE = Limit(lambda value: 0 <= value < 1, "a share of problems, 0 to below 1")


def _above(low: float) -> Limit:
    return Limit(lambda value: low < value < 1, f"above {low} and below 1")


@dataclass(frozen=True)
class Margins:
    """Thresholds: what is much, little and sure; shares of problems as fractions of 1.

    Attributes:
        level: of every interval; each of its ends is wrong with ``(1 - level) / 2``.
        gain: a gain in pass@1 below this does not count.
        narrowed: a loss of pass@n surely below this does not count.
        new: new capability is more than this share of problems beyond the reference.
        reach: elicited is less than this share of problems beyond the base.
        lift: sharpening up to this many times over is no new capability.
        luck: a problem counts as beyond only if chance makes at most this share of them do so.
        floor: where guessing solves more than this share, that is noted.
        correction: over tiers and judged arms, ``holm`` or ``none``.
        resamples: of the problems.
    """

    level: float = setting(_above(0.5), LEVEL)
    gain: float = setting(_SHARE, 0.03)
    narrowed: float = setting(_SHARE, 0.05)
    new: float = setting(_SHARE, 0.02)
    reach: float = setting(_SHARE, 0.05)
    lift: int = setting(at_least(1), 16)
    luck: float = setting(_above(0), 0.01)
    floor: float = setting(_above(0), 0.5)
    correction: str = setting(one_of("holm", "none"), "holm")
    resamples: int = setting(at_least(100), RESAMPLES)

    def validate(self, source: str) -> None:
        """Raise UserError naming ``source`` and the key whose value makes no sense."""
        require(
            self.new <= self.reach,
            f"{source}.new ({self.new}) must not be above {source}.reach ({self.reach}): what is "
            "too little to be new would be too much to be elicited",
        )
        require(
            self.luck < self.new,
            f"{source}.luck must be below {source}.new ({self.new}), not {self.luck}",
        )


@dataclass(frozen=True)
class ConclusionSection:
    """``conclusion:`` what is concluded on which arms, by ``eval.stats.conclusion``.

    Attributes:
        arms: judged, each against the base and its start; null judges ``grpo`` if there is one.
        base_best: the arm that is the base at its best; null takes ``base-best`` if there is one.
        format_only: the arm that was rewarded for the form of an answer alone.
        fresh: confirmation samples, with new seeds, of every problem that the base left unsolved.
        likeliest: also count how often the likeliest of the base's own answers is right.
    """

    arms: tuple[str, ...] | None = None
    base_best: str | None = None
    format_only: str | None = None
    fresh: int = setting(at_least(1), 256)
    likeliest: bool = False
    margins: Margins = Margins()

    def validate(self, source: str, arms: Mapping[str, Arm], judged: Collection[str]) -> None:
        """Raise UserError where an arm has no place in it, or a margin makes no sense.

        Args:
            source: the recipe and the key, as messages name them.
            arms: the recipe's, by entry.
            judged: the entries that get a conclusion.
        """
        self.margins.validate(f"{source}.margins")
        rivals = [("base_best", self.base_best), ("format_only", self.format_only)]
        for key, name in [*(("arms", name) for name in self.arms or ()), *rivals]:
            require(
                name is None or name in arms,
                f"{source}.{key} names {name!r}, not an entry of arms ({', '.join(arms)})"
                f"{nearest(name or '', arms)}",
            )
        best = arms.get(self.base_best or "")
        require(
            not best or (best.trainer == "none" and best.start == "base" and not best.seeds),
            f"{source}.base_best: {self.base_best!r} must be the base itself, asked in another way "
            "(trainer none, start base, no seeds)",
        )
        for name in judged:
            for key, rival in rivals:
                require(rival != name, f"{source}.{key} is {name!r}, which is judged")
                require(
                    not rival or arms[rival].seeds in ((), arms[name].seeds),
                    f"{source}.{key}: {rival!r} needs no seeds or those of {name!r}, since they "
                    "are compared seed by seed",
                )
