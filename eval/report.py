"""Stage ``make report``: the report as one HTML page that needs nothing else, and PNGs.

Writes ``runs/<run>/eval/report.html`` and ``report.files/training.png`` (and ``accuracy.png``). The
page loads nothing, and a content security policy forbids it to: what a model wrote is shown as text
and can do nothing. What a run does not have is left out; the conclusion, where ``eval.elicitation``
wrote one, is the page's first line and a section of its own (``eval.show.sheets``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from data.common.errors import UserError, run_main, shown
from data.common.files import Stage, finished, read_jsonl, sha256, stage_facts, write_text
from data.policies import GREEDY
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import VERDICTS
from eval import elicitation
from eval.answers.files import answered, way_of_asking
from eval.answers.judge import check_judged
from eval.show import sheets as findings
from eval.show.charts import HEIGHT, WIDTH, Curve, Look, Panel, draw_panels, thinned
from eval.show.showcase import CUT, choose, drawn_answer, drawn_problem
from eval.show.tables import guessable, headline, label, read_result, sheets, tier_title
from rewards.verify import Status

TEMPLATES = Path(__file__).parent / "show" / "templates"
PAGE = "report.html"
#: A folder for the PNGs and the manifest; no arm can be called so.
FILES = "report.files"
#: Signals of a training log: name in the log, title, whether a share in %.
SIGNALS = (
    ("reward", "Reward", False),
    ("rewards/optimal/mean", "Optimal answers, %", True),
    ("rewards/validity/mean", "Valid answers, %", True),
    ("val/optimal", "Optimal answers on val, %", True),
    ("kl", "KL to the reference", False),
    ("kl_start", "KL to the start", False),
    ("entropy", "Entropy of a token", False),
    ("grad_norm", "Gradient norm", False),
    ("completions/mean_length", "Tokens an answer", False),
    ("loss", "Loss", False),
)


def looks_of(recipe: Recipe, arms: Sequence[str]) -> dict[str, Look]:
    """How each arm is drawn, and each entry of the recipe that several seeds were trained of."""
    entry = {member: name for name in recipe.arms for member in recipe.members(name)}
    families = list(dict.fromkeys(entry.get(arm, arm) for arm in arms))
    looks = {
        arm: Look(families.index(entry.get(arm, arm)), place) for place, arm in enumerate(arms)
    }
    return {entry.get(arm, arm): look for arm, look in reversed(looks.items())} | looks


def families(
    arms: Iterable[str], looks: Mapping[str, Look]
) -> list[tuple[int, list[tuple[str, Look]]]]:
    """Arms of one colour together, for the legend: its number, and (label, look) of each arm."""
    found: dict[int, list[tuple[str, Look]]] = {}
    for arm in arms:
        found.setdefault(looks[arm].family, []).append((label(arm), looks[arm]))
    return list(found.items())


def report_panels(
    report: Mapping[str, Any], looks: Mapping[str, Look]
) -> list[tuple[Panel, list[str]]]:
    """pass@k of every arm with its band and the random policies' floors, and notes, by tier."""
    found = []
    top = _highest(report)
    for tier, result in report["tiers"].items():
        ks = result["ks"]
        curves = [
            Curve(
                label(arm),
                looks[arm],
                [(k, of_arm["pass_at_k"][str(k)]["value"]) for k in ks],
                [tuple(of_arm["pass_at_k"][str(k)][end] for end in ("low", "high")) for k in ks],
            )
            for arm, of_arm in result["arms"].items()
        ]
        random = [policy for policy in result["floors"] if policy not in GREEDY]
        for place, policy in enumerate(random):
            shares = result["floors"][policy]
            points = [(k, s) for k in ks if (s := shares.get(str(k))) is not None]
            if points:
                curves.append(Curve(policy.replace("_", " "), Look(0, place), points, floor=True))
        panel = Panel(
            tier_title(report, tier),
            f"pass@k on {tier} in %, " + "; ".join(map(_said, curves)),
            "k",
            curves,
            percent=True,
            log=True,
            ticks=ks,
            top=top,
        )
        found.append((panel, list(_notes(result))))
    return found


def _highest(report: Mapping[str, Any]) -> float:
    """The upper end of all y axes, a multiple of 0.1 that holds every curve and band."""
    shares = [
        share
        for result in report["tiers"].values()
        for share in (
            *(e["high"] for arm in result["arms"].values() for e in arm["pass_at_k"].values()),
            *(s for floor in result["floors"].values() for s in floor.values() if s is not None),
        )
    ]
    return min(1.0, math.ceil(10 * max(shares) + 0.2) / 10)


