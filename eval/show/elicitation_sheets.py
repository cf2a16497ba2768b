"""The tables of ``elicitation.json``: for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.run import BASE
from eval.show.tables import Sheet, label
from eval.stats.conclusion import Conclusion
from eval.stats.estimate import cell, with_interval
from rewards.claims import Claim

_CLAIMS = {
    Claim.VALUE: "values",
    Claim.OVERLAP: "overlaps",
    Claim.RULE: "broken rules",
    Claim.TOTAL: "totals",
    Claim.EVENT: "events repeated",
    Claim.AFTER: "what may follow",
    Claim.SUM: "sums",
    Claim.BEST: "best so far",
}

#: The quantities of the criterion in words; numbers in braces are those of the budget.
_QUANTITIES = {
    "gain over base": "gain over base: pass@1: the arm minus base",
    "gain over sft": "gain over its start: pass@1: the arm minus its start",
    "gain over format_only": "gain over format-only training: pass@1: the arm minus that",
    "beyond base": "beyond base: problems that it answers reliably and that base always missed, "
    "minus what chance explains",
    "beyond sft": "beyond its start: the same, where its start always missed them too",
    "beyond format_only": "beyond format-only training: the same, where that always missed them "
    "too",
    "gain over form": "gain over form: pass@1: the arm minus base's answers in form",
    "over guessing": "over guessing: pass@1: the arm minus a blind guess",
    "beyond form": "beyond form: beyond base, where only its misses in form count as misses",
    "made common": "made common: answered reliably, and base solved them in one or two fresh tries",
    "missed": "missed: problems that a perfect solver would have beyond base, guessing aside",
    "large k": "large k: pass@{n}: the arm minus base",
    "certified": "certified: problems beyond base, before what chance explains is taken off",
    "control": "control: base against base: what its own second look would have counted",
    "perhaps beyond base": "perhaps beyond base: solved within {tries} tries where "
    "base missed in all {reach} samples",
}

#: The columns of a table with one row for each arm: heading, and the text of an arm's record.
Columns = Mapping[str, Callable[[Any], str]]


def elicitation_sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """Every table of ``elicitation.json``."""
    yield conclusion_sheet(report)
    for arm, judged in report["judged"].items():
        for tier, concluded in judged["tiers"].items():
            for sheet in (estimate_sheet(concluded), *explaining_sheets(concluded)):
                yield replace(sheet, title=f"{label(arm)} on {tier}: {sheet.title}")
    for tier, described in report["tiers"].items():
        for sheets in tier_sheets(described).values():
            yield from (replace(sheet, title=f"{tier}: {sheet.title}") for sheet in sheets)


def conclusion_sheet(report: Mapping[str, Any]) -> Sheet:
    """A line for each judged arm and tier."""
    budget = next(iter(report["judged"].values()))["overall"]["budget"]
    return Sheet(
        "Elicited or learnt? in % and points",
        ["arm", "conclusion", "base @1", "arm @1", "gain", f"gain @{budget['n']}", "beyond"],
        [
            [
                f"{label(arm)} on {tier}",
                concluded["conclusion"],
                cell(concluded["pass_at_1"]["base"]),
                cell(concluded["pass_at_1"][arm]),
                cell(concluded["estimates"]["gain over base"], "+"),
                cell(concluded["estimates"]["large k"], "+"),
                cell(concluded["estimates"]["beyond base"], "+"),
            ]
            for arm, judged in report["judged"].items()
            for tier, concluded in judged["tiers"].items()
        ],
        [
            "Intervals are for other problems and, where an arm has several, other training seeds",
            f"Beyond: problems not reachable for the base within {budget['reach']} samples that "
            "the arm answers reliably, less those that a second look at the base finds.",
        ],
    )


def plain_sentence(report: Mapping[str, Any]) -> str:
    """The conclusion on the first judged arm in everyday words."""
    arm, judged = next(iter(report["judged"].items()))
    concluded, name = judged["overall"], label(arm)
    budget, estimates = concluded["budget"], concluded["estimates"]
    if concluded["conclusion"] not in (Conclusion.ELICITED, Conclusion.NARROWED):
        return f"{name}: {concluded['conclusion']}."
    gain, large = estimates["gain over base"], estimates["large k"]
    tries = "its first try" if budget["tries"] == 1 else f"{budget['tries']} tries"
    where = "at" if budget["tries"] == 1 else "within"
    text = (
        f"At the first try {name} solves {_whole_points(gain)} more than the base, yet what it "
        f"solves {where} {tries} the base also solves within {budget['reach']} tries, except "
        f"on at most {estimates['perhaps beyond base']['high']:.1%} of problems"
    )
    if large["low"] <= 0 <= large["high"]:
        return f"{text}."
    ahead = "the base" if large["value"] < 0 else name
    return f"{text}; with {budget['n']} tries {ahead} is ahead by {_whole_points(large)}."


def _whole_points(estimate: Mapping[str, float]) -> str:
    return f"{abs(100 * estimate['value']):.0f} points"


# --- one judged arm on one tier ------------------------------------------------------------------


def explaining_sheets(concluded: Mapping[str, Any]) -> list[Sheet]:
    """Where the curves cross, and what came of asking again."""
    return _filled(_curve_sheet(concluded), _unsolved_sheet(concluded))


def estimate_sheet(concluded: Mapping[str, Any]) -> Sheet:
    """Every quantity of the criterion, and what it is."""
    problems, seeds, tested = (concluded[key] for key in ("problems", "seeds", "tested_at"))
    return Sheet(
        "The quantities of the criterion, in points or % of problems",
        ["", "value"],
        [
            [_QUANTITIES[name].format(**concluded["budget"]), cell(estimate, "+")]
            for name, estimate in concluded["estimates"].items()
        ],
        [
            f"{problems:,} problems, {seeds:,} training seed{'s' if seeds > 1 else ''}; "
            f"a new capability was tested at a one-sided {100 * tested:.2g} %."
        ],
    )


def _curve_sheet(concluded: Mapping[str, Any]) -> Sheet:
    """Where the base's curve meets the arm's."""
    return Sheet(
        "Where the curves cross",
        ["", "base meets or passes at k", "of resamples never"],
        [[label(arm), *_crossing(met)] for arm, met in concluded["crossing"].items()],
        [],
    )


def _crossing(met: Mapping[str, Any]) -> tuple[str, str]:
    """The k at which the curves meet, and the share of resamples in which they never do."""
    if met["beyond"] is None:
        return "nobody succeeded", ""
    k, low, high = (
        f"beyond {met['n']}" if met[key] is None else str(met[key]) for key in ("k", "low", "high")
    )
    return f"{k} [{low}, {high}]", f"{100 * met['beyond']:.0f} %"


def _unsolved_sheet(concluded: Mapping[str, Any]) -> Sheet:
    """Expansion and shrinkage on confirmation samples."""
    groups = {
        "Expansion: {arm} where base failed": concluded["expansion"],
        "Shrinkage: base where {arm} failed": concluded["shrinkage"],
    }
    return Sheet(
        "Problems that one of the two left unsolved, asked again with new seeds, in % and points",
        ["", "unsolved", "fresh tries", "solves", "who failed, again", "net", "net, of all"],
        [
            [
                words.format(arm=label(arm)),
                f"{asked['unsolved']} of {asked['problems']}",
                str(asked["tries"]),
                cell(asked["tuned"]),
                cell(asked["reference"]),
                cell(asked["difference"], "+"),
                cell(asked["share"], "+"),
            ]
            for words, arms in groups.items()
            for arm, asked in arms.items()
        ],
        [
            "Net: minus what the one that failed solves itself when it is asked again; two equal "
            "models have 0."
        ],
    )


# --- all arms on one tier ------------------------------------------------------------------------


def tier_sheets(described: Mapping[str, Any]) -> dict[str, list[Sheet]]:
    """Tables on the arms' answers to one tier, by topic."""
    reasoning = described["reasoning"]
    return {
        "spread": _filled(*_spread_sheets(described)),
        "likelihood": _filled(*_likelihood_sheets(described["likelihood"])),
        "reasoning": _filled(_truth_sheet(reasoning), soundness_sheet(reasoning)),
        "reflection": _filled(_reflection_sheet(reasoning)),
    }


