"""Tests the test (``make calibrate``): what is concluded of arms whose truth is known.

Every case of ``eval.stats.cases`` is drawn many times over and concluded on. Writes ``report.json``
and exits with 1 where a bound does not hold.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path

import numpy as np

from data.common.console import paced
from data.common.errors import require, run_main
from data.common.files import write_json
from data.common.flags import Parser
from data.common.seeds import seed_of
from data.recipe import RUNS
from data.sections import Margins
from eval.stats.cases import (
    SKILL,
    STATED,
    STRENGTHS,
    KnownCase,
    StudySize,
    base_chances,
    drawn_counts,
    known_cases,
)
from eval.stats.conclusion import Conclusion, Evidence, decide
from eval.stats.estimate import Weights, bootstrap_weights, mean_interval
from eval.stats.evidence import Arms, quantities_of

#: At most this share of arms without a new skill may be called a new capability, and of arms with
#: the stated one merely elicited.
MOST_FALSE = 0.05
#: At least this share of arms with the stated effect must be called what they are.
LEAST_POWER = 0.80
#: Resamples of the problems, for intervals; and the seed of the simulated arms.
RESAMPLES, SEED = 1000, 7
#: The bounds on power hold at the first; false claims are bounded everywhere.
STUDY_SIZES = (
    StudySize(200, 64, 256),
    StudySize(100, 64, 256),
    StudySize(400, 64, 256),
    StudySize(200, 128, 512),
    StudySize(50, 64, 256),
    StudySize(100, 16, 64),
    StudySize(200, 64, 256, guess=0.0),
    StudySize(200, 64, 256, guess=0.14),
    StudySize(200, 64, 256, guess=0.23),
    StudySize(200, 64, 256, guess=0.49),
)


def concluded_by_repetition(arms: Arms, margins: Margins, weights: Weights) -> list[Conclusion]:
    """The conclusion on one tier, by repetition; counts are [repetitions, problems]."""
    values, budget = quantities_of(arms, margins)
    intervals = [
        mean_interval(of_quantity.T, weights, margins.level, bounds=(-1.0, 1.0))
        for of_quantity in values.values()  # [repetitions, problems]
    ]
    conclusions = []
    for of_repetition in zip(*intervals, strict=True):
        evidence = Evidence(dict(zip(values, of_repetition, strict=True)), budget)
        conclusion, _ = decide(evidence, margins, evidence.shows_new(margins))
        conclusions.append(conclusion)
    return conclusions


@dataclass(frozen=True)
class Calibration:
    """Counts of the conclusions that were drawn on one case, base strength and size."""

    scenario: str
    strength: str
    size: StudySize
    repetitions: int
    counts: dict[str, int]
    right: float
    false_new: float | None
    false_elicited: float | None
    failures: tuple[str, ...]


def calibrate_case(
    case: KnownCase, strength: str, size: StudySize, repetitions: int, margins: Margins, seed: int
) -> Calibration:
    """Draw, conclude and check one case, base strength and size."""
    rng = np.random.default_rng(seed_of(seed, "calibrate", case.name, strength, str(size)))
    guess = size.guesses(rng)
    base = base_chances(strength, (repetitions, size.problems), rng)
    arms = drawn_counts(case.training(base, guess, rng), guess, size, rng)
    weights = bootstrap_weights(size.problems, margins.resamples, rng)
    counts = Counter(concluded_by_repetition(arms, margins, weights))
    share = {conclusion: counts[conclusion] / repetitions for conclusion in Conclusion}
    right = sum(share[conclusion] for conclusion in case.right)
    false_new = false_elicited = None
    if Conclusion.NEW not in case.right:
        false_new = share[Conclusion.NEW]
    if not {Conclusion.ELICITED, Conclusion.NARROWED} & set(case.right):
        false_elicited = share[Conclusion.ELICITED] + share[Conclusion.NARROWED]
    failures = [
        f"false {what!r} {false:.1%}, more than {MOST_FALSE:.0%}"
        for what, false in (("new capability", false_new), ("elicited", false_elicited))
        if case.false_bounded and false is not None and false > MOST_FALSE
    ]
    if case.bounded and size == STUDY_SIZES[0] and right < LEAST_POWER:
        failures.append(f"right {right:.1%}, less than {LEAST_POWER:.0%}")
    return Calibration(
        case.name,
        strength,
        size,
        repetitions,
        {str(conclusion): counts[conclusion] for conclusion in Conclusion},
        right,
        false_new,
        false_elicited,
        tuple(failures),
    )


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=200, help="of every case")
    parser.add_argument("--out", type=Path, default=RUNS / "calibrate", help="folder of the report")
    options = parser.parse_args()
    repetitions = options.repetitions
    require(repetitions >= 1, f"--repetitions must be 1 or more, not {repetitions}")
    margins = Margins(resamples=RESAMPLES)
    start = time.monotonic()
    cells = [*product(known_cases(margins), STRENGTHS, STUDY_SIZES)]
    calibrations = [
        calibrate_case(*cell, repetitions, margins, SEED)
        for cell in paced(cells, len(cells), "calibrate", " cells")
    ]
    failures = [
        f"{one.scenario}, {one.strength}, {one.size}: {failure}"
        for one in calibrations
        for failure in one.failures
    ]
    report = options.out / "report.json"
    write_json(
        report,
        {
            "margins": asdict(margins),
            "seed": SEED,
            "most_false": MOST_FALSE,
            "least_power": LEAST_POWER,
            "stated": {"share": STATED, "skill": SKILL, "size": asdict(STUDY_SIZES[0])},
            "cells": [asdict(one) for one in calibrations],
            "failures": failures,
        },
    )
    false_new = max(one.false_new or 0.0 for one in calibrations)
    false_elicited = max(one.false_elicited or 0.0 for one in calibrations)
    stated = [one for one in calibrations if one.size == STUDY_SIZES[0]]
    for case, of_case in groupby(stated, key=lambda one: one.scenario):
        print(f"{case}: right in {', '.join(f'{100 * one.right:.0f}' for one in of_case)} %")
    print(
        f"{len(calibrations)} cells of {repetitions} in {time.monotonic() - start:.0f} s: "
        f"{report}; false '{Conclusion.NEW}' at most {false_new:.1%}, false 'elicited' at most "
        f"{false_elicited:.1%}; "
        + ("\n".join(["out of bounds:", *failures]) if failures else "all within bounds")
    )
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