def _said(curve: Curve) -> str:
    (first, at_first), (last, at_last) = curve.points[0], curve.points[-1]
    return (
        f"{curve.label} {100 * at_first:.1f} at k = {first} and {100 * at_last:.1f} at k = {last}"
    )


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"{result['problems']:,} problems × {result['samples']} samples."
    greedy = {p: shares["1"] for p, shares in result["floors"].items() if p in GREEDY}
    if greedy:
        best = max(greedy, key=lambda policy: greedy[policy])
        yield f"Best greedy rule: {best.replace('_', ' ')}, {100 * greedy[best]:.1f} % at any k."
    if sentence := guessable(result):
        yield sentence


def training_panels(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], looks: Mapping[str, Look]
) -> list[Panel]:
    """A panel for each of SIGNALS that some arm's log has."""
    panels = []
    for key, title, percent in SIGNALS:
        curves = []
        for arm, rows in logs.items():
            if key == "loss" and any("reward" in row for row in rows):
                continue  # GRPO's loss is near 0 whatever happens
            points = [(row["step"], row[key]) for row in rows if key in row]
            if any(y is not None for _, y in points):
                curves.append(Curve(label(arm), looks[arm], thinned(points)))
        if curves:
            name = f"{title} by training step of {', '.join(c.label for c in curves)}"
            panels.append(Panel(title, name, "step", curves, percent=percent))
    return panels


def statuses(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By tier and arm, the share of answers of each status."""
    return [
        {
            "title": tier_title(report, tier),
            "arms": [
                (label(arm), [(s, of_arm["statuses"][s] / of_arm["answers"]) for s in Status])
                for arm, of_arm in result["arms"].items()
            ],
        }
        for tier, result in report["tiers"].items()
    ]


def showcase(
    rows: Sequence[Mapping[str, Any]], paths: Mapping[str, Path], seed: int
) -> dict[str, Any] | None:
    """The answers of the browser, of the arms whose samples ``paths`` names; None without any."""
    if not paths:
        return None
    asked = {row["id"]: row for row in rows}
    choice = choose(
        {arm: answered(path, asked) for arm, path in paths.items()},
        {name: row["tier"] for name, row in asked.items()},
        seed,
    )
    names = list(dict.fromkeys(row["id"] for row in choice.rows))
    answers = []
    for row in choice.rows:
        name, arm = row["id"], row["arm"]
        drawn = drawn_answer(asked[name]["problem"], row, row)
        solved = [choice.optimal[arm, name], choice.answers[arm, name]]
        answers.append({**drawn, "problem": names.index(name), "solved": solved})
    return {
        "total": choice.total,
        "each": choice.each,
        "arms": list(paths),
        "tiers": list(dict.fromkeys(asked[name]["tier"] for name in names)),
        "data": {
            "labels": {arm: label(arm) for arm in paths},
            "problems": [drawn_problem(asked[name]) for name in names],
            "answers": answers,
        },
    }


def build(
    recipe: Recipe,
    report: Mapping[str, Any],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    conclusion: Mapping[str, Any] | None,
    answers: Mapping[str, Any] | None,
) -> str:
    """The page's text, the same for the same input."""
    arms = report["arms"]
    looks = looks_of(recipe, arms)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    training = training_panels(logs, looks)
    trained = {curve.label for panel in training for curve in panel.curves}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html.j2").render(
        run=recipe.run_name,
        facts=_facts(recipe, report),
        report=report,
        headline=headline(report),
        notes=dict.fromkeys([*report.get("notes", []), *(conclusion or {}).get("notes", [])]),
        arms=families(arms, looks),
        longest=max(len(label(arm)) for arm in arms),
        panels=report_panels(report, looks),
        statuses=statuses(report),
        training=training,
        trained=families((arm for arm in logs if label(arm) in trained), looks),
        elicitation=None if conclusion is None else findings.view(conclusion, looks),
        sheets=list(sheets(report)),
        answers=answers,
        json=None if answers is None else htmlsafe_json_dumps(answers["data"], _dumps),
        cut=CUT,
        size=(WIDTH, HEIGHT),
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )  # fmt: skip


