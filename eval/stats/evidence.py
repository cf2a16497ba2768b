"""Counts of every arm to evidence, with intervals and Holm's correction, to a conclusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.common.seeds import seed_of
from data.sections import Margins
from eval.stats.certificate import certificate
from eval.stats.conclusion import Conclusion, Evidence, SampleBudget, decide, notes_on
from eval.stats.counts import Counts, fresh_tries, solved_fresh, unsolved_by
from eval.stats.estimate import Estimate, Values, bootstrap_weights, crossed_interval
from eval.stats.passk import floor_at, solved_within

#: Quantities that cannot be negative, unlike differences.
_NEVER_NEGATIVE = ("certified", "control", "made common", "missed", "perhaps beyond base")
#: Name of the pooled problems of all tiers.
OVERALL = "overall"

#: The quantities of the criterion, by problem, [..., problems]; the mean of each is estimated.
Quantities = dict[str, Values]


@dataclass(frozen=True)
class Arms:
    """Counts of every arm on one tier; what is None was not run.

    Several training seeds: ``c`` is [seeds, problems]. An arm of several seeds must have those of
    ``grpo``, in the same order, since they are compared seed by seed.

    Attributes:
        base: before any training, as sampled.
        grpo: the tuned arm that is judged.
        base_best: the base at its best decoding, prompt and parsing.
        sft: what GRPO started from.
        format_only: GRPO rewarded for the form of an answer alone.
        guess: chance of a blind guess at each problem in one try, [problems].
    """

    base: Counts
    grpo: Counts
    base_best: Counts | None = None
    sft: Counts | None = None
    format_only: Counts | None = None
    guess: ArrayLike = 0.0

    @property
    def chance(self) -> Values:
        """Of a blind guess, [problems]."""
        return np.broadcast_to(np.asarray(self.guess, dtype=np.float64), self.base.problems)

    @property
    def bases(self) -> list[Counts]:
        return [arm for arm in (self.base, self.base_best) if arm is not None]

    @property
    def rivals(self) -> dict[str, Counts]:
        """Other explanations than reinforcement learning with the whole reward, by name."""
        arms = {"sft": self.sft, "format_only": self.format_only}
        return {name: arm for name, arm in arms.items() if arm is not None}

    @property
    def in_form(self) -> NDArray[np.int64] | None:
        """How often the bases tried each problem in form, [problems]: what tells a better form from
        a new skill where ``format_only`` was not run. None where it was, or nobody counted."""
        known = [arm.formed for arm in self.bases if arm.formed is not None]
        asked = self.format_only is not None or len(known) < len(self.bases)
        return None if asked else np.max(known, axis=0)

    @property
    def missing(self) -> tuple[str, ...]:
        """Controls without which nothing can be called new, as the recipe names them."""
        form = self.format_only is None and self.in_form is None
        return ("base_best",) * (self.base_best is None) + ("format_only",) * form


def quantities_of(arms: Arms, margins: Margins) -> tuple[Quantities, SampleBudget]:
    """Every quantity of the criterion by problem, and its k. Counts may have any leading axes.

    Raises:
        ValueError: when an arm was not asked again what the base left unsolved.
    """
    base, grpo, others = arms.base, arms.grpo, [*arms.bases, *arms.rivals.values()]
    n = min(int(arm.n.min()) for arm in (*others, grpo))
    tuned_at_1 = solved_within(grpo.n, grpo.c, 1)
    values = {
        f"gain over {name}": tuned_at_1 - solved_within(arm.n, arm.c, 1)
        for name, arm in {"base": base, **arms.rivals}.items()
    }
    values["over guessing"] = tuned_at_1 - arms.chance
    values["large k"] = solved_within(grpo.n, grpo.c, n) - solved_within(base.n, base.c, n)

    # Rivals are asked again only what the base left unsolved.
    unsolved = unsolved_by(arms.bases)
    fresh = fresh_tries([grpo], unsolved)
    m = fresh_tries(others, unsolved)
    tries = max(1, min(m // margins.lift, fresh))
    needed = certificate(n + m, fresh, margins.lift, margins.luck, arms.chance)
    in_form = arms.in_form
    if in_form is not None:
        own = np.asarray(base.formed)
        right = (base.c + base.fresh_c) / np.maximum(own, 1)
        values["gain over form"] = np.where(own > 0, tuned_at_1 - right, 0.0)
        in_form = certificate(in_form, fresh, margins.lift, margins.luck, arms.chance)
    values |= _beyond(arms, unsolved, needed, in_form, tries)
    guessed, guessed_n, guessed_reach = (
        float(floor_at(arms.chance, k).mean()) for k in (tries, n, n + m)
    )
    return values, SampleBudget(
        n, tries, n + m, fresh, int(np.median(needed)),
        guessed, guessed_n, guessed_reach, arms.missing,
    )  # fmt: skip


def _beyond(
    arms: Arms,
    unsolved: NDArray[np.bool_],
    needed: NDArray[np.int64],
    in_form: NDArray[np.int64] | None,
    tries: int,
) -> Quantities:
    """What the tuned arm solves of what the base, and each rival with it, missed.

    ``certified`` and ``control`` are parts of "beyond base", for the reader: problems counted,
    before guesses are taken off, and base against base. ``missed`` is what a perfect solver would
    have beyond the base, and ``made common`` what the base solved again in one or two confirmation
    samples only.

    Args:
        unsolved: by the bases at first, [..., problems].
        needed: confirmation samples that must be right, [problems]; ``in_form`` where only misses
            in form count as misses.
        tries: in which a problem is perhaps beyond the base.
    """
    grpo, chance = arms.grpo, arms.chance
    control = unsolved & np.logical_or.reduce([arm.fresh_c >= needed for arm in arms.bases])
    missed = _missed(arms.bases)
    again = np.maximum.reduce([arm.fresh_c for arm in arms.bases])

    def beyond(missed: NDArray[np.bool_], certain: NDArray[np.bool_]) -> Values:
        return 1.0 * (missed & certain) - missed * chance - control

    certain = grpo.fresh_c >= needed
    formed = {} if in_form is None else {"form": beyond(missed, grpo.fresh_c >= in_form)}
    rivals = {k: beyond(_missed([*arms.bases, v]), certain) for k, v in arms.rivals.items()}
    return {
        "beyond base": beyond(missed, certain),
        "certified": 1.0 * (missed & certain),
        "control": 1.0 * control,
        "made common": 1.0 * (unsolved & (again > 0) & (again <= 2) & certain),
        "missed": 1.0 * (missed & (needed <= grpo.fresh_n.max())) * (1 - chance),
        "perhaps beyond base": solved_fresh(grpo, missed, tries),
        **{f"beyond {name}": values for name, values in (formed | rivals).items()},
    }


def _missed(references: Sequence[Counts]) -> NDArray[np.bool_]:
    """Which problems none of them solved, neither at first nor asked again."""
    both = ((arm.c == 0) & (arm.fresh_c == 0) for arm in references)
    return np.logical_and.reduce(np.broadcast_arrays(*both))


@dataclass(frozen=True)
class Concluded:
    """A conclusion on one tier, or overall, and all that it rests on.

    Attributes:
        reason: the deciding condition, in words.
        notes: what a reader must know beside it.
        estimates: every quantity of the criterion with its interval at ``Margins.level``.
        new: whether it is a new capability.
        tested_at: the one-sided level at which that was tested last.
    """

    conclusion: Conclusion
    reason: str
    notes: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    budget: SampleBudget
    problems: int
    seeds: int
    new: bool
    tested_at: float


@dataclass(frozen=True)
class Conclusions:
    """What an experiment shows of one arm, by tier and overall."""

    overall: Concluded
    tiers: dict[str, Concluded]

    @property
    def sentence(self) -> str:
        return f"{self.overall.conclusion.capitalize()}: {self.overall.reason}."


def conclude(
    tiers: Mapping[str, Arms], margins: Margins, seed: int = 0, who: str = "GRPO", judged: int = 1
) -> Conclusions:
    """The conclusion on every tier and overall.

    Args:
        tiers: at least one; counts of each arm on the tier's problems.
        seed: the resampling of each tier is hashed from it.
        who: what the judged arm is called in words.
        judged: arms that the experiment judges; each gets an equal part of the chance of error.
    """
    measured = {name: quantities_of(arms, margins) for name, arms in tiers.items()}
    if len(measured) > 1:
        measured[OVERALL] = _pooled(list(measured.values()))
    corrected = margins.correction == "holm"
    shares = judged if corrected else 1
    divisors = [shares * d for d in range(1, 1 + (len(measured) if corrected else 1))]
    at_levels = {
        # "verdict" is hashed: another word would draw other resamples, so it is never renamed.
        name: _evidence(values, budget, margins, divisors, seed_of(seed, "verdict", name))
        for name, (values, budget) in measured.items()
    }
    depths = {name: _depth(by_divisor, margins) for name, (_, *by_divisor) in at_levels.items()}
    tested = holm(depths) if corrected else {name: (d > 0, 1) for name, d in depths.items()}
    concluded = {}
    for name, [evidence, *_] in at_levels.items():
        new, divisor = tested[name]
        conclusion, reason = decide(evidence, margins, new, who)
        concluded[name] = Concluded(
            conclusion,
            reason,
            tuple(notes_on(evidence, margins, conclusion)),
            evidence.estimates,
            evidence.budget,
            problems=evidence.estimates["large k"].n,
            seeds=_seeds(measured[name][0]),
            new=conclusion == Conclusion.NEW,
            tested_at=(1 - margins.level) / 2 / (shares * divisor),
        )
    pool = concluded.pop(OVERALL, None)
    return Conclusions(_overall(concluded, pool), concluded)


def _pooled(parts: Sequence[tuple[Quantities, SampleBudget]]) -> tuple[Quantities, SampleBudget]:
    """All tiers' problems together: quantities taken at their tier's own k, the least k, and what
    blind guessing solves of all."""
    values = {name: np.concatenate([v[name] for v, _ in parts], axis=-1) for name in parts[0][0]}
    every = [asdict(budget) for _, budget in parts]
    # A tier whose problems were all solved has no confirmation samples to speak of.
    budgets = [budget for budget in every if budget["fresh"]] or every
    pooled = {key: min(budget[key] for budget in budgets) for key in budgets[0]}
    problems = [quantities["large k"].shape[-1] for quantities, _ in parts]
    pooled |= {
        key: float(np.average([budget[key] for budget in every], weights=problems))
        for key in pooled
        if key.startswith("guessed")
    }
    return values, SampleBudget(**pooled | {"missing": max(b["missing"] for b in every)})


def _seeds(values: Quantities) -> int:
    return max(len(np.atleast_2d(v)) for v in values.values())


def _evidence(
    values: Quantities, budget: SampleBudget, margins: Margins, divisors: Sequence[int], seed: int
) -> list[Evidence]:
    """Evidence at the level, then at levels whose intervals are wrong d times more rarely, for each
    of ``divisors``."""
    seeds, problems = _seeds(values), np.shape(values["large k"])[-1]
    cube = np.stack([np.broadcast_to(v, (seeds, problems)) for v in values.values()], axis=-1)
    weights = bootstrap_weights(problems, margins.resamples, seed)
    least = np.array([0.0 if name in _NEVER_NEGATIVE else -1.0 for name in values])
    levels = [1 - (1 - margins.level) / divisor for divisor in (1, *divisors)]
    return [
        Evidence(dict(zip(values, intervals, strict=True)), budget)
        for level in levels
        for intervals in [crossed_interval(cube, weights, level, bounds=(least, 1.0))]
    ]


def _depth(by_divisor: Sequence[Evidence], margins: Margins) -> int:
    """The last of the divisors, counted from 1, at which it is still new; 0 where at none."""
    return max((d for d, seen in enumerate(by_divisor, 1) if seen.shows_new(margins)), default=0)


def holm(depths: Mapping[str, int]) -> dict[str, tuple[bool, int]]:
    """Holm's step-down procedure (1979, Scandinavian Journal of Statistics 6:65) where hypothesis i
    is rejected at ``level / d`` for every d up to ``depths[i]``.

    The surest is tested at level / h, the next at level / (h - 1), and so on until one fails.

    Returns:
        per hypothesis, whether it is rejected, and the divisor at which it was tested last.
    """
    ordered = sorted(depths, key=lambda name: -depths[name])
    tested, going = {}, True
    for rank, name in enumerate(ordered):
        divisor = len(ordered) - rank
        going = going and depths[name] >= divisor
        tested[name] = (going, divisor)
    return tested


def _overall(tiers: Mapping[str, Concluded], pool: Concluded | None) -> Concluded:
    if pool is None:
        return next(iter(tiers.values()))
    with_new = [name for name, concluded in tiers.items() if concluded.new]
    if with_new and not pool.new:
        # A tier is enough: a new capability need not show on problems that do not call for it.
        reason = f"on {', '.join(with_new)}: {tiers[with_new[0]].reason}"
        pool = replace(pool, conclusion=Conclusion.NEW, reason=reason, new=True)
    worse = [name for name, one in tiers.items() if one.conclusion == Conclusion.WORSE]
    if worse and pool.conclusion != Conclusion.WORSE:
        pool = replace(pool, reason=f"{pool.reason}; on {', '.join(worse)} it is worse")
    return pool
