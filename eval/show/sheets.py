"""The findings on elicitation in words and tables: for the terminal, Markdown and the page.

The shape that is read is that of ``eval.elicitation``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from eval.answers.likelihood import TOP_P
from eval.answers.reasoning import Claim
from eval.show.charts import Bars, Look
from eval.show.tables import Sheet, label
from eval.stats.conclusion import Conclusion
from eval.stats.estimate import cell, with_interval

#: The conclusions of ``eval.stats.conclusion`` in a sentence each.
MEANINGS = {
    Conclusion.NEW: "reliably solves problems that the base does not reach within all its "
    "samples, that neither format-only training nor the arm's start explains",
    Conclusion.ELICITED: "answers more often at the first try what the base reaches with more "
    "tries",
    Conclusion.NARROWED: "elicited, and it lost some of what the base reaches with many tries",
    Conclusion.DISTILLED: "the gain is there before reinforcement learning, in the arm's start",
    Conclusion.FORMAT: "training for the form of an answer alone explains the gain",
    Conclusion.INCONCLUSIVE: "no gain to explain, or too few samples to say what it consists of",
}
_RIVALS = {"base": "base", "sft": "its start", "format_only": "format-only training"}


def view(report: Mapping[str, Any], looks: Mapping[str, Look]) -> dict[str, Any]:
    """Everything that the template shows, ready to be printed."""
    judged = report["judged"]
    tiers = [tier for tier in report["tiers"] if any(tier in j["tiers"] for j in judged.values())]
    return {
        "sentence": report["sentence"],
        "meanings": MEANINGS,
        "level": f"{100 * report['margins']['level']:g} %",
        "sheet": conclusion_sheet(report),
        "tier_names": tiers,
        "judged": [_judged(name, one) for name, one in judged.items()],
        "detectable": [(tier, one["sentence"]) for tier, one in report["detectable"].items()],
        "tiers": [_tier(name, found, looks) for name, found in report["tiers"].items()],
    }


def sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """Every table of ``elicitation.json``."""
    yield conclusion_sheet(report)
    for arm, judged in report["judged"].items():
        for tier, ruling in judged["tiers"].items():
            for sheet in (_estimate_sheet(ruling), *_of_ruling(ruling)):
                yield replace(sheet, title=f"{label(arm)} on {tier}: {sheet.title}")
    for tier, found in report["tiers"].items():
        for part in _of_tier(found).values():
            yield from (replace(sheet, title=f"{tier}: {sheet.title}") for sheet in part)


def conclusion_sheet(report: Mapping[str, Any]) -> Sheet:
    """A line for each judged arm and tier."""
    rows = []
    for arm, judged in report["judged"].items():
        for tier, ruling in judged["tiers"].items():
            estimates = ruling["estimates"]
            rows.append(
                [
                    f"{label(arm)} on {tier}",
                    ruling["conclusion"],
                    cell(ruling["pass_at_1"]["base"]),
                    cell(ruling["pass_at_1"][arm]),
                    cell(estimates["gain over base"], "+"),
                    cell(estimates["large k"], "+"),
                    cell(estimates.get("beyond base"), "+"),
                ]
            )
    first = next(iter(report["judged"].values()))["overall"]
    n, reach = first["budget"]["n"], first["budget"]["reach"]
    return Sheet(
        "Elicited or learnt? in % and points",
        ["arm", "conclusion", "base @1", "arm @1", "gain", f"gain @{n}", "beyond"],
        rows,
        [
            "Intervals are for other problems and, where an arm has several, other training seeds",
            f"Beyond: problems not reachable for the base within {reach} samples that the arm "
            "answers reliably, less those that a second look at the base finds.",
        ],
    )


# --- one judged arm --------------------------------------------------------------------------


def _judged(name: str, judged: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": label(name),
        "overall": _ruling(judged["overall"]),
        "tiers": {
            tier: {
                **_ruling(ruling),
                "squares": [(label(m), one) for m, one in ruling["two_by_two"].items()],
                "samples": ruling["budget"]["n"],
                "sheets": _of_ruling(ruling),
            }
            for tier, ruling in judged["tiers"].items()
        },
    }


def _of_ruling(ruling: Mapping[str, Any]) -> list[Sheet]:
    return _filled(_curve_sheet(ruling), _unsolved_sheet(ruling))


def _ruling(ruling: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "conclusion": ruling["conclusion"],
        "reason": ruling["reason"],
        "notes": ruling["notes"],
        "estimates": _estimate_sheet(ruling),
    }


def _estimate_sheet(ruling: Mapping[str, Any]) -> Sheet:
    """Every quantity of the rule, and what it is."""
    budget = ruling["budget"]
    meant = {
        "large k": f"pass@{budget['n']}: the arm minus base",
        "certified": "such problems, before what chance explains is taken off",
        "control": "base against base: what its own second look would have counted",
        "perhaps beyond base": f"solved within {budget['tries']} tries, guessing removed, where "
        f"base missed in all {budget['reach']} samples",
    }
    rows = []
    for name, estimate in ruling["estimates"].items():
        kind, _, rival = name.rpartition(" ")
        who = _RIVALS.get(rival, rival)
        if kind == "gain over":
            meant[name] = f"pass@1: the arm minus {who}"
        elif kind == "beyond":
            missed = "base" if rival == "base" else f"base and {who}"
            meant[name] = (
                f"problems that it answers reliably and that {missed} always missed, minus what "
                "chance explains"
            )
        words = f"{kind} {who}" if rival in _RIVALS else name
        rows.append([f"{words}: {meant[name]}" if name in meant else words, cell(estimate, "+")])
    return Sheet(
        "The quantities of the rule, in points or % of problems",
        ["", "value"],
        rows,
        [
            f"{ruling['problems']:,} problems, {_counted(ruling['seeds'], 'training seed')}; a new "
            f"capability was tested at a one-sided {100 * ruling['tested_at']:.2g} %."
        ],
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _curve_sheet(ruling: Mapping[str, Any]) -> Sheet:
    """Where the base's curve meets the arm's, and the sampling-efficiency gap."""
    n = ruling["budget"]["n"]
    rows = [
        [label(member), _crossing(found), f"{100 * found['beyond']:.0f} %", cell(gap, "+")]
        for member, found in ruling["crossing"].items()
        for gap in [ruling["gap"][member]]
    ]
    return Sheet(
        "Where the curves cross",
        ["", "base meets or passes at k", "of resamples never", "sampling-efficiency gap, points"],
        rows,
        [
            f"The gap is base's pass@{n} minus the arm's pass@1: 0 where the first try gives all "
            f"that base reaches in {n}."
        ],
    )


def _crossing(found: Mapping[str, Any]) -> str:
    k, *ends = (
        f"beyond {found['n']}" if found[key] is None else str(found[key])
        for key in ("k", "low", "high")
    )
    return f"{k} [{', '.join(ends)}]"


def _unsolved_sheet(ruling: Mapping[str, Any]) -> Sheet:
    """Expansion and shrinkage on confirmation samples."""
    rows = []
    for key, words in (
        ("expansion", "Expansion: {arm} where base failed"),
        ("shrinkage", "Shrinkage: base where {arm} failed"),
    ):
        for member, found in ruling[key].items():
            rows.append(
                [
                    words.format(arm=label(member)),
                    f"{found['unsolved']} of {found['problems']}",
                    str(found["tries"]),
                    cell(found["tuned"]),
                    cell(found["reference"]),
                    cell(found["difference"], "+"),
                    cell(found["share"], "+"),
                ]
            )
    return Sheet(
        "Problems that one of the two left unsolved, asked again with new seeds, in % and points",
        ["", "unsolved", "fresh tries", "solves", "who failed, again", "net", "net, of all"],
        rows,
        [
            "Net: minus what the one that failed solves itself when it is asked again; two equal "
            "models have 0."
        ],
    )


# --- all arms, tier by tier ------------------------------------------------------------------


def histogram_panels(
    histogram: Mapping[str, Mapping[str, int]], looks: Mapping[str, Look], where: str = ""
) -> list[Bars]:
    """Each arm's accuracies, with a common scale; ``where`` begins their titles."""
    top = max(count for bars in histogram.values() for count in bars.values())
    return [
        Bars(
            where + label(arm),
            f"problems of {label(arm)} by accuracy: "
            + ", ".join(f"{place}: {count}" for place, count in bars.items()),
            looks[arm],
            list(bars.items()),
            top,
        )
        for arm, bars in histogram.items()
    ]


