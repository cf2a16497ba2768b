"""What a planned evaluation can detect, said before any sample is drawn."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binom

from data.sections import Margins
from eval.stats.cases import SKILL, STATED
from eval.stats.certificate import certificate

#: Chance to find a problem that a model can solve, and to find an effect of the size stated.
FOUND, POWER = 0.95, 0.8
#: Assumed: the standard deviation over problems of the difference in pass@1 (0.35 was seen between
#: GRPO and SFT on 8 to 10 events); the share of problems that one arm solves within n and the other
#: does not, by chance; and the share that the base misses in all its samples, of those that no new
#: skill is about.
SPREAD, CHURN, MISSED = 0.35, 0.1, 0.5
#: The sizes that the stated effect needs are told up to so many times as many problems and samples.
MOST = 32


@dataclass(frozen=True)
class Detectable:
    """The least effects found with a chance of ``POWER``; None where even all problems are too few.

    Attributes:
        gain: in pass@1 over the base, a share.
        new: share of problems on which a skill is new, right in ``skill`` of the tries there.
        narrowed: loss of pass@n, a share.
        elicited: the fewest problems that can come out as elicited.
        possible: whether a perfect solver, right everywhere, would come out as a new capability.
        needed: the fewest problems, samples and confirmation samples that find a skill new on
            ``share`` of such problems; None where ``MOST`` times as many do not.
        rate: a problem that the base solves at this rate a sample is found within ``reach`` samples
            with a chance of 95 %; below, "not reachable" may only be rare.
    """

    problems: int
    samples: int
    fresh: int
    reach: int
    power: float
    gain: float | None
    new: float | None
    skill: float
    narrowed: float | None
    elicited: int
    possible: bool
    share: float
    needed: tuple[int, int, int] | None
    rate: float

    @property
    def sentence(self) -> str:
        effects = {
            "a gain at k = 1": (self.gain, "of {:.1f} points"),
            f"a loss at k = {self.samples}": (self.narrowed, "of {:.1f} points"),
            f"a new skill, {100 * self.skill:.0f} % reliable,": (self.new, "on {:.1f} % of them"),
        }
        seen = [
            f"{what} {how.format(100 * least)}"
            for what, (least, how) in effects.items()
            if least is not None
        ]
        unseen = [what.partition(",")[0] for what, (least, _) in effects.items() if least is None]
        enough = f"enough to see {', '.join(seen)} (power {100 * self.power:.0f} %)" * bool(seen)
        too_few = f"too few to see {', '.join(unseen)}" * bool(unseen)
        return (
            f"{self.problems} problems x {self.samples} samples are "
            f"{'; '.join(filter(None, (enough, too_few)))}. {self._new_in_words()}What base "
            f"misses in all {self.reach} samples it may still solve once in {1 / self.rate:,.0f} "
            "tries."
        )

    def _new_in_words(self) -> str:
        """What a new skill takes, where these samples are too few for it."""
        few = f"Elicited takes {self.elicited} problems or more. " * (self.problems < self.elicited)
        if self.new is not None and self.new <= self.share:
            return few
        never = "Not even a perfect solver would come out as a new capability. "
        skill = f"A skill new on {100 * self.share:.0f} % of such problems"
        if self.needed is None:
            takes = f"{skill} is not seen with {MOST} times as many, either. "
        else:
            takes = "{} would take {:,} problems x {:,} + {:,} samples. ".format(
                skill, *self.needed
            )
        return few + never * (not self.possible) + takes

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def detectable(
    problems: int,
    samples: int,
    fresh: int,
    margins: Margins,
    guess: ArrayLike = 0.0,
    tests: int = 1,
) -> Detectable:
    """The least effects that these numbers find with ``POWER``, by the normal approximation: a mean
    over problems is found to exceed a margin by ``(z(level) + z(POWER)) sd / sqrt(problems)``.

    Args:
        samples, fresh: of every problem, and of every unsolved one again.
        guess: chance of a blind guess at each problem, [problems]; of any number of problems.
        tests: for a new skill that share the chance of error, ``conclude``'s correction.
    """
    z_new = ndtri(1 - (1 - margins.level) / 2 / tests) + ndtri(POWER)
    z = ndtri((1 + margins.level) / 2) + ndtri(POWER)
    guess = np.asarray(guess, dtype=np.float64)

    steps = [2**i for i in range(MOST.bit_length())]
    needed = {
        times: certificate(
            times * (samples + fresh), times * fresh, margins.lift, margins.luck, guess
        )
        for times in steps
    }

    def new(skill: float, times: int = 1, of: int = problems) -> float | None:
        hit = float(binom.sf(needed[times] - 1, times * fresh, skill).mean())
        return _least(of, z_new, margins.new, 0.0, hit, float(guess.mean()))

    sizes = sorted(((a, b) for a in steps for b in steps), key=lambda size: size[0] * size[1])
    enough = ((a, b) for a, b in sizes if (new(SKILL, b, a * problems) or 1) <= STATED)
    first = next(enough, None)
    # The problem that was not seen may differ by all there is: see ``mean_interval``.
    gain = max(margins.gain, z * np.sqrt((SPREAD**2 + 1 / problems) / problems))
    narrowed = _least(problems, z, 0.0, CHURN + 1 / problems, 1.0, 0.0)
    return Detectable(
        problems,
        samples,
        fresh,
        samples + fresh,
        POWER,
        float(gain) if gain < 1 else None,
        new(SKILL),
        SKILL,
        None if narrowed is None else max(margins.narrowed, narrowed),
        # The upper limit of a share of which nothing was seen must lie below ``reach``.
        math.ceil(np.log(1 - margins.level) / np.log(1 - margins.reach)),
        new(1.0) is not None,
        STATED,
        first and (first[0] * problems, first[1] * samples, first[1] * fresh),
        1 - (1 - FOUND) ** (1 / (samples + fresh)),
    )


def _least(
    problems: int, z: float, margin: float, noise: float, hit: float, chance: float
) -> float | None:
    """The least share s of problems, each of which shows with chance ``hit``, that exceeds the
    margin by z standard errors; ``noise`` is added to the variance, and a guess taken off where the
    base missed. None where all problems do not."""

    def lacking(s: float) -> float:
        seen = s * hit - chance * (s + (1 - s) * MISSED)
        variance = s * hit * (1 - s * hit) + noise
        return seen - margin - z * np.sqrt(variance / problems)

    return float(brentq(lacking, 0, 1)) if lacking(1.0) > 0 else None
