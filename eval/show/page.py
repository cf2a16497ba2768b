"""The page of a run: values are gathered into sections, and a template shows each of them.

A section is a name, which is its template in ``templates/sections`` and its anchor; a title for the
navigation; and its content, what the template may show. The page loads nothing, and a content
security policy forbids it to. A model's words are shown as text and can do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from data.rows import Row
from eval.show.charts import Bars, Look, Panel, inline_svg, inline_swatch, looks_of
from eval.show.elicitation_sheets import (
    conclusion_sheet,
    estimate_sheet,
    ruling_sheets,
    tier_sheets,
)
from eval.show.panels import histogram_panels, passk_panels
from eval.show.report_sheets import pass_sheet, tier_title
from eval.show.showcase import Showcase, drawn_answer, drawn_problem
from eval.show.tables import label
from rewards.verify import Status

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class PageSection:
    """One part of the page; see above. One without a title is not in the navigation."""

    name: str
    title: str
    content: Mapping[str, object]

    def html(self) -> Markup:
        template = _page_templates().get_template(f"sections/{self.name}.html.j2")
        return Markup(template.render(self.content))


@dataclass(frozen=True)
class Picture:
    """A chart with its title and the sentences below it."""

    title: str
    svg: Markup
    notes: Sequence[str] = ()


#: The arms of a legend by family, with the label and a swatch of each; a family is hidden together.
Legend = dict[str, list[tuple[str, Markup]]]


def page_text(run_name: str, arms: Sequence[str], sections: Sequence[PageSection]) -> str:
    """The page, the same for the same sections."""
    digest = hashlib.sha256(_file("page.js").encode()).digest()
    return _page_templates().get_template("page.html.j2").render(
        run=run_name,
        families=dict.fromkeys(look.family for look in looks_of(arms).values()),
        sections=sections,
        style=_file("page.css"),
        digest=base64.b64encode(digest).decode(),
    )  # fmt: skip


# --- the sections that need more than values -----------------------------------------------------


def passk_section(report: Mapping[str, Any]) -> PageSection:
    """pass@k by tier."""
    panels = passk_panels(report)
    pictures = [
        Picture(panel.title, inline_svg(panel, f"passk-{tier}"), pass_sheet(report, tier).notes)
        for panel, tier in zip(panels, report["tiers"], strict=True)
    ]
    floors = {
        curve.label: inline_swatch(curve.look, f"floor-{curve.label}")
        for panel in panels
        for curve in panel.curves
        if curve.look.family == "floor"
    }
    content = {
        "interval": report["interval"],
        "legend": _legend(report["arms"], looks_of(report["arms"]), "passk"),
        "floors": floors,
        "pictures": pictures,
    }
    return PageSection("passk", "pass@k", content)


def _legend(arms: Iterable[str], looks: Mapping[str, Look], where: str) -> Legend:
    legend: Legend = {}
    for arm in arms:
        swatch = inline_swatch(looks[arm], f"{where}-{arm}")
        legend.setdefault(looks[arm].family, []).append((label(arm), swatch))
    return legend


def elicitation_section(elicitation: Mapping[str, Any], arms: Sequence[str]) -> PageSection:
    """The conclusions with all that they rest on, and what the answers are like."""
    looks, tiers = looks_of(arms), {}
    for tier, described in elicitation["tiers"].items():
        pictures = _pictures(histogram_panels(described["histogram"], looks), tier)
        tiers[tier] = {"pictures": pictures, **tier_sheets(described)}
    content = {
        "elicitation": elicitation,
        "conclusions": conclusion_sheet(elicitation),
        "tiers": tiers,
    }
    return PageSection("elicitation", "Elicitation", content)


def training_section(panels: Sequence[Panel], arms: Sequence[str]) -> PageSection:
    """What the trainers logged."""
    shown = {curve.label for panel in panels for curve in panel.curves}
    legend = _legend((a for a in arms if label(a) in shown), looks_of(arms), "training")
    content = {"legend": legend, "pictures": _pictures(panels, "training")}
    return PageSection("training", "Training", content)


def _pictures(charts: Sequence[Panel | Bars], where: str) -> list[Picture]:
    return [
        Picture(chart.title, inline_svg(chart, f"{where}-{number}"))
        for number, chart in enumerate(charts)
    ]


def samples_section(arms: Sequence[str], shown: Showcase, asked: Mapping[str, Row]) -> PageSection:
    """Real answers to go through, each drawn as a day beside the best one."""
    names = list(dict.fromkeys(answer["id"] for answer in shown.answers))
    answers = [
        {
            **drawn_answer(asked[answer["id"]]["problem"], answer),
            "problem": names.index(answer["id"]),
            "solved": shown.solved[answer["arm"], answer["id"]],
        }
        for answer in shown.answers
    ]
    data = {
        "labels": {arm: label(arm) for arm in arms},
        "problems": [drawn_problem(asked[name]) for name in names],
        "answers": answers,
    }
    content = {
        "total": shown.total,
        "each": shown.each,
        "data": data,
        "tiers": list(dict.fromkeys(asked[name]["tier"] for name in names)),
        "statuses": list(Status),
        "json": htmlsafe_json_dumps(data, separators=(",", ":")),
        "script": _file("page.js"),
    }
    return PageSection("samples", "Samples", content)


# --- HTML ----------------------------------------------------------------------------------------


def _file(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _whole(sentence: str) -> str:
    """A sentence whose intervals are not broken between lines."""
    return re.sub(r"\S+ \[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), sentence)


@cache
def _page_templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "whole": _whole,
        "label": label,
        "estimates": estimate_sheet,
        "sheets": ruling_sheets,
    }
    environment.globals["tier_title"] = tier_title
    environment.globals["parts"] = environment.get_template("parts.html.j2").module
    return environment