def _tier(name: str, found: Mapping[str, Any], looks: Mapping[str, Look]) -> dict[str, Any]:
    return {
        "name": name,
        "histogram": histogram_panels(found["histogram"], looks),
        **_of_tier(found),
    }


def _of_tier(found: Mapping[str, Any]) -> dict[str, list[Sheet]]:
    return {
        "spread": _filled(
            _coverage_sheet(found["coverage"]), _floor_sheet(found["floor_adjusted"])
        ),
        "likelihood": _filled(*_likelihood_sheets(found["likelihood"])),
        "reasoning": _filled(*_reasoning_sheets(found["reasoning"])),
        "reflection": _filled(_reflection_sheet(found["reasoning"])),
    }


def _filled(*sheets: Sheet) -> list[Sheet]:
    """Those with rows, without the columns that have nothing in any."""
    found = []
    for sheet in sheets:
        columns = [0, *(i for i in range(1, len(sheet.columns)) if any(r[i] for r in sheet.rows))]
        if len(columns) > 1:
            rows = [[row[i] for i in columns] for row in sheet.rows]
            found.append(Sheet(sheet.title, [sheet.columns[i] for i in columns], rows, sheet.notes))
    return found


def _by_key(found: Mapping[str, Mapping[str, Any]], missing: str = "") -> list[list[str]]:
    return [
        [label(arm), *(missing if e is None else cell(e) for e in row.values())]
        for arm, row in found.items()
    ]


