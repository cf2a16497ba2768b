"""Verdict rows of several arms to the numbers of ``report.json``.

Rows are counted as they come: a million of them need no more memory than the problems they answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.common.errors import UserError
from data.common.seeds import seed_of
from data.sections import LEVEL, RESAMPLES
from eval.stats.estimate import (
    Weights,
    bootstrap_weights,
    by_name,
    mean_interval,
    paired_difference,
)
from eval.stats.passk import ks_for, overtaking_k, pass_at_k
from rewards.verify import VALID, Status

#: ``{tier: {policy: {k: share solved}}}``, as ``data.policies.floor`` gives it for a tier.
Floors = Mapping[str, Mapping[str, Mapping[int, float]]]


@dataclass
class ArmTally:
    """One arm's counts: totals by tier, and arrays by problem, in the order of the problems."""

    totals: dict[str, TierTotals]
    samples: NDArray[np.int64]
    optimal: NDArray[np.int64]
    valid: NDArray[np.int64]
    readable: NDArray[np.int64]
    ratio: NDArray[np.float64]
    distinct: NDArray[np.int64]


@dataclass
class TierTotals:
    """How many answers have a status, show a kind of violation (once each), ended for a reason."""

    statuses: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)


def tally(rows: Iterable[Mapping[str, Any]], problems_by_id: Mapping[str, str]) -> ArmTally:
    """Count one arm's verdicts.

    Args:
        rows: ``{id, status, violations, ratio}`` of known problems; ``finish_reason``, and
            ``answer`` by which distinct answers to one problem are counted, where known.
        problems_by_id: the tier of each problem.
    """
    place = {name: i for i, name in enumerate(problems_by_id)}
    totals = {tier: TierTotals() for tier in problems_by_id.values()}
    samples, optimal, valid, readable, distinct = ([0] * len(place) for _ in range(5))
    ratio = [0.0] * len(place)
    answers: set[int] = set()
    for row in rows:
        i, status, total = place[row["id"]], row["status"], totals[problems_by_id[row["id"]]]
        samples[i] += 1
        optimal[i] += status == Status.OPTIMAL
        valid[i] += status in VALID
        readable[i] += status != Status.UNPARSABLE
        ratio[i] += row["ratio"]
        total.statuses[status] += 1
        total.violations.update({text.partition(":")[0] for text in row["violations"]})
        if (reason := row.get("finish_reason")) is not None:
            total.finish_reasons[reason] += 1
        if (answer := hash((i, row.get("answer")))) not in answers:
            answers.add(answer)
            distinct[i] += 1
    counts = map(np.array, (samples, optimal, valid, readable, ratio, distinct))
    return ArmTally(totals, *counts)


def check_alike(
    tallies: Mapping[str, ArmTally], problems_by_id: Mapping[str, str], tiers: Iterable[str]
) -> None:
    """Raise UserError unless every arm has equally many samples of every problem of a tier."""
    names, tier_of = list(problems_by_id), np.array(list(problems_by_id.values()))
    for tier in tiers:
        here = np.flatnonzero(tier_of == tier)
        wanted = max(1, *(int(counts.samples[here].max()) for counts in tallies.values()))
        for arm, counts in tallies.items():
            odd = here[counts.samples[here] != wanted]
            if len(odd):
                raise UserError(
                    f"arm {arm!r} has {counts.samples[odd[0]]} samples of problem "
                    f"{names[odd[0]]!r} where {wanted} are expected; arms are compared only on the "
                    "same problems, each sampled equally often, so finish or redo its sampling"
                )


