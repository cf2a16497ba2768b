"""Stage ``make eval``, last part: judge every sample, report pass@k with intervals.

Writes ``runs/<run>/eval``: ``<arm>/verdicts.jsonl``, ``report.json`` (every number, with n and
interval), ``report.md`` (the tables) and ``passk.png``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import (
    Stage,
    finished,
    sha256,
    stage_facts,
    write_json,
    write_text,
)
from data.policies import floor
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import VERDICTS, maker
from data.sections import RESAMPLES, Arm
from eval.answers.judge import judge_arm
from eval.show.panels import draw_passk
from eval.show.report_sheets import print_report, report_sheets
from eval.show.tables import label, markdown_of
from eval.stats.passk import ks_for
from eval.stats.summary import Floors, summarise

#: What the report consists of.
OUTPUTS = ("report.json", "report.md", "passk.png")


def write_report(
    folder: Path,
    tiers: Sequence[str],
    main: str,
    arms: Sequence[str],
    floors: Floors,
    verdict_rows: Mapping[str, Iterable[Mapping[str, Any]]],
    problems_by_id: Mapping[str, str],
    seed: int,
    comparisons: Sequence[tuple[str, str]],
    resamples: int = RESAMPLES,
    console: Console | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Summarise every arm's verdicts, print the tables and write the report into ``folder``.

    Args:
        tiers: in the order to be shown; the main one is shown first.
        arms: in the order to be shown; one without ``verdict_rows`` is left out.
        floors: at any k; those of ``ks_for(samples)`` are shown.
        verdict_rows: per arm, rows ``{id, status, violations, ratio}``; ``finish_reason`` and
            ``answer`` (any text or number that tells answers to one problem apart) where known.
        problems_by_id: the tier of each problem asked.
        seed: the recipe's; the resampling of each tier is hashed from it.
        comparisons: which arms are compared, tuned first; a pair is shown where both are there.
        notes: sentences on what is compared.

    Returns:
        The content of ``report.json``.

    Raises:
        UserError: when an arm's problems or samples are not those of the others.
    """
    report = summarise(
        tiers, main, arms, floors, verdict_rows, problems_by_id, seed, comparisons, resamples
    )
    if notes:
        report["notes"] = list(notes)
    write_json(folder / "report.json", report)
    write_text(
        folder / "report.md",
        "".join(f"{note}\n\n" for note in notes) + markdown_of(report_sheets(report)),
    )
    draw_passk(report, folder / "passk.png")
    console = console or plain_console()
    print_report(report, console)
    for note in notes:
        console.print(f"\n{note}", markup=False, soft_wrap=True)
    return report


def strange_starts(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """A sentence for each of these arms that did not start from the model that its start is now.

    What the two differ in is then more than what the arm's training did.
    """
    found, arms = [], recipe.all_arms
    for name in names:
        if name == "base" or arms[name].trainer == "none":
            continue
        if not finished(recipe.run.stage(name)):
            found.append(
                f"Note: the answers of {label(name)} are of a model that is there no more; "
                f"{maker(name)} trains it again."
            )
            continue
        facts, start = stage_facts(recipe.run.stage(name)), arms[name].start
        model = recipe.run.model(start)
        before, known = facts["settings"].get("model", model), facts["inputs"].get(model)
        if before != model:
            other = f"from {before}, and {label(start)} is {model} here"
        elif known and Path(model).exists() and sha256(Path(model)) != known:
            other = f"from another {label(start)} model than the one that is in {model} now"
        else:
            continue
        found.append(
            f"Note: {label(name)} was trained {other}, so they differ in more than this training; "
            f"{maker(name)} trains it again."
        )
    return found


def comparisons(recipe: Recipe) -> list[tuple[str, str]]:
    """Each arm with what it started from, with the base, where it is asked in another way with the
    base asked in that way, and with its twin by another backend; the last trained first."""
    arms = recipe.all_arms
    asked = {_way(arm): name for name, arm in arms.items() if _is_base(arm)}
    first: dict[str, str] = {}
    twins = {name: first.setdefault(_made(arms, name), name) for name in arms}
    pairs = []
    for name, arm in reversed(arms.items()):
        alike = asked.get(_way(arm)) if arm.eval or arm.tune else None
        references = (arm.start, "base", alike, twins[name])
        pairs += [(name, ref) for ref in references if ref not in (None, name)]
    return list(dict.fromkeys(pairs))


def _made(arms: Mapping[str, Arm], name: str) -> str:
    """How an arm is made, whatever backend trains it and whatever arms are called."""
    if name == "base":
        return name
    arm = arms[name]
    return str(replace(arm, backend=None, start=_made(arms, arm.start)))


def _way(arm: Arm) -> str:
    """How it is asked, in whatever order the recipe says so."""
    return str((sorted(arm.eval.items()), sorted(arm.tune.items())))


def _is_base(arm: Arm) -> bool:
    """Whether it is the base itself, asked in another way."""
    return (arm.trainer, arm.start) == ("none", "base")


def run(recipe: Recipe, force: bool) -> None:
    """Judge and report every arm that was sampled to the end, unless that is up to date."""
    asked = read_split(recipe.run, "test")
    sampled = [arm for arm in recipe.run.names if finished(recipe.run.samples(arm).parent)]
    if not sampled:
        raise UserError(
            f"{recipe.run.folder / 'eval'} has no finished samples; `make eval` draws them"
        )
    settings = {
        "seed": recipe.seed,
        "main": recipe.data.main,
        "arms": sampled,
        "resamples": recipe.eval.resamples,
        "lenient": {arm: recipe.for_arm(arm).eval.lenient for arm in sampled},
        "comparisons": comparisons(recipe),
    }
    notes = strange_starts(recipe, sampled)
    if notes:
        settings["notes"] = notes
    inputs = [recipe.run.split("test"), *(recipe.run.samples(arm) for arm in sampled)]
    stage = Stage(recipe.run.eval, "eval", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    problems = {row["id"]: row["problem"] for row in asked}
    tiers = {row["id"]: row["tier"] for row in asked}
    names = list(dict.fromkeys(tiers.values()))
    write_report(
        folder=recipe.run.eval,
        tiers=names,
        main=recipe.data.main,
        arms=sampled,
        floors={
            name: floor(
                [row["problem"] for row in asked if row["tier"] == name],
                ks_for(recipe.eval.samples),
            )
            for name in names
        },
        verdict_rows={
            arm: judge_arm(problems, recipe.run.samples(arm), recipe.for_arm(arm).eval.lenient)
            for arm in sampled
        },
        problems_by_id=tiers,
        seed=recipe.seed,
        comparisons=comparisons(recipe),
        resamples=recipe.eval.resamples,
        notes=notes,
    )
    stage.finish(
        [*OUTPUTS, *(f"{arm}/{VERDICTS}" for arm in sampled)],
        hashes={OUTPUTS[0]: sha256(stage.folder / OUTPUTS[0])},
    )
    print(f"eval: {recipe.run.folder / 'eval'} has {', '.join(OUTPUTS)}", flush=True)


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
