"""Stage ``make report``: everything that was found, on one HTML page.

Writes ``runs/<run>/eval/report.html``, which needs no other file and no network
(``eval.show.page``), and ``report.files/training.png``. A section of the page whose content the run
does not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from data.common.errors import UserError, run_main
from data.common.files import Stage, finished, sha256, stage_facts, write_bytes, write_text
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import BASE, Run, goal
from data.sections import TierUse
from eval.answers.files import answered, way_of_asking
from eval.answers.judge import check_judged
from eval.show import page
from eval.show.charts import drawn_as_png, looks_of, passk_chart, training_panels
from eval.show.results import read_result, standing
from eval.show.showcase import choose_answers, drawn_problem
from eval.show.tables import label
from eval.show.thinking_sheets import thinking_sheets
from eval.stats.estimate import cell
from pipeline.health.diagnosis import Finding
from pipeline.health.logs import examine
from pipeline.health.reading import read_log
from pipeline.health.symptom import Level

REPORT_PAGE, TRAINING = "report.html", "training.png"
#: Folder of the PNG and the manifest; no arm has this name.
REPORT_FILES = "report.files"
_SHOWN_VERSIONS = ("torch", "transformers", "trl", "unsloth", "ortools")


def run(recipe: Recipe, force: bool) -> None:
    """Write the page of a run that was evaluated, unless it is up to date."""
    run = recipe.run
    run.require_data()
    if not (finished(run.eval) and run.report.is_file()):
        raise UserError(f"{run.report} does not exist or is not finished; {goal('eval')} writes it")
    report = read_result(run.report)
    arms = report["arms"]
    logs = {arm: run.log(arm) for arm in arms if run.log(arm).is_file()}
    judged = [a for a in arms if run.samples(a).is_file() and run.verdicts(a).is_file()]
    check_judged(run, judged)
    conclusion = standing(run.elicitation, run, arms)
    if conclusion is None and finished(run.elicitation.parent):
        print(
            "report: the conclusion is missing, or of other answers than these, so it is left out; "
            f"{goal('eval')} goes on with it",
            flush=True,
        )
    facts = {
        "recipe": f"{recipe.path.name}, seed {recipe.seed}",
        "base model": recipe.model,
        "sampling": _asked(run, arms),
        "success": f"a proven {report['success']} schedule",
        **_made_by(run, arms),
    }
    answers = [file for arm in judged for file in (run.samples(arm), run.verdicts(arm))]
    thinking = standing(run.thinking, run, arms)
    inputs = [run.report, run.split("test"), *answers, *logs.values()]
    settings = {"run": recipe.run_name, "facts": facts, "templates": sha256(page.TEMPLATES)}
    folder = run.eval / REPORT_FILES
    stage = Stage(folder, "report", settings, [*inputs, *filter(None, (conclusion, thinking))])
    if not stage.begin_unless_done(force):
        return
    findings = [(arm, weighed(arm, one, run, report)) for arm, one in _findings(logs)]
    findings.sort(key=lambda pair: pair[1].level == Level.NOTE)  # numbers mark steps of alarms
    panels = training_panels(
        {arm: [*read_log(path)] for arm, path in logs.items()},
        looks_of(arms),
        _floors_of_training(recipe.tier_uses, report),
        [
            (arm, finding.step, str(number))
            for number, (arm, finding) in enumerate(findings, 1)
            if finding.level != Level.NOTE
        ],
    )
    path, training = folder / TRAINING, ""
    path.unlink(missing_ok=True)
    if panels:
        drawn = drawn_as_png(panels)
        write_bytes(path, drawn)
        training = page.picture(drawn)
    content = page_content(run, report, conclusion, thinking, judged, recipe.seed)
    text = page.page_text(
        recipe.run_name, {**content, "facts": facts, "training": training, "findings": findings}
    )
    write_text(run.eval / REPORT_PAGE, text)
    stage.finish([f"../{REPORT_PAGE}", *([TRAINING] if panels else [])])
    print(f"report: {run.eval / REPORT_PAGE}, {len(text) / 1e6:.1f} MB", flush=True)


def page_content(
    run: Run,
    report: Mapping[str, Any],
    conclusion: Path | None,
    thinking: Path | None,
    judged: Sequence[str],
    seed: int,
) -> dict[str, object]:
    """The content of the page's sections, by name; None leaves a section out.

    Args:
        conclusion, thinking: ``elicitation.json`` and ``thinking.json``, where they are of the
            answers that are there now.
        judged: arms whose answers are shown.
    """
    elicitation = read_result(conclusion) if conclusion else None
    notes = [*report.get("notes", []), *(elicitation or {}).get("notes", [])]
    asked = {row["id"]: row for row in read_split(run, "test")}
    tiers = {name: row["tier"] for name, row in asked.items()}
    rows = {arm: answered(run.samples(arm), asked) for arm in judged}
    chosen = choose_answers(rows, tiers, seed)
    main = [row for row in asked.values() if row["tier"] == report["main"]]
    fewest = min(main, key=lambda row: len(row["problem"].events), default=None)
    return {
        "report": report,
        "task": fewest and drawn_problem(fewest),
        "notes": list(dict.fromkeys(notes)),
        "passk": page.picture(passk_chart(report)),
        "elicitation": elicitation,
        "thinking": thinking and thinking_sheets(read_result(thinking), report["main"]),
        "samples": page.shown_samples(judged, chosen, asked) if judged else None,
    }


def _made_by(run: Run, arms: Iterable[str]) -> dict[str, str]:
    """Machine, wall time, commit and versions of a run, by the manifests of its stages."""
    folders = {"data": run.data, **{arm: run.stage(arm) for arm in arms if arm != BASE}}
    folders |= {f"answers of {label(arm)}": run.samples(arm).parent for arm in arms}
    made = {name: stage_facts(folder) for name, folder in folders.items() if finished(folder)}
    times = [
        f"{label(name)} {timedelta(seconds=round(facts['seconds']))}"
        for name, facts in made.items()
        if "seconds" in facts
    ]
    versions = {
        f"{name} {number}"
        for facts in made.values()
        for name, number in facts.get("versions", {}).items()
        if name in _SHOWN_VERSIONS
    }
    several = {
        "machine": (facts.get("machine") for facts in made.values()),
        "commit": (facts.get("commit") for facts in made.values()),
        "time": times,
        "versions": sorted(versions),
    }
    joined = {name: ", ".join(dict.fromkeys(filter(None, each))) for name, each in several.items()}
    return {name: text for name, text in joined.items() if text}


def _findings(logs: Mapping[str, Path]) -> list[tuple[str, Finding]]:
    """The doctor's findings on the trainings but for notes, (arm, finding) by step."""
    findings = []
    for arm, path in logs.items():
        with suppress(UserError):  # a log that tells nothing
            patient = examine(arm, path)
            findings += [
                (arm, one) for one in (*patient.findings, *patient.past) if one.level != "note"
            ]
    return sorted(findings, key=lambda pair: pair[1].step)


