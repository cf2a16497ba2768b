"""The page of a run: values are gathered into sections, and a template shows each of them.

A section is a name, which is its template in ``templates/sections`` and its anchor; a title for the
navigation; and its content, what the template may show. The page loads nothing, and a content
security policy forbids it to. A model's words are shown as text and can do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from data.policies import GREEDY
from data.rows import Row
from eval.show import elicitation_sheets as elicited
from eval.show.charts import Bars, Look, Panel, inline_svg, inline_swatch, looks_of
from eval.show.panels import histogram_panels, passk_panels, training_panels
from eval.show.report_sheets import guessable, headline, report_sheets, tier_title
from eval.show.showcase import Showcase, drawn_answer, drawn_problem
from eval.show.tables import Sheet, label
from rewards.verify import Status

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """One part of the page; see above."""

    name: str
    title: str
    content: Mapping[str, object]

    def html(self) -> Markup:
        template = _environment().get_template(f"sections/{self.name}.html.j2")
        return Markup(template.render(self.content))


@dataclass(frozen=True)
class Picture:
    """A chart with its title and the sentences below it."""

    title: str
    svg: Markup
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Family:
    """Arms of one colour, which a legend names and hides together: (label, swatch) of each."""

    name: str
    members: list[tuple[str, Markup]]


def render(run_name: str, arms: Sequence[str], sections: Sequence[Section]) -> str:
    """The page's text, the same for the same sections."""
    digest = hashlib.sha256(_file("page.js").encode()).digest()
    return _environment().get_template("page.html.j2").render(
        run=run_name,
        families=list(dict.fromkeys(look.family for look in looks_of(arms).values())),
        sections=sections,
        style=_file("page.css"),
        digest=base64.b64encode(digest).decode(),
    )  # fmt: skip


