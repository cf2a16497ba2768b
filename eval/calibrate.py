"""Test the test (``make calibrate``): ``eval.stats.evidence`` on arms whose truth is known.

Each problem has a chance of success a try in each arm; a scenario says what training did to the
base's chances. Answers are drawn from them, as samples of a model would be, and the conclusion is
taken. Writes ``report.json`` and exits with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import write_json
from data.common.seeds import seed_of
from data.recipe import RUNS
from eval.stats.conclusion import Conclusion, Margins, decide, is_new
from eval.stats.counts import Counts, unsolved_by
from eval.stats.estimate import Values, bootstrap_indices, mean_interval
from eval.stats.evidence import Arms, evidence
from eval.stats.power import detectable

#: At most this share of arms without a new skill may be called a new capability, and of arms with
#: the stated one merely elicited.
MOST_FALSE = 0.05
#: At least this share of arms with the stated effect must be called what they are.
LEAST_POWER = 0.80
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
    # Many problems that it solves once in thousands of tries: hardest to tell from never.
    "long tail": ((1.0, 0.2, 3),),
}
#: Blind guessing's chance a try, (a, b) of a beta distribution: 3 % on average.
GUESS = (1, 32)


@dataclass(frozen=True)
class Size:
    """How much is sampled: problems, samples of each, confirmation samples of the unsolved."""

    problems: int
    samples: int
    fresh: int

    def __str__(self) -> str:
        return f"{self.problems} x {self.samples} + {self.fresh}"


#: The first is where the bounds on power hold; false claims are bounded everywhere.
SIZES = (Size(200, 64, 256), Size(100, 64, 256), Size(400, 64, 256), Size(200, 128, 512))
PROBLEMS = (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Truth:
    """Chances of success a try, [repetitions, problems], of every arm of a scenario."""

    base: Values
    grpo: Values
    sft: Values | None = None
    format_only: Values | None = None
    base_best: Values | None = None


Maker = Callable[[Values, Values, np.random.Generator], Truth]


@dataclass(frozen=True)
class Scenario:
    """What training did.

    Attributes:
        truth: from the base's chances, those of guessing, and a random generator.
        right: conclusions that are right; "new capability" is false wherever it is not among them.
        bounded: whether power is (see ``SIZES``); without, the share of right conclusions is shown.
        false_bounded: whether false "new capability" is; not where the rule says that it cannot
            tell.
    """

    name: str
    truth: Maker
    right: tuple[Conclusion, ...]
    bounded: bool = True
    false_bounded: bool = True


def sharpened(p: Values, lift: float | Values) -> Values:
    """What ``lift`` tries give, in one: ``1 - (1 - p)^lift``."""
    return 1 - (1 - p) ** lift


def _sharpened(lift: float) -> Maker:
    # Light SFT and format-only training explain some of the gain, as they do in practice.
    return lambda p, g, rng: Truth(p, sharpened(p, lift), sharpened(p, 1.2), sharpened(p, 1.1))


def _unevenly(p: Values, g: Values, rng: np.random.Generator) -> Truth:
    lift = np.exp(rng.uniform(0, np.log(Margins().lift), p.shape))
    return Truth(p, sharpened(p, lift), sharpened(p, 1.2), sharpened(p, 1.1))


def _at_worst(p: Values, g: Values, rng: np.random.Generator) -> Truth:
    """Every problem so hard that sharpening looks most like a new skill."""
    base = np.full(p.shape, 1 - (1 - 0.17) ** (1 / Margins().lift))
    return Truth(base, sharpened(base, Margins().lift), base, base)


def _narrowed(p: Values, g: Values, rng: np.random.Generator) -> Truth:
    tuned = np.where(p < KEPT, 0, sharpened(p, 16))
    return Truth(p, tuned, sharpened(p, 1.2), sharpened(p, 1.1))


def _new(share: float, kept: float = 0.0) -> Maker:
    """A skill new on a share of problems; of the others only those at rate ``kept`` are."""

    def truth(p: Values, g: Values, rng: np.random.Generator) -> Truth:
        new = rng.random(p.shape) < share
        base = np.where(new, 0, p)
        tuned = np.where(base < kept, 0, sharpened(base, 4))
        return Truth(base, np.where(new, SKILL, tuned), sharpened(base, 1.2), sharpened(base, 1.1))

    return truth


def _format(share: float) -> Maker:
    """The base answers in the form asked for only so often; the skill behind it is unchanged."""

    def truth(p: Values, g: Values, rng: np.random.Generator) -> Truth:
        return Truth(share * p, 0.97 * p, base_best=0.9 * p, format_only=0.95 * p)

    return truth


def _distilled(lift: float) -> Maker:
    """SFT taught what base could not; GRPO sharpened that."""

    def truth(p: Values, g: Values, rng: np.random.Generator) -> Truth:
        taught = rng.random(p.shape) < TAUGHT
        base = np.where(taught, 0, p)
        sft = np.where(taught, SKILL, sharpened(base, 2))
        return Truth(base, sharpened(sft, lift), sft, sharpened(base, 1.1))

    return truth


def _guessing(p: Values, g: Values, rng: np.random.Generator) -> Truth:
    return Truth(p, 1 - (1 - sharpened(p, 4)) * (1 - g), sharpened(p, 1.2), sharpened(p, 1.1))


def _kept_guess(p: Values, g: Values, rng: np.random.Generator) -> Truth:
    """Training fixed one answer a problem, by chance the right one."""
    tuned = np.where(rng.random(p.shape) < g, 1, sharpened(p, 4))
    return Truth(p, tuned, sharpened(p, 1.2), sharpened(p, 1.1))


def scenarios(margins: Margins) -> tuple[Scenario, ...]:
    new, elicited, narrowed = Conclusion.NEW, Conclusion.ELICITED, Conclusion.NARROWED
    still, distilled, form = Conclusion.INCONCLUSIVE, Conclusion.DISTILLED, Conclusion.FORMAT
    lift = margins.lift
    return (
        Scenario("identical", _sharpened(1), (still,)),
        Scenario("sharpened 4 times", _sharpened(4), (elicited,)),
        Scenario(f"sharpened {lift} times", _sharpened(lift), (elicited,)),
        Scenario("sharpened unevenly", _unevenly, (elicited,)),
        Scenario(f"sharpened {lift} times, at worst", _at_worst, (elicited, still)),
        Scenario("sharpened, and guesses", _guessing, (elicited,), bounded=False),
        Scenario("sharpened, keeps a guess", _kept_guess, (elicited,), bounded=False),
        Scenario("narrowed", _narrowed, (narrowed,)),
        Scenario("format only, 40 % before", _format(0.4), (form,), bounded=False),
        Scenario("format only, none before", _format(0.0), (form,)),
        Scenario("distilled", _distilled(1), (distilled,)),
        Scenario("distilled, then sharpened", _distilled(2), (distilled,)),
        Scenario(f"new on {margins.new:.0%}: the margin", _new(margins.new), (still, elicited)),
        Scenario("new on 5 %", _new(0.05), (new,), bounded=False),
        Scenario(f"new on {STATED:.0%}: stated", _new(STATED), (new,)),
        Scenario(f"new on {STATED:.0%}, narrowed", _new(STATED, KEPT), (new,)),
        Scenario("new on 20 %", _new(0.2), (new,)),
        Scenario("sharpened 256 times", _sharpened(256), (elicited,), False, False),
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


def sampled(truth: Truth, guess: Values, size: Size, rng: np.random.Generator) -> Arms:
    """Counts as an evaluation has them: confirmation samples where the base solved nothing."""
    present = {name: chances for name, chances in vars(truth).items() if chances is not None}
    first = {name: rng.binomial(size.samples, p) for name, p in present.items()}
    bases = [Counts(size.samples, first[name]) for name in ("base", "base_best") if name in first]
    fresh_n = np.where(unsolved_by(bases), size.fresh, 0)
    return Arms(
        **{
            name: Counts(size.samples, first[name], fresh_n, rng.binomial(fresh_n, p))
            for name, p in present.items()
        },
        guess=guess,
    )


def conclusions(arms: Arms, margins: Margins, indices: NDArray[np.int32]) -> list[Conclusion]:
    """What is concluded on one tier, by repetition; counts are [repetitions, problems]."""
    values, budget = evidence(arms, margins)
    cube = np.stack(list(values.values()), axis=-1)  # [repetitions, problems, quantities]
    columns = cube.transpose(1, 0, 2).reshape(cube.shape[1], -1)
    found = mean_interval(columns, indices, margins.level, bounds=(-1.0, 1.0))
    rows = (found[i : i + len(values)] for i in range(0, len(found), len(values)))
    decided = []
    for row in rows:
        estimates = dict(zip(values, row, strict=True))
        decided.append(decide(estimates, budget, margins, is_new(estimates, margins))[0])
    return decided


@dataclass(frozen=True)
class Cell:
    """How often each conclusion was given to one scenario, base strength and size."""

    scenario: str
    strength: str
    size: Size
    repetitions: int
    counts: dict[str, int]
    right: float
    false_new: float | None
    false_elicited: float | None
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cell(
    scenario: Scenario, strength: str, size: Size, repetitions: int, margins: Margins, seed: int
) -> Cell:
    """Draw, judge and check one cell."""
    rng = np.random.default_rng(seed_of(seed, "calibrate", scenario.name, strength, str(size)))
    shape = (repetitions, size.problems)
    guess = rng.beta(*GUESS, size.problems)
    base = base_chances(strength, shape, rng)
    arms = sampled(scenario.truth(base, guess, rng), guess, size, rng)
    indices = bootstrap_indices(size.problems, margins.resamples, rng)
    counts = Counter(conclusions(arms, margins, indices))
    share = {conclusion: counts[conclusion] / repetitions for conclusion in Conclusion}
    right = sum(share[conclusion] for conclusion in scenario.right)
    is_really_new = Conclusion.NEW in scenario.right
    false_new = None if is_really_new else share[Conclusion.NEW]
    false_elicited = (
        share[Conclusion.ELICITED] + share[Conclusion.NARROWED]
        if is_really_new and scenario.bounded
        else None
    )
    failures = []
    for what, found in (("new capability", false_new), ("elicited", false_elicited)):
        if scenario.false_bounded and found is not None and found > MOST_FALSE:
            failures.append(f"false {what!r} {found:.1%}, more than {MOST_FALSE:.0%}")
    if scenario.bounded and size == SIZES[0] and right < LEAST_POWER:
        failures.append(f"right {right:.1%}, less than {LEAST_POWER:.0%}")
    return Cell(
        scenario.name,
        strength,
        size,
        repetitions,
        {str(conclusion): counts[conclusion] for conclusion in Conclusion},
        right,
        false_new,
        false_elicited,
        tuple(failures),
    )


def least_problems(
    repetitions: int, margins: Margins, seed: int
) -> dict[str, dict[str, int | None]]:
    """The fewest problems at which a new skill on a share of them is found with the stated power,
    by share and base strength, at the first size's samples; None where it takes more than tried."""
    found: dict[str, dict[str, int | None]] = {}
    for share in (0.05, 0.1, 0.2):
        scenario = Scenario(f"new on {share:.0%}", _new(share), (Conclusion.NEW,), bounded=False)
        found[f"{share:.0%}"] = {
            strength: next(
                (
                    count
                    for count in PROBLEMS
                    if cell(
                        scenario,
                        strength,
                        Size(count, SIZES[0].samples, SIZES[0].fresh),
                        repetitions,
                        margins,
                        seed,
                    ).right
                    >= LEAST_POWER
                ),
                None,
            )
            for strength in STRENGTHS
        }
    return found