def _filled(*sheets: Sheet) -> list[Sheet]:
    """Those with rows, without the columns that have nothing in any."""
    kept = []
    for sheet in sheets:
        columns = [0, *(i for i in range(1, len(sheet.columns)) if any(r[i] for r in sheet.rows))]
        if len(columns) > 1:
            rows = [[row[i] for i in columns] for row in sheet.rows]
            kept.append(Sheet(sheet.title, [sheet.columns[i] for i in columns], rows, sheet.notes))
    return kept


def _by_arm(
    title: str, records: Mapping[str, Any], columns: Columns, notes: Sequence[str] = ()
) -> Sheet:
    rows = [
        [label(arm), *(text(record) for text in columns.values())]
        for arm, record in records.items()
    ]
    return Sheet(title, ["", *columns], rows, list(notes))


def _spread_sheets(described: Mapping[str, Any]) -> Iterator[Sheet]:
    coverage, adjusted = described["coverage"], described["floor_adjusted"]

    def at(key: str, missing: str = "") -> Callable[[Any], str]:
        return lambda estimates: cell(estimates[key]) or missing

    yield _by_arm(
        "Share of problems whose accuracy is at least …, in %",
        coverage,
        {f"{100 * float(share):g} %": at(share) for share in next(iter(coverage.values()))},
        ["Accuracies as sampled."],
    )
    yield _by_arm(
        "pass@k with guessing removed, in %",
        adjusted,
        {f"k = {k}": at(k, "no room") for k in next(iter(adjusted.values()))},
        [
            "0 is what random maximal schedules reach, 100 is every problem, below 0 is worse than "
            "guessing."
        ],
    )
    if best := described.get("likeliest"):
        yield _by_arm(
            "The likeliest of k answers is optimal, in %",
            {BASE: best},
            {f"k = {k}": at(k) for k in best},
            ["Chosen by the model's own likelihood: no training, and no judge."],
        )


