"""Counts of every arm to evidence, with intervals and Holm's correction, to a conclusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.common.seeds import seed_of
from data.sections import Margins
from eval.stats.analyses import certificate
from eval.stats.conclusion import Budget, Conclusion, decide, is_new, notes_on, tries_for
from eval.stats.counts import Counts, fresh_tries, solved_fresh, unsolved_by
from eval.stats.estimate import Estimate, Values, bootstrap_indices, crossed_interval
from eval.stats.passk import floor_at, solved_within

#: Quantities that cannot be negative, unlike differences.
_SHARES = ("certified", "control", "perhaps beyond base")
#: What the pooled problems of all tiers are called.
OVERALL = "overall"


class Arms:
    """Counts of every arm on one tier; what is None was not run.

    Attributes:
        base: before any training, as sampled.
        grpo: the tuned arm that is judged.
        base_best: the base at its best decoding, prompt and parsing.
        sft: what GRPO started from.
        format_only: GRPO rewarded for the form of an answer alone.
        guess: chance of a blind guess at each problem in one try, [problems].

    Several training seeds: ``c`` is [seeds, problems]. An arm of several seeds must have those of
    ``grpo``, in the same order, since they are compared seed by seed.
    """

    def __init__(
        self,
        base: Counts,
        grpo: Counts,
        base_best: Counts | None = None,
        sft: Counts | None = None,
        format_only: Counts | None = None,
        guess: ArrayLike | None = None,
    ) -> None:
        self.base, self.grpo, self.base_best = base, grpo, base_best
        self.sft, self.format_only = sft, format_only
        self.guess = None if guess is None else np.asarray(guess, dtype=np.float64)
        if len({arm.problems for arm in self.present}) > 1:
            raise ValueError("all arms need the same problems")
        if len({arm.asked_again for arm in self.present}) > 1:
            raise ValueError("either all arms have confirmation samples or none has")
        if self.guess is not None and self.guess.shape != (base.problems,):
            raise ValueError(f"guess {self.guess.shape} is not one chance a problem")

    @property
    def present(self) -> list[Counts]:
        arms = (self.base, self.base_best, self.sft, self.format_only, self.grpo)
        return [arm for arm in arms if arm is not None]

    @property
    def bases(self) -> list[Counts]:
        return [arm for arm in (self.base, self.base_best) if arm is not None]

    @property
    def rivals(self) -> dict[str, Counts]:
        """Other explanations than reinforcement learning with the whole reward, by name."""
        arms = {"sft": self.sft, "format_only": self.format_only}
        return {name: arm for name, arm in arms.items() if arm is not None}


def evidence(arms: Arms, margins: Margins) -> tuple[dict[str, Values], Budget]:
    """What each condition of the rule is about, a value for each problem ([..., problems]; the mean
    is the quantity), and the k at which it was taken. Counts may have any leading axes.

    ``certified`` and ``control`` are parts of "beyond base", for the reader: problems counted,
    before guesses are taken off, and base against base.

    Raises:
        ValueError: when an arm was not asked again what the base left unsolved, or GRPO was not
            asked it equally often everywhere.
    """
    n = min(int(arm.n.min()) for arm in arms.present)
    base, grpo = arms.base, arms.grpo
    tuned_at_1 = solved_within(grpo.n, grpo.c, 1)
    values = {
        f"gain over {name}": tuned_at_1 - solved_within(arm.n, arm.c, 1)
        for name, arm in {"base": base, **arms.rivals}.items()
    }
    values["large k"] = solved_within(grpo.n, grpo.c, n) - solved_within(base.n, base.c, n)
    guess = np.zeros(base.problems) if arms.guess is None else arms.guess
    if not base.asked_again:
        return values, Budget(n, 0, n, 0, 0, None, float(floor_at(guess, n).mean()))

    # Rivals are asked again only what the base left unsolved.
    unsolved = unsolved_by(arms.bases)
    fresh = fresh_tries([grpo], unsolved)
    asked = np.broadcast_to(grpo.fresh_n, np.broadcast_shapes(unsolved.shape, grpo.c.shape))
    if (asked[np.broadcast_to(unsolved, asked.shape)] != fresh).any():
        raise ValueError("GRPO needs equally many confirmation samples of every unsolved problem")
    m = fresh_tries([*arms.bases, *arms.rivals.values()], unsolved)
    needed = certificate(n + m, fresh, margins.lift, margins.luck, guess)
    control = unsolved & np.logical_or.reduce([arm.fresh_c >= needed for arm in arms.bases])
    for name, rival in {"base": [], **{k: [v] for k, v in arms.rivals.items()}}.items():
        missed = _missed([*arms.bases, *rival])
        certified = missed & (grpo.fresh_c >= needed)
        values[f"beyond {name}"] = 1.0 * certified - missed * guess - control
        if not rival:
            values |= {"certified": 1.0 * certified, "control": 1.0 * control}
            tries = tries_for(m, fresh, guess, margins)
            guessed = floor_at(guess, tries)
            skilled = (solved_fresh(grpo, missed, tries) - guessed) / np.maximum(1 - guessed, 1e-9)
            values["perhaps beyond base"] = missed * np.maximum(skilled, 0)
    return values, Budget(
        n,
        tries,
        n + m,
        fresh,
        int(np.median(needed)),
        float(guessed.mean()),
        float(floor_at(guess, n).mean()),
    )


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
        estimates: every quantity of the rule with its interval at ``Margins.level``.
        new: whether line 1 holds after the correction; ``tested_at`` is the one-sided level at
            which it was tested last.
    """

    conclusion: Conclusion
    reason: str
    notes: tuple[str, ...]
    estimates: dict[str, Estimate]
    budget: Budget
    problems: int
    seeds: int
    new: bool
    tested_at: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Conclusions:
    """Rulings by tier, and the overall one."""

    overall: Concluded
    tiers: dict[str, Concluded]

    @property
    def sentence(self) -> str:
        return f"{self.overall.conclusion.capitalize()}: {self.overall.reason}."