def _coverage_sheet(found: Mapping[str, Mapping[str, Any]]) -> Sheet:
    thresholds = [f"{100 * float(t):g} %" for t in next(iter(found.values()))]
    return Sheet(
        "Share of problems whose accuracy is at least …, in %",
        ["", *thresholds],
        _by_key(found),
        ["Accuracies as sampled."],
    )


def _floor_sheet(found: Mapping[str, Mapping[str, Any]]) -> Sheet:
    return Sheet(
        "pass@k with guessing removed, in %",
        ["", *(f"k = {k}" for k in next(iter(found.values())))],
        _by_key(found, "no room"),
        [
            "0 is what random maximal schedules reach, 100 is every problem, below 0 is worse than "
            "guessing."
        ],
    )


def _number(estimate: Mapping[str, float] | None) -> str:
    """``0.06 [0.05, 0.07]`` in its own unit."""
    return with_interval(estimate, lambda number: f"{round(number, 4) + 0.0:.3g}")


def _likelihood_sheets(found: Mapping[str, Any]) -> Iterator[Sheet]:
    yield Sheet(
        "Entropy, in nats",
        ["", "a token", "an answer", "tokens an answer", "tokens as drawn, %"],
        [
            [
                label(arm),
                *(_number(one["entropy"][per]) for per in _PER),
                _number(one["tokens"]),
                f"{100 * one['tokens_as_drawn']:.1f}",
            ]
            for arm, one in found.items()
        ],
        ["Of the arms that are asked at temperature 1 from the bare prompt."],
    )
    references = list(dict.fromkeys(to for one in found.values() for to in one.get("kl", {})))
    for to in references:
        yield Sheet(
            f"KL divergence to {label(to)}, in nats",
            ["", "k1 a token", "k1 an answer", "k3 a token", "k3 an answer"],
            [
                [
                    label(arm),
                    *(_number(one["kl"][to][k][per]) for k in ("k1", "k3") for per in _PER),
                ]
                for arm, one in found.items()
                if to in one.get("kl", {})
            ],
            ["Two estimates of the same: k1 is to be quoted; k3 varies less where it is small."],
        )
    for under in (None, *references):
        rows = []
        for arm, one in found.items():
            under_it = one["under"].get(under or arm)
            if under_it is not None:
                rows.append(
                    [
                        label(arm),
                        *(_number(under_it["log_likelihood"][per]) for per in _PER),
                        _number(under_it["least_likely_token"]),
                        cell(under_it["tokens_outside"]),
                        cell(under_it["answers_outside"]),
                    ]
                )
        model = label(under) if under else "itself"
        yield Sheet(
            f"How likely an arm's answers are under {model}, in nats and %",
            ["", "log p a token", "an answer", "its least likely token",
             f"tokens outside top-p {TOP_P}", "answers with such a token"],
            rows,
            [],
        )  # fmt: skip