_SHORT = {
    Conclusion.NEW: "new",
    Conclusion.NARROWED: "narr.",
    Conclusion.ELICITED: "elic.",
    Conclusion.DISTILLED: "dist.",
    Conclusion.FORMAT: "form.",
    Conclusion.INCONCLUSIVE: "open",
}


def show(cells: Iterable[Cell], needed: dict[str, dict[str, int | None]], console: Console) -> None:
    """Every cell's conclusions in %, then how many problems an effect takes."""
    table = Table(box=box.SIMPLE_HEAD, title="conclusions given, in % of repetitions")
    for column in ("what training did", "base", "problems x n + fresh"):
        table.add_column(column)
    for column in (*_SHORT.values(), "right", ""):
        table.add_column(column, justify="right")
    last = None
    for c in cells:
        if last not in (None, c.scenario):
            table.add_section()
        table.add_row(
            "" if c.scenario == last else c.scenario,
            c.strength,
            str(c.size),
            *(f"{100 * c.counts[conclusion] / c.repetitions:.0f}" for conclusion in _SHORT),
            f"{100 * c.right:.0f}",
            "; ".join(c.failures) or "ok",
        )
        last = c.scenario
    console.print(table)
    sizes = Table(
        box=box.SIMPLE_HEAD,
        title=f"problems that a new skill takes, {SIZES[0].samples} samples and {SIZES[0].fresh} "
        f"confirmation samples, power {LEAST_POWER:.0%}",
    )
    sizes.add_column("new on")
    for strength in STRENGTHS:
        sizes.add_column(strength, justify="right")
    for share, by_strength in needed.items():
        more = f"over {PROBLEMS[-1]}"
        sizes.add_row(share, *(str(count or more) for count in by_strength.values()))
    console.print(sizes)