def _file(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


# --- the sections --------------------------------------------------------------------------------


def result_section(
    report: Mapping[str, Any], elicitation: Mapping[str, Any] | None, facts: Mapping[str, str]
) -> Section:
    """The result in a sentence, the conclusions in a table, and how they came about."""
    notes = [*report.get("notes", []), *(elicitation or {}).get("notes", [])]
    return Section(
        "result",
        "",
        {
            "headline": headline(report),
            "elicitation": elicitation,
            "judged_tiers": _judged_tiers(elicitation) if elicitation else [],
            "notes": list(dict.fromkeys(notes)),
            "facts": facts,
        },
    )


def _judged_tiers(elicitation: Mapping[str, Any]) -> list[str]:
    judged = elicitation["judged"].values()
    return [t for t in elicitation["tiers"] if any(t in of_arm["tiers"] for of_arm in judged)]


def passk_section(report: Mapping[str, Any]) -> Section:
    """pass@k by tier."""
    looks, panels = looks_of(report["arms"]), passk_panels(report)
    pictures = [
        Picture(panel.title, inline_svg(panel, f"passk-{tier}"), _notes(counted))
        for panel, (tier, counted) in zip(panels, report["tiers"].items(), strict=True)
    ]
    floors = {
        curve.label: inline_swatch(curve.look, f"floor-{curve.label}")
        for panel in panels
        for curve in panel.curves
        if curve.look.family == "floor"
    }
    content = {
        "interval": report["interval"],
        "legend": _legend(report["arms"], looks, "passk"),
        "floors": floors,
        "pictures": pictures,
    }
    return Section("passk", "pass@k", content)


def _notes(counted: Mapping[str, Any]) -> list[str]:
    notes = [f"{counted['problems']:,} problems × {counted['samples']} samples."]
    greedy = {p: by_k["1"] for p, by_k in counted["floors"].items() if p in GREEDY}
    if greedy:
        best = max(greedy, key=lambda policy: greedy[policy])
        share = f"{100 * greedy[best]:.1f}"
        notes.append(f"Best greedy rule: {best.replace('_', ' ')}, {share} % at any k.")
    return [*notes, *([sentence] if (sentence := guessable(counted)) else [])]


def _legend(arms: Iterable[str], looks: Mapping[str, Look], where: str) -> list[Family]:
    families: dict[str, Family] = {}
    for arm in arms:
        swatch = inline_swatch(looks[arm], f"{where}-{arm}")
        family = families.setdefault(looks[arm].family, Family(looks[arm].family, []))
        family.members.append((label(arm), swatch))
    return list(families.values())


def elicitation_section(elicitation: Mapping[str, Any], arms: Sequence[str]) -> Section:
    """The conclusions with all that they rest on, and what the answers are like."""
    looks = looks_of(arms)
    tiers = {
        tier: {
            "pictures": _pictures(histogram_panels(described["histogram"], looks), tier),
            **elicited.tier_sheets(described),
        }
        for tier, described in elicitation["tiers"].items()
    }
    content = {
        "elicitation": elicitation,
        "meanings": elicited.MEANINGS,
        "conclusions": elicited.conclusion_sheet(elicitation),
        "judged": {
            label(arm): {
                "overall": _ruled(judged["overall"]),
                "tiers": {
                    tier: _ruled(ruling, elicited.ruling_sheets(ruling))
                    for tier, ruling in judged["tiers"].items()
                },
            }
            for arm, judged in elicitation["judged"].items()
        },
        "tiers": tiers,
    }
    return Section("elicitation", "Elicitation", content)


def _ruled(ruling: Mapping[str, Any], sheets: Sequence[Sheet] = ()) -> Mapping[str, object]:
    return {"ruling": ruling, "estimates": elicited.estimate_sheet(ruling), "sheets": sheets}


def _pictures(charts: Sequence[Panel | Bars], where: str) -> list[Picture]:
    return [
        Picture(chart.title, inline_svg(chart, f"{where}-{number}"))
        for number, chart in enumerate(charts)
    ]


def answers_section(report: Mapping[str, Any]) -> Section:
    """By tier and arm, the share of answers of each status."""
    tiers = {
        tier_title(report, tier): {
            label(arm): {s: of_arm["statuses"][s] / of_arm["answers"] for s in Status}
            for arm, of_arm in counted["arms"].items()
        }
        for tier, counted in report["tiers"].items()
    }
    return Section("answers", "Answers", {"tiers": tiers, "statuses": list(Status)})


def training_section(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], arms: Sequence[str]
) -> Section | None:
    """What the trainers logged; None where nothing of it is shown."""
    looks = looks_of(arms)
    panels = training_panels(logs, looks)
    if not panels:
        return None
    shown = {curve.label for panel in panels for curve in panel.curves}
    legend = _legend((arm for arm in logs if label(arm) in shown), looks, "training")
    content = {"legend": legend, "pictures": _pictures(panels, "training")}
    return Section("training", "Training", content)


def samples_section(arms: Sequence[str], shown: Showcase, asked: Mapping[str, Row]) -> Section:
    """Real answers to go through, each drawn as a day beside the best one."""
    names = list(dict.fromkeys(answer["id"] for answer in shown.answers))
    labels = {arm: label(arm) for arm in arms}
    data = {
        "labels": labels,
        "problems": [drawn_problem(asked[name]) for name in names],
        "answers": [
            {
                **drawn_answer(asked[answer["id"]]["problem"], answer),
                "problem": names.index(answer["id"]),
                "solved": shown.solved[answer["arm"], answer["id"]],
            }
            for answer in shown.answers
        ],
    }
    content = {
        "shown": shown,
        "labels": labels,
        "problems": len(names),
        "tiers": list(dict.fromkeys(asked[name]["tier"] for name in names)),
        "statuses": list(Status),
        "json": htmlsafe_json_dumps(data, _dumps),
        "script": _file("page.js"),
    }
    return Section("samples", "Samples", content)


def tables_section(report: Mapping[str, Any]) -> Section:
    """Every table of the report."""
    return Section("tables", "Tables", {"sheets": list(report_sheets(report))})


# --- HTML ----------------------------------------------------------------------------------------


def _dumps(value: Any, **_: Any) -> str:
    # Texts stay as they are, which is smaller; htmlsafe_json_dumps escapes <, >, & and '. The two
    # separators of lines were no part of JavaScript strings once.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _whole(sentence: str) -> str:
    """A sentence whose intervals are not broken between lines."""
    return re.sub(r"\S+ \[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), sentence)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"whole": _whole, "label": label}
    environment.globals["parts"] = environment.get_template("parts.html.j2").module
    return environment
