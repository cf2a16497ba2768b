"""The page of a run: one template a section, in ``templates/sections``.

The page loads nothing, and a content security policy forbids it to. A model's words are shown as
text and can do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from data.clock import CLOCK
from data.rows import Row
from eval.show import elicitation_sheets, report_sheets
from eval.show.showcase import Showcase, drawn_answer, drawn_problem
from eval.show.tables import label
from rewards.verify import Status

TEMPLATES = Path(__file__).parent / "templates"
#: The sections in their order, with their titles in the navigation. The name of a section is that
#: of its template, its anchor, and the content without which it is left out.
SECTIONS = {
    "result": "",
    "training": "Training",
    "answers": "Answers",
    "samples": "One by one",
    "elicitation": "The criterion",
    "thinking": "Thinking",
    "tables": "Tables",
}


def page_text(run_name: str, content: Mapping[str, object]) -> str:
    """The page, the same for the same content: what the templates show, by name."""
    digest = hashlib.sha256(_file("page.js").encode()).digest()
    return _page_templates().get_template("page.html.j2").render(
        content,
        run=run_name,
        sections={name: title for name, title in SECTIONS.items() if content.get(name, True)},
        style=_file("page.css"),
        script=_file("page.js"),
        digest=base64.b64encode(digest).decode(),
    )  # fmt: skip


def picture(png: bytes) -> str:
    """An image that stands in the page itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def shown_samples(
    arms: Iterable[str], shown: Showcase, asked: Mapping[str, Row]
) -> dict[str, object]:
    """Real answers to go through, each drawn as a day beside the best one."""
    names = list(dict.fromkeys(answer["id"] for answer in shown.answers))
    answers = [
        {
            **drawn_answer(asked[answer["id"]]["problem"], answer),
            "problem": names.index(answer["id"]),
            "anchor": f"{answer['id']}.{answer['arm']}.{answer['sample'] + 1}",
        }
        for answer in shown.answers
    ]
    labels = {arm: label(arm) for arm in arms}
    problems = [
        {
            **drawn_problem(asked[name]),
            "solved": {
                arm: shown.solved[arm, name] for arm in labels if (arm, name) in shown.solved
            },
        }
        for name in names
    ]
    broken = {text.partition(": ")[0] for answer in answers for text in answer["violations"]}
    data = {"labels": labels, "problems": problems, "answers": answers}
    return {
        **data,
        "total": shown.total,
        "each": shown.each,
        "tiers": list(dict.fromkeys(asked[name]["tier"] for name in names)),
        "rules": sorted(broken),
        "json": htmlsafe_json_dumps(data, separators=(",", ":")),
    }


def _file(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _whole(sentence: str) -> str:
    """A sentence whose intervals are not broken between lines."""
    return re.sub(r"\S+ \[[^\]]*\]", lambda match: match[0].replace(" ", "\u00a0"), sentence)


@cache
def _page_templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"whole": _whole, "label": label, "clock": CLOCK.__getitem__}
    environment.globals |= {
        "of_report": report_sheets,
        "of_elicitation": elicitation_sheets,
        "statuses": list(Status),
        "parts": environment.get_template("parts.html.j2").module,
    }
    return environment
