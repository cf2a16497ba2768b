"""Cases with a known truth: what training did to a base model's chances, and counts drawn from it.

Each problem has a chance of success a try in each arm; a case says what training did to the base's
chances. Answers are drawn from them as samples of a model would be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.sections import Margins
from eval.stats.conclusion import Conclusion
from eval.stats.counts import Counts, unsolved_by
from eval.stats.estimate import Values
from eval.stats.evidence import Arms

#: The stated effect: a skill new on this share of problems, with this chance of success a try.
STATED, SKILL = 0.10, 0.3
#: Narrowing keeps what the base solves at least at this rate; the share that distillation teaches.
KEPT, TAUGHT = 0.1, 0.2

#: Base models: how problems' chances of success a try are distributed. (weight, a, b) of each beta
#: distribution; what the weights leave is problems that it never solves.
STRENGTHS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "weak": ((0.5, 0.5, 8),),
    "middle": ((0.8, 0.6, 4),),
    "strong": ((0.5, 1.2, 6), (0.45, 4, 2)),
    # Many problems that it solves once in thousands of tries: hardest to distinguish from never.
    "long tail": ((1.0, 0.2, 3),),
}


@dataclass(frozen=True)
class StudySize:
    """How much is sampled: problems, samples of each, confirmation samples of the unsolved; and how
    often a blind guess is right, on average."""

    problems: int
    samples: int
    fresh: int
    guess: float = 0.03

    def __str__(self) -> str:
        size = f"{self.problems} x {self.samples} + {self.fresh}"
        return f"{size}, guessing {100 * self.guess:g} %"

    def guesses(self, rng: np.random.Generator) -> Values:
        """A guess's chance at each problem, of a beta distribution: more unlike the rarer it is."""
        if not self.guess:
            return np.zeros(self.problems)
        return rng.beta(1, 1 / self.guess - 1, self.problems)


#: Chances of success a try, [repetitions, problems], of every arm of a case, named as in ``Arms``.
#: Counts are drawn in their order.
Chances = dict[str, Values]
#: From the base's chances and those of guessing, what training makes of them.
SimulatedTraining = Callable[[Values, Values, np.random.Generator], Chances]


@dataclass(frozen=True)
class KnownCase:
    """What training did.

    Attributes:
        right: conclusions that are right; "new capability" is false wherever it is not among them.
        bounded: whether power is bounded; without, the share of right conclusions is only shown.
        false_bounded: whether false "new capability" is; not where the criterion cannot tell.
    """

    name: str
    training: SimulatedTraining
    right: tuple[Conclusion, ...]
    bounded: bool = True
    false_bounded: bool = True


def sharpened(p: Values, lift: float | Values) -> Values:
    """What ``lift`` tries give, in one: ``1 - (1 - p)^lift``."""
    return 1 - (1 - p) ** lift


def _beside_light_training(base: Values, grpo: Values) -> Chances:
    """SFT, format-only training and better decoding explain some of the gain, as in practice."""
    lifts = {"base_best": 1.5, "sft": 1.2, "format_only": 1.1}
    return {"base": base, "grpo": grpo, **{arm: sharpened(base, x) for arm, x in lifts.items()}}


