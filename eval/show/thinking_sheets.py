"""The tables of ``thinking.json``: changed reasoning, CoT-pass@k, and days of every length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.answers.interventions import Intervention
from eval.show.tables import Sheet, label
from eval.stats.estimate import cell

_WORDS = {
    Intervention.KEPT: "reasoning kept, answer drawn again",
    Intervention.CUT: "reasoning cut off at once",
    Intervention.EXCHANGED: "reasoning about another problem",
    Intervention.ALTERED: "one total altered",
}


def thinking_sheets(report: Mapping[str, Any], main: str) -> list[Sheet]:
    """The tables of all arms."""
    changed = {arm: of["interventions"] for arm, of in report.items() if "interventions" in of}
    first = [_changed_sheet(changed, main)] if changed else []
    return [*first, _passes_sheet(report, main), _lengths_sheet(report)]


def _changed_sheet(changed: Mapping[str, Any], main: str) -> Sheet:
    return Sheet(
        f"Does the answer hang on the reasoning? {main}, in %",
        ["arm", "change", "problems", "optimal", "cost in points", "follows the change"],
        [
            [
                label(arm),
                _WORDS[Intervention(name)],
                f"{of['optimal']['n']:,}",
                cell(of["optimal"]),
                cell(of.get("cost"), "+"),
                cell(of.get("follows")),
            ]
            for arm, interventions in changed.items()
            for name, of in interventions.items()
        ],
        [
            "Of answers whose reasoning makes claims, one a problem, drawn again from where the "
            "change ends. Follows: the answer is the schedule that the altered total leads to; the "
            "reasoning was wholly true before."
        ],
    )


def _passes_sheet(report: Mapping[str, Any], main: str) -> Sheet:
    return Sheet(
        f"Right by true reasoning? {main}, pass@k and CoT-pass@k in %",
        ["arm", "k", "pass@k", "CoT-pass@k", "difference in points"],
        [
            [
                label(arm),
                str(k),
                cell(of["pass"]),
                cell(of["cot_pass"]),
                cell(of["difference"], "+"),
            ]
            for arm, of_arm in report.items()
            for k, of in of_arm["passes"].items()
        ],
        [
            "CoT-pass@k counts an answer only if it is optimal and its reasoning makes claims, "
            "every one of which is true (arXiv 2506.14245)."
        ],
    )


def _lengths_sheet(report: Mapping[str, Any]) -> Sheet:
    return Sheet(
        "Days of every length: answers in %",
        ["arm", "events", "problems", "optimal", "reason in claims", "every claim true"],
        [
            [
                label(arm),
                str(events),
                f"{of['problems']:,}",
                *(cell(of[key]) for key in ("optimal", "traced", "sound")),
            ]
            for arm, of_arm in report.items()
            for events, of in of_arm["by_events"].items()
        ],
        ["All tiers together."],
    )