def _likelihood_sheets(measured: Mapping[str, Any]) -> Iterator[Sheet]:
    kls = {arm: of_arm["kl"] for arm, of_arm in measured.items()}
    references = list(dict.fromkeys(reference for kl in kls.values() for reference in kl))
    quantities = {"Entropy": {arm: of_arm["entropy"] for arm, of_arm in measured.items()}}
    for one in references:
        quantities[f"KL divergence to {label(one)}"] = {arm: kl.get(one) for arm, kl in kls.items()}
    for model in (None, *references):
        quantities[f"Log-likelihood under {label(model) if model else 'itself'}"] = {
            arm: of_arm["under"].get(model or arm, {}).get("log_likelihood")
            for arm, of_arm in measured.items()
        }
    for what, by_arm in quantities.items():
        yield _by_arm(
            f"{what}, in nats",
            {arm: record for arm, record in by_arm.items() if record},
            {
                "a token": lambda record: in_own_unit(record["per_token"]),
                "an answer": lambda record: in_own_unit(record["per_answer"]),
            },
        )
    yield _by_arm(
        "Tokens an answer",
        measured,
        {
            "tokens": lambda of_arm: in_own_unit(of_arm["tokens"]),
            "as drawn, %": lambda of_arm: f"{100 * of_arm['tokens_as_drawn']:.1f}",
        },
        ["Of the arms that are asked at temperature 1 from the bare prompt."],
    )


def in_own_unit(estimate: Mapping[str, float] | None) -> str:
    """``0.06 [0.05, 0.07]``, no share but a quantity with a unit."""
    return with_interval(estimate, lambda number: f"{round(number, 4) + 0.0:.3g}")


def _truth_sheet(reasoning: Mapping[str, Any]) -> Sheet:
    def true(kind: Claim) -> Callable[[Any], str]:
        return lambda of_arm: _claim(of_arm["claims"][kind])

    return _by_arm(
        "Is the reasoning true? in %",
        reasoning,
        {
            "answers that reason": lambda of_arm: cell(of_arm["reasoning"]),
            **{f"{_CLAIMS[kind]} true": true(kind) for kind in Claim},
            "total adds up": lambda of_arm: cell(of_arm["adds_up"]),
            "answer follows": lambda of_arm: cell(of_arm["follows"]),
        },
        [
            "In brackets, how many such claims were made. Adds up: totals are the sums of the "
            "numbers claimed. Follows: the answer has the events that the reasoning keeps, or "
            "leads to."
        ],
    )


def _claim(claims: Mapping[str, Any]) -> str:
    return f"{cell(claims['true'])} ({claims['made']:,})".lstrip() if claims["made"] else ""


def soundness_sheet(reasoning: Mapping[str, Any]) -> Sheet:
    return _by_arm(
        "Does sound reasoning help? optimal answers in %",
        reasoning,
        {
            **_group_columns("sound", "sound"),
            **_group_columns("unsound", "unsound"),
            **_group_columns("no claims", "untraced"),
            "within problems, points": lambda of_arm: cell(of_arm["sound_minus_unsound"], "+"),
        },
        [
            "Sound: every claim is true. Unsound: some is not. No claims: none can be checked. "
            "Within problems: sound minus unsound on the problems that have both. Empty: too few "
            "to tell."
        ],
    )


def _group_columns(words: str, group: str) -> Columns:
    """The number of answers in a group, and the share of them that is optimal."""

    def answers(record: Mapping[str, Any]) -> str:
        share = record[group]["share"]
        return f"{record[group]['answers']:,} ({100 * share['value'] if share else 0:.1f} %)"

    return {
        f"{words}: answers": answers,
        f"{words}: optimal": lambda record: cell(record[group]["optimal"]),
    }


def _reflection_sheet(reasoning: Mapping[str, Any]) -> Sheet:
    """The check of the "aha moment": are answers with second thoughts right more often?"""
    reflections = {arm: of_arm["reflection"] for arm, of_arm in reasoning.items()}
    return _by_arm(
        "Second thoughts: an “aha moment”? optimal answers in %",
        {arm: reflection for arm, reflection in reflections.items() if reflection["keywords"]},
        {
            **_group_columns("with", "with"),
            **_group_columns("without", "without"),
            "within problems, points": lambda r: cell(r["within_problem"], "+"),
            "words, and answers that have them": lambda r: ", ".join(
                f"{word} {count:,}" for word, count in r["keywords"].items()
            ),
        },
        [
            "Answers with words such as “wait” or “check again”. They are a moment of insight only "
            "if, within problems, the answers that have them are right more often."
        ],
    )