def calibrate(
    repetitions: int,
    margins: Margins,
    seed: int,
) -> list[Cell]:
    """Every scenario, base strength and size."""
    return [
        cell(scenario, strength, size, repetitions, margins, seed)
        for scenario in scenarios(margins)
        for strength in STRENGTHS
        for size in SIZES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.calibrate",
        description="Judge simulated arms whose truth is known: how often is the conclusion right?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=200, help="of every cell")
    parser.add_argument(
        "--resamples", type=int, default=1000, help="of the problems, for intervals"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the simulated arms")
    parser.add_argument("--out", type=Path, default=RUNS / "calibrate", help="folder of the report")
    options = parser.parse_args()
    for key, least in (("repetitions", 20), ("resamples", 100)):
        if getattr(options, key) < least:
            raise UserError(f"--{key} must be {least} or more, not {getattr(options, key)}")
    margins = Margins(resamples=options.resamples)
    start = time.monotonic()
    cells = calibrate(options.repetitions, margins, options.seed)
    needed = least_problems(options.repetitions, margins, options.seed)
    console = plain_console(140)
    show(cells, needed, console)
    failures = [f"{c.scenario}, {c.strength}, {c.size}: {f}" for c in cells for f in c.failures]
    write_json(
        options.out / "report.json",
        {
            "margins": asdict(margins),
            "seed": options.seed,
            "most_false": MOST_FALSE,
            "least_power": LEAST_POWER,
            "stated": {"share": STATED, "skill": SKILL, "size": asdict(SIZES[0])},
            "cells": [c.to_json() for c in cells],
            "problems_needed": needed,
            "failures": failures,
        },
    )
    chance = [GUESS[0] / sum(GUESS)]
    stated = detectable(**asdict(SIZES[0]), margins=margins, guess=chance, skill=SKILL)
    console.print(f"Said beforehand: {stated.sentence}", soft_wrap=True)
    console.print(
        f"{len(cells)} cells of {options.repetitions} in {time.monotonic() - start:.0f} s; "
        f"{options.out / 'report.json'}; "
        + (f"out of bounds: {len(failures)}" if failures else "all within bounds"),
        soft_wrap=True,
    )
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