def summarise_arms(
    tiers: Sequence[str],
    main: str,
    floors: Floors,
    verdict_rows: Mapping[str, Iterable[Mapping[str, Any]]],
    problems_by_id: Mapping[str, str],
    seed: int,
    comparisons: Sequence[tuple[str, str]],
    resamples: int = RESAMPLES,
    alike: bool = True,
) -> dict[str, object]:
    """The content of ``report.json``.

    Args:
        main: the tier that comes first; the others follow in the order of ``tiers``.
        floors: at any k; those of ``ks_for(samples)`` are reported.
        verdict_rows: of each arm, see ``tally``; the arms are reported in this order.
        problems_by_id: the tier of each problem asked.
        seed: the recipe's; each tier's resampling is hashed from it.
        comparisons: tuned arm and reference; reported where both are there.
        alike: whether all problems must have equally many samples of every arm; else each needs
            one, and k ends at the fewest.

    Raises:
        UserError: when an arm's problems or samples are not those of the others.
    """
    tier_of = np.array(list(problems_by_id.values()))
    shown = sorted(tiers, key=lambda tier: tier != main)
    tallies = {arm: tally(rows, problems_by_id) for arm, rows in verdict_rows.items()}
    if alike:
        check_alike(tallies, problems_by_id, shown)
    return {
        "success": str(Status.OPTIMAL),
        "interval": f"{100 * LEVEL:.0f} % interval, problems resampled {resamples:,} times",
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "main": main,
        "arms": list(tallies),
        "tiers": {
            tier: _tier_summary(
                tier, np.flatnonzero(tier_of == tier), tallies, floors, seed, resamples, comparisons
            )
            for tier in shown
        },
    }


def _tier_summary(
    tier: str,
    here: NDArray[np.intp],
    tallies: Mapping[str, ArmTally],
    floors: Floors,
    seed: int,
    resamples: int,
    comparisons: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """Everything about one tier, whose problems are at ``here``."""
    n = min(int(t.samples[here].min()) for t in tallies.values())
    ks = ks_for(n)
    columns = np.array(ks) - 1
    # One set of weights for all arms: the differences between them are paired.
    weights = bootstrap_weights(len(here), resamples, seed_of(seed, "report", tier))
    tries = np.arange(1, n + 1)
    curves = {arm: pass_at_k(t.samples[here], t.optimal[here], tries) for arm, t in tallies.items()}
    at_ks = {arm: curve[:, columns] for arm, curve in curves.items()}
    return {
        "problems": len(here),
        "samples": n,
        "ks": list(ks),
        "arms": {
            arm: {
                "answers": int(tally.samples[here].sum()),
                "pass_at_k": by_name(ks, mean_interval(at_ks[arm], weights)),
                **_answer_rates(tally, here, weights),
                **_counts(tally.totals[tier]),
            }
            for arm, tally in tallies.items()
        },
        "differences": [
            {
                "tuned": tuned,
                "reference": reference,
                "at_k": by_name(ks, paired_difference(at_ks[tuned], at_ks[reference], weights)),
                "overtaken_at": overtaking_k(
                    curves[reference].mean(axis=0), curves[tuned].mean(axis=0)
                ),
            }
            for tuned, reference in comparisons
            if tuned in tallies and reference in tallies
        ],
        "floors": {
            policy: {str(k): shares.get(k) for k in ks}
            for policy, shares in floors.get(tier, {}).items()
        },
    }


def _answer_rates(
    tally: ArmTally, here: NDArray[np.intp], weights: Weights
) -> dict[str, dict[str, float] | None]:
    """Shares of answers, each a mean over problems: valid, ratio, distinct."""
    sums = {"valid": tally.valid, "ratio": tally.ratio, "distinct": tally.distinct}
    columns = np.stack([total[here] / tally.samples[here] for total in sums.values()], axis=1)
    return by_name(sums, mean_interval(columns, weights))


def _counts(totals: TierTotals) -> dict[str, dict[str, int]]:
    return {
        "statuses": {str(status): totals.statuses[status] for status in Status},
        "violations": dict(sorted(totals.violations.items(), key=lambda item: (-item[1], item[0]))),
        "finish_reasons": dict(totals.finish_reasons.most_common()),
    }
