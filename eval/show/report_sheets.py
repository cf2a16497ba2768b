"""The tables of ``report.json``, tier by tier, and its first comparison as a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from data.policies import GREEDY, GUESSABLE
from eval.show.tables import Sheet, label
from eval.stats.estimate import cell

_MEANS = {
    "valid": "valid (optimal or feasible)",
    "ratio": "mean ratio to the optimum",
    "distinct": "distinct answers",
}
_COUNTS = {"statuses": "status", "violations": "broken", "finish_reasons": "ended by"}


def report_sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """Every table of the report."""
    for tier, counted in report["tiers"].items():
        yield pass_sheet(report, tier)
        if counted["differences"]:
            yield _difference_sheet(report, tier)
        yield _answer_sheet(report, tier)
        if sheet := shortcut_sheet(report, tier):
            yield sheet


def tier_title(report: Mapping[str, Any], tier: str) -> str:
    """A tier's name, and whether it is the main one."""
    return f"{tier} (main tier)" if tier == report["main"] else tier


def _basis(report: Mapping[str, Any], tier: str) -> str:
    counted = report["tiers"][tier]
    return f"{counted['problems']:,} problems x {counted['samples']} samples; {report['interval']}"


def _guessed(counted: Mapping[str, Any]) -> float | None:
    """The share of a tier that blind guessing solves within its samples, where that is most."""
    share = counted["floors"].get("random_maximal", {}).get(str(counted["samples"]))
    return None if share is None or share <= GUESSABLE else share


def guessable(report: Mapping[str, Any]) -> str | None:
    """A sentence on all tiers that blind guessing mostly solves; None where there is none."""
    easy = [
        f"{_percent(share)} % of {tier} within {counted['samples']} tries"
        for tier, counted in report["tiers"].items()
        if (share := _guessed(counted))
    ]
    if not easy:
        return None
    return (
        f"Guessable: a random maximal schedule solves {', '.join(easy)}, so at that k the curves "
        "say little about a model. Look at small k."
    )


def pass_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    """pass@k of every arm and of the random policies."""
    counted = report["tiers"][tier]
    arms, floors = counted["arms"], counted["floors"]
    greedy = [
        f"{policy.replace('_', ' ')} {_percent(by_k['1'])} %"
        for policy, by_k in floors.items()
        if policy in GREEDY
    ]
    random = {policy: by_k for policy, by_k in floors.items() if policy not in GREEDY}
    notes = [f"Floors at any k: {', '.join(greedy)}."] if greedy else []
    if share := _guessed(counted):
        k = counted["samples"]
        notes.append(
            f"Guessable: a random maximal schedule solves {_percent(share)} % within {k} tries, so "
            f"pass@{k} says little about a model here."
        )
    return Sheet(
        f"{tier_title(report, tier)}: pass@k in %, success = {report['success']}",
        ["k", *map(label, arms), *(policy.replace("_", " ") for policy in random)],
        [
            [
                k,
                *(cell(arm["pass_at_k"][k]) for arm in arms.values()),
                *(_percent(by_k[k]) for by_k in random.values()),
            ]
            for k in map(str, counted["ks"])
        ],
        [_basis(report, tier), *notes],
    )


def _difference_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    counted = report["tiers"][tier]
    pairs, overtaking = counted["differences"], []
    for pair in pairs:
        k, arm = pair["overtaken_at"], label(pair["tuned"])
        [*_, reached] = counted["arms"][pair["tuned"]]["pass_at_k"].values()
        if pair["reference"] == "base" and (k is not None or reached["value"] > 0):
            overtaking.append(
                f"base stays below {arm} at every k up to {counted['samples']}."
                if k is None
                else f"base first meets or passes {arm} at k = {k}."
            )
    return Sheet(
        f"{tier_title(report, tier)}: paired differences of pass@k in points",
        ["k", *(f"{label(p['tuned'])} - {label(p['reference'])}" for p in pairs)],
        [[k, *(cell(pair["at_k"][k], "+") for pair in pairs)] for k in map(str, counted["ks"])],
        [_basis(report, tier), *overtaking],
    )


def _answer_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    counted = report["tiers"][tier]
    arms = counted["arms"].values()
    rows = [[name, *(cell(arm[key]) for arm in arms)] for key, name in _MEANS.items()]
    for key, heading in _COUNTS.items():
        total: Counter[str] = Counter()
        for arm in arms:
            total.update(arm[key])
        kinds = list(total) if key == "statuses" else [kind for kind, _ in total.most_common()]
        for kind in kinds:
            counts = [(arm[key].get(kind, 0), arm["answers"]) for arm in arms]
            cells = [f"{count:,} ({_percent(count / answers)} %)" for count, answers in counts]
            rows.append([f"{heading}: {kind}", *cells])
    return Sheet(
        f"{tier_title(report, tier)}: answers; means in %, then answers counted",
        ["", *map(label, counted["arms"])],
        rows,
        [_basis(report, tier)],
    )


def shortcut_sheet(report: Mapping[str, Any], tier: str) -> Sheet | None:
    """Shares of valid answers with a shortcut's schedule; None where no problem shows it."""
    shown = report.get("shortcuts", {}).get(tier)
    if not shown:
        return None
    agree = shown["agree"]
    words = {"optimal": "optimal", "any": "any of these shortcuts"}
    kinds = next(iter(agree.values()))
    return Sheet(
        f"{tier_title(report, tier)}: do valid answers follow a shortcut? in %",
        ["", *(label(arm).replace("_", " ") for arm in agree)],
        [
            [words.get(kind, kind.replace("_", " ")), *(cell(of[kind]) for of in agree.values())]
            for kind in kinds
        ],
        [
            f"Of the {shown['problems']:,} problems that none of these shortcuts solves",
            "A schedule that several of them have counts for each",
            report["interval"],
        ],
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def headline(report: Mapping[str, Any]) -> str | None:
    """The first comparison at k = 1 on the main tier, as a sentence; None with a single arm."""
    pairs = report["tiers"][report["main"]]["differences"]
    if not pairs:
        return None
    pair, at_1 = pairs[0], pairs[0]["at_k"]["1"]
    excludes = "excludes" if at_1["low"] > 0 or at_1["high"] < 0 else "includes"
    return (
        f"{report['main']} (main tier), pass@1: {label(pair['tuned'])} - "
        f"{label(pair['reference'])} = {cell(at_1, '+')} points; the interval {excludes} 0."
    )