def conclude(
    tiers: Mapping[str, Arms],
    margins: Margins | None = None,
    seed: int = 0,
    who: str = "GRPO",
) -> Conclusions:
    """The conclusion on every tier and overall.

    Args:
        tiers: at least one; counts of each arm on the tier's problems.
        seed: the resampling of each tier is hashed from it.
        who: what the judged arm is called in words.

    Raises:
        UserError: when a margin makes no sense.
        ValueError: when counts do not fit each other.
    """
    margins = margins or Margins()
    margins.validate()
    if not tiers or OVERALL in tiers:
        raise ValueError(
            f"a conclusion needs at least one tier, and none may be called {OVERALL!r}"
        )
    found = {name: evidence(arms, margins) for name, arms in tiers.items()}
    if len(found) > 1:
        found[OVERALL] = _pooled([found[name] for name in tiers])
    cubes = {name: _cube(values) for name, (values, _) in found.items()}
    indices = {
        name: bootstrap_indices(
            cube.shape[1], margins.resamples, np.random.default_rng(seed_of(seed, "verdict", name))
        )
        for name, cube in cubes.items()
    }

    def estimates(name: str, divisor: int = 1) -> dict[str, Estimate]:
        """Intervals whose every end is wrong ``divisor`` times more rarely than at the level."""
        level = 1 - (1 - margins.level) / divisor
        least = np.array([0.0 if quantity in _SHARES else -1.0 for quantity in found[name][0]])
        intervals = crossed_interval(cubes[name], indices[name], level, bounds=(least, 1.0))
        return dict(zip(found[name][0], intervals, strict=True))

    most = len(found) if margins.correction == "holm" else 1
    by_divisor = {name: [estimates(name, d) for d in range(1, most + 1)] for name in found}
    depths = {name: _depth(by_divisor[name], margins) for name in found}
    tested = holm(depths) if most > 1 else {name: (depth == 1, 1) for name, depth in depths.items()}
    rulings = {}
    for name, (_, budget) in found.items():
        (new, divisor), at_level = tested[name], by_divisor[name][0]
        conclusion, reason = decide(at_level, budget, margins, new, who)
        rulings[name] = Concluded(
            conclusion,
            reason,
            tuple(notes_on(at_level, budget, margins, conclusion)),
            at_level,
            budget,
            problems=cubes[name].shape[1],
            seeds=len(cubes[name]),
            new=new,
            tested_at=(1 - margins.level) / 2 / divisor,
        )
    pool = rulings.pop(OVERALL, None)
    return Conclusions(_overall(rulings, pool), rulings)


def _pooled(parts: Sequence[tuple[dict[str, Values], Budget]]) -> tuple[dict[str, Values], Budget]:
    """All tiers' problems together: the quantities that every tier has, each taken at its tier's
    own k, and the least k of any."""
    names = [name for name in parts[0][0] if all(name in values for values, _ in parts)]
    values = {name: np.concatenate([v[name] for v, _ in parts], axis=-1) for name in names}
    every = [vars(budget) for _, budget in parts]
    # A tier whose problems were all solved has no confirmation samples to speak of.
    budgets = [budget for budget in every if budget["fresh"]] or every
    least = {
        key: min((b[key] for b in budgets if b[key] is not None), default=None)
        for key in budgets[0]
    }
    return values, Budget(**least)


def _cube(values: Mapping[str, Values]) -> NDArray[np.float64]:
    """[seeds, problems, quantities]."""
    seeds = max(len(np.atleast_2d(v)) for v in values.values())
    return np.stack(
        [np.broadcast_to(v, (seeds, np.shape(v)[-1])) for v in values.values()], axis=-1
    )


def _depth(by_divisor: Sequence[Mapping[str, Estimate]], margins: Margins) -> int:
    """The greatest divisor of the level at which it is still new; 0 where it is at none."""
    return max((d for d, e in enumerate(by_divisor, 1) if is_new(e, margins)), default=0)


def holm(depths: Mapping[str, int]) -> dict[str, tuple[bool, int]]:
    """Holm's step-down procedure (1979, Scandinavian Journal of Statistics 6:65) where hypothesis i
    is rejected at ``level / d`` for every d up to ``depths[i]``.

    The surest is tested at level / h, the next at level / (h - 1), and so on until one fails.

    Returns:
        per hypothesis, whether it is rejected, and the divisor at which it was tested last.
    """
    ordered = sorted(depths, key=lambda name: -depths[name])
    decided, going = {}, True
    for rank, name in enumerate(ordered):
        divisor = len(ordered) - rank
        going = going and depths[name] >= divisor
        decided[name] = (going, divisor)
    return decided


def _overall(tiers: Mapping[str, Concluded], pool: Concluded | None) -> Concluded:
    if pool is None:
        return next(iter(tiers.values()))
    with_new = [name for name, ruling in tiers.items() if ruling.new]
    if pool.new or not with_new:
        return pool
    # A tier is enough: a new capability need not show on problems that do not call for it.
    reason = f"on {', '.join(with_new)}: {tiers[with_new[0]].reason}"
    return replace(pool, conclusion=Conclusion.NEW, reason=reason, new=True)