def _nothing(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    return dict.fromkeys(("base", "grpo", "base_best", "sft", "format_only"), p)


def _sharpening(lift: float) -> SimulatedTraining:
    return lambda p, g, rng: _beside_light_training(p, sharpened(p, lift))


def _unevenly(most: float) -> SimulatedTraining:
    """Each problem is sharpened by a lift of its own, up to ``most``."""

    def training(p: Values, g: Values, rng: np.random.Generator) -> Chances:
        lift = np.exp(rng.uniform(0, np.log(most), p.shape))
        return _beside_light_training(p, sharpened(p, lift))

    return training


def _at_worst(lift: float) -> SimulatedTraining:
    """Every problem is so hard that sharpening looks most like a new skill."""

    def training(p: Values, g: Values, rng: np.random.Generator) -> Chances:
        base = np.full(p.shape, 1 - (1 - 0.17) ** (1 / lift))
        untrained = dict.fromkeys(("base_best", "sft", "format_only"), base)
        return {"base": base, "grpo": sharpened(base, lift)} | untrained

    return training


def at_temperature(temperature: float, shape: tuple[int, ...], seed: int = 0) -> Values:
    """Chances of an answer of 40 decisions between two, each right by a log-odds of its problem."""
    odds = np.random.default_rng(seed).normal(2.3, 1.0, shape)
    return (1 / (1 + np.exp(-odds / temperature))) ** 40


def _cooling(best: float | None) -> SimulatedTraining:
    """GRPO is the base at a lower temperature; the base at its best is at temperature ``best``."""

    def training(p: Values, g: Values, rng: np.random.Generator) -> Chances:
        seed = int(rng.integers(2**32))
        degrees = {"base": 1.0, "grpo": 0.3, "format_only": 1.0}
        degrees |= {} if best is None else {"base_best": best}
        return {arm: at_temperature(degree, p.shape, seed) for arm, degree in degrees.items()}

    return training


def _common(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    """Rare successes, one in 300 to 2,000 tries on 30 % of problems, made common."""
    rare = rng.random(p.shape) < 0.3
    base = np.where(rare, 1 / np.exp(rng.uniform(np.log(300), np.log(2000), p.shape)), p)
    return _beside_light_training(base, np.where(rare, SKILL, sharpened(base, 4)))


def _losing(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    return _beside_light_training(p, sharpened(p, 2)) | {"sft": sharpened(p, 8)}


def _collapse(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    new = rng.random(p.shape) < STATED
    base = np.where(new, 0, np.maximum(p, 0.3))
    return _beside_light_training(base, np.where(new, 0.9, base / 20))


def _narrowing(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    return _beside_light_training(p, np.where(p < KEPT, 0, sharpened(p, 16)))


def new_skill(share: float, kept: float = 0.0, chance: float = SKILL) -> SimulatedTraining:
    """A skill new on a share of problems; of the others only those at rate ``kept`` are kept."""

    def training(p: Values, g: Values, rng: np.random.Generator) -> Chances:
        new = rng.random(p.shape) < share
        base = np.where(new, 0, p)
        tuned = np.where(base < kept, 0, sharpened(base, 4))
        return _beside_light_training(base, np.where(new, chance, tuned))

    return training


def _form(share: float, asked: bool = True) -> SimulatedTraining:
    """The base answers in the form asked for only so often; the skill behind it is unchanged."""
    shares = {"base": share, "grpo": 0.96, "base_best": 0.9 if asked else share}
    shares |= {"format_only": 0.95} if asked else {}
    return lambda p, g, rng: {arm: of_arm * p for arm, of_arm in shares.items()}


def _distilling(lift: float) -> SimulatedTraining:
    """SFT taught what base could not; GRPO sharpened that."""

    def training(p: Values, g: Values, rng: np.random.Generator) -> Chances:
        taught = rng.random(p.shape) < TAUGHT
        base = np.where(taught, 0, p)
        sft = np.where(taught, SKILL, sharpened(base, 2))
        return _beside_light_training(base, sharpened(sft, lift)) | {"sft": sft}

    return training


def _guessing(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    return _beside_light_training(p, 1 - (1 - sharpened(p, 4)) * (1 - g))


def _keeping_a_guess(p: Values, g: Values, rng: np.random.Generator) -> Chances:
    """Training fixed one answer a problem, by chance the right one."""
    return _beside_light_training(p, np.where(rng.random(p.shape) < g, 1, sharpened(p, 4)))


def known_cases(margins: Margins) -> tuple[KnownCase, ...]:
    """Everything that the criterion is tested on."""
    new, elicited, narrowed = Conclusion.NEW, Conclusion.ELICITED, Conclusion.NARROWED
    still, distilled, form = Conclusion.INCONCLUSIVE, Conclusion.DISTILLED, Conclusion.FORMAT
    worse, lift, least = Conclusion.WORSE, margins.lift, margins.new
    return (
        KnownCase("identical", _nothing, (still,)),
        KnownCase("sharpened 4 times", _sharpening(4), (elicited,)),
        KnownCase(f"sharpened {lift} times", _sharpening(lift), (elicited,)),
        KnownCase("sharpened unevenly", _unevenly(lift), (elicited,)),
        KnownCase(f"sharpened {lift} times, at worst", _at_worst(lift), (elicited, still)),
        KnownCase("sharpened, and guesses", _guessing, (elicited, still), bounded=False),
        KnownCase("sharpened, keeps a guess", _keeping_a_guess, (elicited,), bounded=False),
        KnownCase("narrowed", _narrowing, (narrowed,)),
        KnownCase("format only, 40 % before", _form(0.4), (form,), bounded=False),
        KnownCase("format only, none before", _form(0.0), (form,)),
        KnownCase("distilled", _distilling(1), (distilled,)),
        KnownCase("distilled, then sharpened", _distilling(2), (distilled,)),
        KnownCase(f"new on {least:.0%}: the margin", new_skill(least), (still, elicited)),
        KnownCase("new on 5 %", new_skill(0.05), (new, elicited, still), bounded=False),
        KnownCase(f"new on {STATED:.0%}: stated", new_skill(STATED), (new,)),
        KnownCase(f"new on {STATED:.0%}, narrowed", new_skill(STATED, KEPT), (new,)),
        KnownCase("new on 20 %", new_skill(0.2), (new,)),
        KnownCase("new on 10 %, else collapsed", _collapse, (new,)),
        KnownCase("worse", lambda p, g, rng: _beside_light_training(p, p / 4), (worse,), False),
        KnownCase("worse than its start", _losing, (worse,), False),
        KnownCase("weak, right in 8 %", new_skill(1.0, chance=0.08), (still, new), False),
        KnownCase("weak on 20 %, right in 10 %", new_skill(0.2, chance=0.1), (still, new), False),
        KnownCase("a lower temperature", _cooling(0.4), (elicited, still)),
        KnownCase("a lower temperature, unasked", _cooling(None), (elicited, still)),
        KnownCase("form, unasked, 1 % before", _form(0.01, asked=False), (still, form)),
        KnownCase("rare successes made common", _common, (elicited, still)),
        # No number of samples tells it from a new skill where the base is weak; the reason says so.
        KnownCase("sharpened 256 times", _sharpening(256), (elicited,), False, False),
    )


def base_chances(strength: str, shape: tuple[int, int], rng: np.random.Generator) -> Values:
    """Chances of success a try of a base model, [repetitions, problems]."""
    draw, chances = rng.random(shape), np.zeros(shape)
    edge = 0.0
    for weight, a, b in STRENGTHS[strength]:
        here = (draw >= edge) & (draw < edge + weight)
        chances[here] = rng.beta(a, b, here.sum())
        edge += weight
    return chances


def drawn_counts(
    chances: Chances, guess: Values, size: StudySize, rng: np.random.Generator
) -> Arms:
    """Counts as an evaluation has them: confirmation samples where the base solved nothing."""
    first = {name: rng.binomial(size.samples, p) for name, p in chances.items()}
    bases = [Counts(size.samples, first[name]) for name in ("base", "base_best") if name in first]
    fresh_n = np.where(unsolved_by(bases), size.fresh, 0)
    counts = {
        name: Counts(size.samples, first[name], fresh_n, rng.binomial(fresh_n, p))
        for name, p in chances.items()
    }
    return Arms(**counts, guess=guess)
