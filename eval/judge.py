"""Stage ``make eval``, second part: judges every sample, reports pass@k with intervals.

Writes ``runs/<run>/eval``: ``<arm>/verdicts.jsonl``, ``report.json`` (every number, with n and
interval), ``report.md`` (the tables) and ``passk.png``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.common.errors import require, run_main
from data.common.files import Stage, finished, sha256, stage_facts, write_bytes
from data.policies import floor
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import problems_by_tier, read_split
from data.run import BASE, VERDICTS, Run, goal, maker
from data.sections import Arm
from eval.answers.files import answered
from eval.answers.judge import judge_arm
from eval.answers.shortcuts import shortcut_shares
from eval.show.charts import passk_chart
from eval.show.report_sheets import headline, report_sheets
from eval.show.tables import label, publish
from eval.stats.passk import ks_for
from eval.stats.summary import summarise_arms

#: The files of the report.
OUTPUTS = ("report.json", "report.md", "passk.png")


def write_report(folder: Path, report: dict[str, Any], notes: Sequence[str] = ()) -> None:
    """Print the tables of a report (``eval.stats.summary``) and write its OUTPUTS into ``folder``.

    Args:
        notes: sentences on the arms that are compared.
    """
    if notes:
        report = {**report, "notes": list(notes)}
    sentences = [*filter(None, [headline(report)]), *notes]
    publish(folder / "report.json", report, list(report_sheets(report)), sentences)
    write_bytes(folder / "passk.png", passk_chart(report))


def strange_starts(run: Run, names: Sequence[str]) -> list[str]:
    """A sentence for each of these arms that was not trained from its start as that is now: the two
    differ in more than this training."""
    notes = []
    for name in names:
        if name == BASE or run.arms[name].trainer == "none":
            continue
        made, start = finished(run.stage(name)), run.arms[name].start
        facts = stage_facts(run.stage(name)) if made else {"settings": {}, "inputs": {}}
        model = run.model(start)
        before, known = facts["settings"].get("model", model), facts["inputs"].get(model)
        changed = known and Path(model).exists() and sha256(Path(model)) != known
        if not made or before != model or changed:
            notes.append(
                f"Note: {label(name)} was not trained from {label(start)} as it is now ({model}), "
                f"so they differ in more than this training; {maker(name)} trains it again."
            )
    return notes


def comparisons(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """Pairs of arms to compare, the last trained first.

    Each arm with its start, with the base, with the base asked in the same way where it has a way
    of its own, and with its twin by another backend.
    """
    asked = {
        _way(arm): name for name, arm in arms.items() if (arm.trainer, arm.start) == ("none", BASE)
    }
    first: dict[str, str] = {}
    twins = {name: first.setdefault(_made(arms, name), name) for name in arms}
    pairs = []
    for name, arm in reversed(list(arms.items())):
        alike = asked.get(_way(arm)) if arm.eval or arm.tune else None
        references = (arm.start, BASE, alike, twins[name])
        pairs += [(name, ref) for ref in references if ref not in (None, name)]
    return list(dict.fromkeys(pairs))


def _made(arms: Mapping[str, Arm], name: str) -> str:
    """The making of an arm, the same for twins: without backends and the names of arms."""
    if name == BASE:
        return name
    return str(replace(arms[name], backend=None, start=_made(arms, arms[name].start)))


def _way(arm: Arm) -> str:
    """The way in which an arm is asked, in whatever order the recipe has its keys."""
    return str((sorted(arm.eval.items()), sorted(arm.tune.items())))


def run(recipe: Recipe, force: bool) -> None:
    """Judge and report every arm that was sampled to the end, unless that is up to date."""
    run, sampled = recipe.run, recipe.run.sampled()
    rows = read_split(run, "test")
    require(sampled, f"{run.eval} has no finished samples; {goal('eval')} draws them")
    lenient = {arm: recipe.for_arm(arm).eval.lenient for arm in sampled}
    pairs, notes = comparisons(run.arms), strange_starts(run, sampled)
    settings = {
        "seed": recipe.seed,
        "main": recipe.data.main,
        "arms": sampled,
        "resamples": recipe.eval.resamples,
        "lenient": lenient,
        "comparisons": pairs,
        **({"notes": notes} if notes else {}),
    }
    inputs = [run.split("test"), *map(run.samples, sampled)]
    stage = Stage(run.eval, "eval", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    problems = {row["id"]: row["problem"] for row in rows}
    tiers = {row["id"]: row["tier"] for row in rows}
    by_tier, ks = problems_by_tier(rows), ks_for(recipe.eval.samples)
    report = summarise_arms(
        tiers=list(by_tier),
        main=recipe.data.main,
        floors={name: floor(of_tier, ks) for name, of_tier in by_tier.items()},
        verdict_rows={arm: judge_arm(problems, run.samples(arm), lenient[arm]) for arm in sampled},
        problems_by_id=tiers,
        seed=recipe.seed,
        comparisons=pairs,
        resamples=recipe.eval.resamples,
    )
    read = {arm: answered(run.samples(arm), problems) for arm in sampled}
    resamples = recipe.eval.resamples
    report["shortcuts"] = shortcut_shares(problems, tiers, read, recipe.seed, resamples)
    write_report(run.eval, report, notes)
    stage.finish(
        [*OUTPUTS, *(f"{arm}/{VERDICTS}" for arm in sampled)],
        hashes={OUTPUTS[0]: sha256(stage.folder / OUTPUTS[0])},
    )
    print(f"eval: {run.eval} has {', '.join(OUTPUTS)}", flush=True)


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