def _facts(recipe: Recipe, report: Mapping[str, Any]) -> dict[str, str]:
    return {
        "base model": recipe.model,
        "seed": str(recipe.seed),
        **_asking(recipe, report["arms"]),
        "success": f"a proven {report['success']} schedule",
    }


def _asking(recipe: Recipe, arms: Sequence[str]) -> dict[str, str]:
    """How the arms were asked, which the recipe need not say any more; of those whose samples,
    which may be of an earlier version, say it."""
    ways: dict[str, list[str]] = {}
    for arm in arms:
        folder = recipe.run.samples(arm).parent
        if finished(folder) and "asking" in stage_facts(folder):
            asking = way_of_asking(folder)
            way = f"T = {asking.temperature:g}, top-p = {asking.top_p:g}"
            ways.setdefault(way, []).append(label(arm))
    said = [f"{', '.join(by)}: {way}" for way, by in ways.items()] if len(ways) > 1 else [*ways]
    return {"sampling": "; ".join(said)} if said else {}


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
    environment.filters["whole"] = _whole
    return environment


def run(recipe: Recipe, force: bool) -> None:
    """Write the page and the PNGs of a run that was evaluated, unless they are up to date."""
    folder = recipe.run.eval
    source = folder / "report.json"
    if not (finished(folder) and source.is_file()):
        raise UserError(f"{source} does not exist or is not finished; `make eval` writes it")
    report = read_result(source)
    arms = report["arms"]
    log_paths = {arm: path for arm in arms if (path := recipe.run.log(arm)).is_file()}
    samples = {arm: recipe.run.samples(arm) for arm in arms}
    samples = {arm: path for arm, path in samples.items() if all(map(Path.is_file, _both(path)))}
    check_judged(recipe, samples)
    texts = [file for path in samples.values() for file in _both(path)]
    judged = elicitation.standing(recipe, arms)
    if judged is None and finished(folder / elicitation.FOLDER):
        print(
            "report: the conclusion is missing, or of other answers than these, so it is left out; "
            "`make eval` goes on with it",
            flush=True,
        )
    inputs = [source, recipe.run.split("test"), *texts, *log_paths.values()]
    settings = {
        "run": recipe.run_name,
        "facts": _facts(recipe, report),
        "arms": arms,
        "templates": sha256(TEMPLATES),
    }
    stage = Stage(folder / FILES, "report", settings, [*inputs, *([judged] if judged else [])])
    if not stage.begin_unless_done(force):
        return
    logs = {arm: list(_logged(path)) for arm, path in log_paths.items()}
    conclusion = read_result(judged) if judged else None
    answers = showcase(read_split(recipe.run, "test"), samples, recipe.seed)
    page = build(recipe, report, logs, conclusion, answers)
    outputs = [f"../{PAGE}", *_draw(folder / FILES, looks_of(recipe, arms), logs, conclusion)]
    write_text(folder / PAGE, page)
    stage.finish(outputs)
    print(f"report: {folder / PAGE}, {len(page.encode(errors='replace')) / 1e6:.1f} MB", flush=True)


def _logged(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a training's log.

    Raises:
        UserError: naming the line that cannot be drawn.
    """
    for number, row in read_jsonl(path):
        for key in ("step", *(signal for signal, *_ in SIGNALS if row.get(signal) is not None)):
            value = row.get(key)
            if type(value) not in (int, float) or not abs(value) < 1e100:
                raise UserError(
                    f'{path}:{number}: "{key}" must be a number, not {shown(value)}; delete the '
                    "line, or the file to leave the training out"
                )
        yield row


def _both(samples: Path) -> tuple[Path, Path]:
    return samples, samples.with_name(VERDICTS)


def _draw(
    folder: Path,
    looks: Mapping[str, Look],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    conclusion: Mapping[str, Any] | None,
) -> list[str]:
    """The PNGs beside ``passk.png``; returns their names."""
    drawn = []
    for old in folder.glob("*.png"):
        old.unlink()  # nothing of an earlier run that had more
    if training := training_panels(logs, looks):
        draw_panels(training, folder / "training.png", {label(arm): looks[arm] for arm in logs})
        drawn.append("training.png")
    if conclusion is not None:
        histograms = {tier: found["histogram"] for tier, found in conclusion["tiers"].items()}
        panels = [
            bars
            for tier, histogram in histograms.items()
            for bars in findings.histogram_panels(histogram, looks, f"{tier}: ")
        ]
        draw_panels(panels, folder / "accuracy.png", {})
        drawn.append("accuracy.png")
    return drawn


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