def weighed(arm: str, finding: Finding, run: Run, report: Mapping[str, Any]) -> Finding:
    """A finding of an arm; that its answers narrow is a note where pass@k did not fall, at the
    largest k on the main tier, surely by the interval."""
    if finding.symptom != "entropy-collapse" or arm not in run.arms:
        return finding
    for pair in report["tiers"][report["main"]]["differences"]:
        k, change = list(pair["at_k"].items())[-1]
        of_arm = (pair["tuned"], pair["reference"]) == (arm, run.arms[arm].start)
        if of_arm and change["low"] >= 0:
            kept = f"; but pass@{k} did not fall by it: {cell(change, '+')} points"
            return replace(finding, level=Level.NOTE, evidence=finding.evidence + kept)
    return finding


def _floors_of_training(
    uses: Mapping[str, TierUse], report: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Shares that blind policies solve at the first try, in the mixture that is trained on."""
    counts = {t: use.train for t, use in uses.items() if t in report["tiers"]}
    floors = {tier: report["tiers"][tier]["floors"] for tier in counts if counts[tier]}
    policies = list(next(iter(floors.values()), ()))
    total = sum(counts[tier] for tier in floors)
    return {
        policy: {"1": sum(counts[t] * floors[t][policy]["1"] for t in floors) / total}
        for policy in policies
        if all(policy in of_tier for of_tier in floors.values())
    }


def _asked(run: Run, arms: Iterable[str]) -> str:
    """The arms' decoding, as their samples say: the recipe may have changed since."""
    folders = {arm: run.samples(arm).parent for arm in arms}
    asked = {arm: way_of_asking(folder) for arm, folder in folders.items() if finished(folder)}
    ways = {a: f"T = {way.temperature:g}, top-p = {way.top_p:g}" for a, way in asked.items()}
    if len(set(ways.values())) == 1:
        return next(iter(ways.values()))
    return "; ".join(f"{label(arm)}: {way}" for arm, way in ways.items()) or "not known"


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