_PER = ("per_token", "per_answer")


def _reasoning_sheets(found: Mapping[str, Any]) -> Iterator[Sheet]:
    yield Sheet(
        "Is the reasoning true? in %",
        ["", "answers that reason", *(f"{_CLAIMS[kind]} true" for kind in Claim), "total adds up",
         "answer follows"],
        [
            [
                label(arm),
                cell(one["reasoning"]),
                *(_claim(one["claims"][kind]) for kind in Claim),
                cell(one["adds_up"]),
                cell(one["follows"]),
            ]
            for arm, one in found.items()
        ],
        [
            "In brackets, how many such claims were made. Adds up: the total is the sum of "
            "the values claimed. Follows: the answer has the events that the reasoning keeps."
        ],
    )  # fmt: skip
    yield Sheet(
        "Does sound reasoning help? optimal answers in %",
        ["", *(f"{group}: {what}" for group in _SOUND.values() for what in ("answers", "optimal")),
         "within problems, points"],
        [
            [
                label(arm),
                *(text for group in _SOUND for text in _group(one[group])),
                cell(one["sound_minus_unsound"], "+"),
            ]
            for arm, one in found.items()
        ],
        [
            "Sound: every claim is true. Unsound: some is not. No claims: none can be checked. "
            "Within problems: sound minus unsound on the problems that have both. Empty: too few "
            "to tell."
        ],
    )  # fmt: skip


def _reflection_sheet(found: Mapping[str, Any]) -> Sheet:
    """The check of the "aha moment": are answers with second thoughts right more often?"""
    reflecting = {arm: one["reflection"] for arm, one in found.items()}
    return Sheet(
        "Second thoughts: an “aha moment”? optimal answers in %",
        ["", "with: answers", "with: optimal", "without: answers", "without: optimal",
         "within problems, points", "words, and answers that have them"],
        [
            [
                label(arm),
                *_group(reflection["with"]),
                *_group(reflection["without"]),
                cell(reflection["within_problem"], "+"),
                ", ".join(f"{word} {n:,}" for word, n in reflection["keywords"].items()),
            ]
            for arm, reflection in reflecting.items()
            if reflection["keywords"]
        ],
        [
            "Answers with words such as “wait” or “check again”. They are a moment of insight only "
            "if, within problems, the answers that have them are right more often."
        ],
    )  # fmt: skip


_CLAIMS = {
    Claim.VALUE: "values",
    Claim.OVERLAP: "overlaps",
    Claim.RULE: "broken rules",
    Claim.TOTAL: "totals",
}
#: Groups of answers by their reasoning, and how they are called.
_SOUND = {"sound": "sound", "unsound": "unsound", "untraced": "no claims"}


def _claim(claims: Mapping[str, Any]) -> str:
    return f"{cell(claims['true'])} ({claims['made']:,})".lstrip() if claims["made"] else ""


def _group(group: Mapping[str, Any]) -> tuple[str, str]:
    share = group["share"]["value"] if group["share"] else 0.0
    return f"{group['answers']:,} ({100 * share:.1f} %)", cell(group["optimal"])
