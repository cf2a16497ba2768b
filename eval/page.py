"""Stage ``make report``: the report as one HTML page that needs nothing else, and PNGs.

Writes ``runs/<run>/eval/report.html`` and ``report.files/training.png`` (and ``accuracy.png``). The
page loads nothing, and a content security policy forbids it to: what a model wrote is shown as text
and can do nothing. What a run does not have is left out.

``eval/elicitation.json``, where it exists, becomes a section of its own. Keys that are read; any of
them may be missing::

    {"sentence": str,                        # the verdict, the page's first line
     "overall": {...like a tier...},
     "tiers": {tier: {
        "verdict": str,
        "because": str,                      # the deciding condition; "reason" is read too
        "notes": [str],
        "estimates": {name: Estimate},       # the quantities of the rule, shares of problems
        "two_by_two": {"both", "only_base", "only_tuned", "neither", "p"},
        "histogram": {arm: {bin label: problems}},
        "coverage": {arm: {threshold: Estimate}},
        "crossing": {"k", "low", "high", "n", "beyond"},
        "entropy": {...}, "kl": {...}, "likelihood": {...}}},
     "entropy": {...}, "kl": {...}, "likelihood": {...}}

An Estimate is ``{"value", "low", "high", ...}``. ``two_by_two`` and ``crossing`` may also be
mappings of several such, by the comparison's name. ``entropy``, ``kl`` and ``likelihood`` are
numbers or Estimates in their own unit, by arm and by any names below it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from data.errors import UserError, run_main
from data.files import Stage, finished, read_jsonl, sha256, write_text
from data.make import read_split, split_path
from data.policies import GREEDY, GUESSABLE
from data.recipe import Recipe, recipe_arguments, recipe_from
from eval.chart import HEIGHT, MARKERS, WIDTH, Bars, Curve, Panel, draw_panels, thinned
from eval.plot import STYLES as STYLES
from eval.report import VERDICTS
from eval.sample import samples_path
from eval.showcase import CUT, choose, completions, drawn_answer, drawn_problem
from eval.tables import cell, headline, label, sheets, tier_title
from rewards.verify import Status

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"
#: A folder for the PNGs and the manifest; no arm can be called so.
FILES = "report.files"
ELICITATION = "elicitation.json"
#: Signals of a training log: name in the log, title, whether a share in %.
SIGNALS = (
    ("reward", "Reward", False),
    ("rewards/optimal/mean", "Optimal answers, %", True),
    ("rewards/validity/mean", "Valid answers, %", True),
    ("kl", "KL to the start", False),
    ("entropy", "Entropy of a token", False),
    ("grad_norm", "Gradient norm", False),
    ("completions/mean_length", "Tokens an answer", False),
    ("loss", "Loss", False),
)


def report_panels(report: Mapping[str, Any]) -> list[tuple[Panel, list[str]]]:
    """pass@k of every arm with its band and the random policies' floors, and notes, by tier."""
    found = []
    top = _highest(report)
    for tier, result in report["tiers"].items():
        ks = result["ks"]
        curves = [
            Curve(
                label(arm),
                report["arms"].index(arm),
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
                curves.append(Curve(policy.replace("_", " "), place, points, floor=True))
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
    n = result["samples"]
    yield f"{result['problems']:,} problems × {n} samples."
    greedy = {p: shares["1"] for p, shares in result["floors"].items() if p in GREEDY}
    if greedy:
        best = max(greedy, key=lambda policy: greedy[policy])
        yield f"Best greedy rule: {best.replace('_', ' ')}, {100 * greedy[best]:.1f} % at any k."
    guessed = result["floors"].get("random_maximal", {}).get(str(n))
    if guessed is not None and guessed > GUESSABLE:
        yield (
            f"Guessable: a random maximal schedule solves {100 * guessed:.1f} % within {n} tries, "
            f"so pass@{n} says little about a model here."
        )


def training_panels(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], arms: Sequence[str]
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
                curves.append(Curve(label(arm), arms.index(arm), thinned(points)))
        if curves:
            name = f"{title} by training step of {', '.join(c.label for c in curves)}"
            panels.append(Panel(title, name, "step", curves, percent=percent))
    return panels


def histogram_panels(
    histogram: Mapping[str, Mapping[str, float]], arms: Sequence[str], where: str = ""
) -> list[Bars]:
    """Each arm's accuracies, with a common scale; ``where`` begins their titles."""
    top = max((count for bars in histogram.values() for count in bars.values()), default=0)
    return [
        Bars(
            where + label(arm),
            f"problems of {label(arm)} by accuracy: "
            + ", ".join(f"{place}: {count:g}" for place, count in bars.items()),
            arms.index(arm) if arm in arms else len(arms),
            list(bars.items()),
            top or 1,
        )
        for arm, bars in histogram.items()
        if bars
    ]


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


def elicitation_view(found: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    """What the section shows of ``elicitation.json``; see the module's docstring."""
    tiers = dict(found.get("tiers") or {})
    return {
        "sentence": found.get("sentence"),
        "overall": _ruling(found["overall"], arms) if found.get("overall") else None,
        "tiers": {tier: _ruling(ruling, arms) for tier, ruling in tiers.items()},
        "measures": _measures(found),
    }


def _ruling(ruling: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    estimates = ruling.get("estimates") or {}
    coverage = ruling.get("coverage") or {}
    return {
        "verdict": ruling.get("verdict"),
        "because": (ruling.get("because") or ruling.get("reason") or "").rstrip("."),
        "notes": [note.rstrip(".") for note in ruling.get("notes") or ()],
        "estimates": [(name, cell(e, "+")) for name, e in estimates.items() if e],
        "two_by_two": _several(ruling.get("two_by_two"), "both"),
        "crossing": [(name, _crossing(one)) for name, one in _several(ruling.get("crossing"), "n")],
        "histogram": histogram_panels(ruling.get("histogram") or {}, arms),
        "coverage": _matrix(coverage, lambda e: cell(e) if isinstance(e, Mapping) else _share(e)),
        "measures": _measures(ruling),
    }


def _several(value: Mapping[str, Any] | None, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """One record, which has ``key``, or several by name, as (name, record)."""
    if not value:
        return []
    return [("", value)] if key in value else [(name, one) for name, one in value.items() if one]


def _crossing(found: Mapping[str, Any]) -> str:
    n, k = found["n"], found.get("k")
    ends = [f"beyond {n}" if end is None else str(end) for end in (found["low"], found["high"])]
    interval = f"interval {ends[0]} to {ends[1]}"
    if k is None:
        return f"the base stays below at every k up to {n} ({interval})"
    return f"the base first meets or passes at k = {k} ({interval})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _quantity(value: Any) -> str:
    """A number or an Estimate in its own unit."""
    if isinstance(value, Mapping):
        return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    return f"{value:.3g}" if isinstance(value, float | int) else str(value)


def _matrix(value: Mapping[str, Any], say: Any) -> dict[str, Any] | None:
    """Quantities by name as a table: outer names across, the path within them down. Where the
    outer values are quantities themselves, one column without a name."""
    columns = {"": value} if all(map(_is_quantity, value.values())) else value
    flat = {k: dict(_leaves(v)) for k, v in columns.items() if not _is_quantity(v)}
    names = list(dict.fromkeys(name for column in flat.values() for name in column))
    if not names:
        return None
    rows = [(n, [say(c[n]) if n in c else "" for c in flat.values()]) for n in names]
    return {"columns": [label(name) for name in flat], "rows": rows}


def _is_quantity(value: Any) -> bool:
    return not isinstance(value, Mapping) or "value" in value


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        path = above + label(name).replace("_", " ")
        if not _is_quantity(inner):
            yield from _leaves(inner, f"{path}, ")
        elif inner is not None:
            yield path, inner


def _measures(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    titles = {"entropy": "Entropy", "kl": "KL divergence", "likelihood": "Likelihood of answers"}
    tables = ((title, _matrix(found.get(key) or {}, _quantity)) for key, title in titles.items())
    return [(title, table) for title, table in tables if table]


def showcase(
    rows: Sequence[Mapping[str, Any]], folder: Path, arms: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """The answers of the browser, of the arms whose files are there; None where none are."""
    paths = {arm: folder / arm / "samples.jsonl" for arm in arms}
    paths = {arm: p for arm, p in paths.items() if p.is_file() and p.with_name(VERDICTS).is_file()}
    if not paths:
        return None
    asked = {row["id"]: row for row in rows}
    choice = choose(
        {arm: (row for _, row in read_jsonl(p.with_name(VERDICTS))) for arm, p in paths.items()},
        {name: row["tier"] for name, row in asked.items()},
        seed,
    )
    texts = completions(paths, choice.verdicts)
    names = list(dict.fromkeys(row["id"] for row in choice.verdicts))
    answers = []
    for row in choice.verdicts:
        name, arm = row["id"], row["arm"]
        drawn = drawn_answer(asked[name]["problem"], row, texts[arm, name, row["sample"]])
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
    elicitation: Mapping[str, Any] | None,
    answers: Mapping[str, Any] | None,
) -> str:
    """The page's text, the same for the same input."""
    arms = report["arms"]
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    training = training_panels(logs, arms)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html.j2").render(
        run=recipe.run,
        facts=_facts(recipe, report),
        report=report,
        headline=headline(report),
        arms=[(label(arm), MARKERS[_marker(place)], place) for place, arm in enumerate(arms)],
        longest=max(len(label(arm)) for arm in arms),
        panels=report_panels(report),
        statuses=statuses(report),
        training=training,
        trained={curve.label for panel in training for curve in panel.curves},
        elicitation=None if elicitation is None else elicitation_view(elicitation, arms),
        sheets=list(sheets(report)),
        answers=answers,
        json=None if answers is None else htmlsafe_json_dumps(answers["data"], _dumps),
        cut=CUT,
        size=(WIDTH, HEIGHT),
        colours=len(STYLES),
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )  # fmt: skip


def _facts(recipe: Recipe, report: Mapping[str, Any]) -> dict[str, str]:
    return {
        "base model": recipe.model,
        "seed": str(recipe.seed),
        "sampling": f"T = {recipe.eval.temperature:g}, top-p = {recipe.eval.top_p:g}",
        "success": f"a proven {report['success']} schedule",
    }


def _marker(place: int) -> str:
    return STYLES[place % len(STYLES)][1]


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


def _read(path: Path, way_out: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {way_out} writes it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must be a JSON object; {way_out} writes it again")
    return found


def run(recipe: Recipe, force: bool) -> None:
    """Write the page and the PNGs of a run that was evaluated, unless they are up to date."""
    folder = recipe.folder / "eval"
    source = folder / "report.json"
    if not (finished(folder) and source.is_file()):
        raise UserError(f"{source} does not exist or is not finished; `make eval` writes it")
    report = _read(source, "FORCE=1 make eval")
    arms = report["arms"]
    log_paths = {arm: path for arm in arms if (path := recipe.folder / arm / "log.jsonl").is_file()}
    texts = [p for arm in arms for p in _with_verdicts(samples_path(recipe, arm)) if p.is_file()]
    verdict = folder / ELICITATION
    inputs = [source, split_path(recipe, "test"), *texts, *log_paths.values()]
    settings = {
        "run": recipe.run,
        "facts": _facts(recipe, report),
        "arms": arms,
        "templates": sha256(TEMPLATES),
    }
    found = [verdict] if verdict.is_file() else []
    stage = Stage(folder / FILES, "report", settings, [*inputs, *found])
    if stage.is_current(force):
        return
    logs = {arm: [row for _, row in read_jsonl(path)] for arm, path in log_paths.items()}
    elicitation = _read(verdict, "the stage that judged") if found else None
    answers = showcase(read_split(recipe, "test"), folder, arms, recipe.seed)
    page = build(recipe, report, logs, elicitation, answers)
    outputs = [f"../{PAGE}", *_draw(folder / FILES, report, logs, elicitation)]
    write_text(folder / PAGE, page)
    stage.finish(outputs)
    print(f"report: {folder / PAGE}, {len(page.encode(errors='replace')) / 1e6:.1f} MB", flush=True)


def _with_verdicts(samples: Path) -> tuple[Path, Path]:
    return samples, samples.with_name(VERDICTS)


def _draw(
    folder: Path,
    report: Mapping[str, Any],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    elicitation: Mapping[str, Any] | None,
) -> list[str]:
    """The PNGs beside ``passk.png``; returns their names."""
    arms = report["arms"]
    styles = {label(arm): place for place, arm in enumerate(arms)}
    drawn = []
    for old in folder.glob("*.png"):
        old.unlink()  # nothing of an earlier run that had more
    if training := training_panels(logs, arms):
        trained = {c.label for panel in training for c in panel.curves}
        shown = {name: place for name, place in styles.items() if name in trained}
        draw_panels(training, folder / "training.png", shown)
        drawn.append("training.png")
    tiers = (elicitation or {}).get("tiers") or {}
    histograms = [
        bars
        for tier, ruling in tiers.items()
        for bars in histogram_panels(ruling.get("histogram") or {}, arms, f"{tier}: ")
    ]
    if histograms:
        draw_panels(histograms, folder / "accuracy.png", styles)
        drawn.append("accuracy.png")
    return drawn


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
