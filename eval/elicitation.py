"""Stage ``make eval``, last part: did training elicit what the base could do, or teach something?

Asks again, with new seeds, what the base left unsolved and what the judged arms did, draws the
conclusion from the counts (``eval.stats.evidence``), and says what the arms' answers are like.
Writes below ``runs/<run>/eval``: ``<arm>/fresh/{samples,verdicts}.jsonl``,
``elicitation/elicitation.json`` and ``elicitation/elicitation.md``.

``elicitation.json``; an Estimate is ``{"value", "low", "high", "n"}``::

    {"sentence": str,                        # of the first judged arm
     "notes": [str],                         # where there are any: see eval.judge.strange_starts
     "margins": {…}, "detectable": {tier: {…}},
     "judged": {arm: {
        "sentence": str,
        "overall": {"conclusion", "reason", "notes", "estimates": {name: Estimate}, "budget", …},
        "tiers": {tier: {… as overall …,
            "pass_at_1": {"base" and the arm: Estimate},
            "two_by_two": {member: {…}}, "crossing": {member: {…}},
            "expansion": {member: {…}}, "shrinkage": {member: {…}}}}}},
     "tiers": {tier: {
        "coverage": {arm: {threshold: Estimate}}, "floor_adjusted": {arm: {k: Estimate}},
        "reasoning": {arm: {…}},
        "likelihood": {arm: {…}},             # see eval.answers.likelihood.measure
        "likeliest": {k: Estimate}}}}         # of the base, where ``conclusion.likeliest`` is set
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data.common.errors import run_main
from data.common.files import MANIFEST, Stage, sha256
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import BASE, Run
from data.sections import Margins
from eval.answers import likelihood
from eval.answers.counted import Solved, count_solved, to_ask_again
from eval.answers.files import answered, read_answers, way_of_asking
from eval.answers.judge import check_judged, judge_arm
from eval.answers.reasoning import reasoning_report
from eval.answers.roles import JudgedArm, cases, detectable_on
from eval.answers.sampling import ask_again
from eval.judge import strange_starts
from eval.show.elicitation_sheets import conclusion_sheet, elicitation_sheets
from eval.show.tables import label, publish
from eval.stats.analyses import beside_base, spread
from eval.stats.estimate import bootstrap_weights, crossed_interval
from eval.stats.evidence import Arms, Conclusions, conclude
from eval.stats.passk import solved_within


def conclusions_on(
    case: JudgedArm, solved: Solved, margins: Margins, seed: int, judged: int = 1
) -> Conclusions:
    """The conclusions on one of ``judged`` arms."""

    def arms(tier: str) -> Arms:
        return Arms(
            base=solved.on(tier, [BASE]),
            grpo=solved.on(tier, case.members),
            base_best=solved.on(tier, [case.base_best]) if case.base_best else None,
            sft=solved.on(tier, [case.start]) if case.start else None,
            format_only=solved.on(tier, case.format_only) if case.format_only else None,
            guess=solved.guesses(tier),
        )

    of_tiers = {tier: arms(tier) for tier in case.tiers}
    return conclude(of_tiers, margins, seed_of(seed, case.name), label(case.name), judged)


def compared_with_base(
    case: JudgedArm, tier: str, solved: Solved, margins: Margins, seed: int
) -> dict[str, dict[str, object]]:
    """The judged arm beside the base on one tier, member by member: what explains a conclusion."""
    base, level = solved.on(tier, [BASE]), margins.level
    rng = np.random.default_rng(seed_of(seed, "elicitation", tier))
    weights = bootstrap_weights(base.problems, margins.resamples, rng)
    at_1: dict[str, object] = {}
    for name, counts in {BASE: base, case.name: solved.on(tier, case.members)}.items():
        values = np.atleast_2d(solved_within(counts.n, counts.c, 1))  # [seeds, problems]
        [estimate] = crossed_interval(values[:, :, None], weights, level, bounds=(0.0, 1.0))
        at_1[name] = asdict(estimate)
    by_member = {
        member: beside_base(base, solved.on(tier, [member]), weights, rng, level)
        for member in case.members
    }
    return {"pass_at_1": at_1, **_by_key(by_member)}


def _by_key(by_arm: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """``{arm: {key: …}}`` as ``{key: {arm: …}}``."""
    keys = next(iter(by_arm.values()))
    return {key: {arm: one[key] for arm, one in by_arm.items()} for key in keys}


def spreads(
    names: Sequence[str], tier: str, solved: Solved, margins: Margins, seed: int
) -> dict[str, dict[str, object]]:
    """Every arm's coverage and floor-adjusted pass@k on one tier."""
    guess = solved.guesses(tier)
    rng = np.random.default_rng(seed_of(seed, "spread", tier))
    weights = bootstrap_weights(len(guess), margins.resamples, rng)
    return _by_key(
        {arm: spread(solved.on(tier, [arm]), guess, weights, margins.level) for arm in names}
    )


def asked_barely(run: Run, names: Sequence[str]) -> list[str]:
    """The arms whose answers are samples of their model: at temperature 1 and top_p 1, from the
    bare prompt."""
    ways = {arm: way_of_asking(run.samples(arm).parent) for arm in names}
    return [a for a, way in ways.items() if (way.temperature, way.top_p, way.shots) == (1, 1, 0)]


def reasoning(
    run: Run, names: Sequence[str], tier: str, solved: Solved, margins: Margins, seed: int
) -> dict[str, object]:
    """The worth of every arm's reasoning on one tier."""
    problems, ids = solved.problems(tier), {row["id"] for row in solved.rows}
    return {
        arm: reasoning_report(
            problems,
            (row for row in answered(run.samples(arm), ids) if row["id"] in problems),
            seed_of(seed, "reasoning", tier),
            margins.resamples,
        )
        for arm in names
    }


def report_on(
    recipe: Recipe, judged: Sequence[JudgedArm], names: Sequence[str], solved: Solved
) -> dict[str, Any]:
    """The content of ``elicitation.json``.

    Args:
        names: arms that are judged or held against one that is.
    """
    run, seed, margins = recipe.run, recipe.seed, recipe.conclusion.margins
    by_arm = {}
    for case in judged:
        conclusions = conclusions_on(case, solved, margins, seed, len(judged))
        named = label(case.name) in conclusions.overall.reason
        by_arm[case.name] = {
            "sentence": f"{'' if named else label(case.name) + ': '}{conclusions.sentence}",
            "overall": asdict(conclusions.overall),
            "tiers": {
                tier: {**asdict(concluded), **compared_with_base(case, tier, solved, margins, seed)}
                for tier, concluded in conclusions.tiers.items()
            },
        }
    tiers = list(dict.fromkeys(tier for case in judged for tier in case.tiers))
    planned = recipe.eval.samples, recipe.conclusion
    if bare := asked_barely(run, names):
        print(f"elicitation: scoring answers of {', '.join(bare)}", flush=True)
    ids = {row["id"] for row in solved.rows}
    models = likelihood.measure(
        {arm: run.model(arm) for arm in bare},
        {arm: read_answers(run.samples(arm), ids) for arm in bare},
        solved.rows,
        (BASE, *dict.fromkeys(case.start for case in judged if case.start)),
        recipe.dtype, seed, margins.resamples,
    )  # fmt: skip
    best: Mapping[str, object] = {}
    if recipe.conclusion.likeliest:
        print("elicitation: scoring all answers of base", flush=True)
        drawn = answered(run.samples(BASE), ids)
        best = likelihood.likeliest(
            run.model(BASE), drawn, solved.rows, recipe.dtype, seed, margins.resamples
        )
    return {
        "sentence": by_arm[judged[0].name]["sentence"],
        "margins": asdict(margins),
        "detectable": {
            tier: detectable_on(tier, solved.guesses(tier), judged, *planned).to_json()
            for tier in tiers
        },
        "judged": by_arm,
        "tiers": {
            tier: {
                **spreads(names, tier, solved, margins, seed),
                "reasoning": reasoning(run, names, tier, solved, margins, seed),
                "likelihood": models.get(tier, {}),
                **({"likeliest": best[tier]} if best else {}),
            }
            for tier in tiers
        },
    }


def run(recipe: Recipe, force: bool) -> None:
    """Ask again, conclude and explain, unless that is done."""
    run, margins = recipe.run, recipe.conclusion.margins
    path, sampled = run.elicitation, run.sampled()
    judged = cases(recipe, sampled)
    if not judged:
        (path.parent / MANIFEST).unlink(missing_ok=True)  # an older conclusion is void too
        unnamed = "" if recipe.judged() else "; conclusion.arms in the recipe names them"
        print(f"elicitation: no arm to judge{unnamed}", flush=True)
        return
    names = [arm for arm in sampled if any(arm in case.everyone for case in judged)]
    check_judged(run, names)
    rows = read_split(run, "test")
    tiers = {row["id"]: row["tier"] for row in rows}
    first = {arm: count_solved(answered(run.samples(arm), tiers), tiers) for arm in names}
    wanted = to_ask_again(judged, Solved(rows, first))
    fresh = recipe.conclusion.fresh
    again = {
        arm: ask_again(recipe, arm, [rows[i] for i in wanted[arm]], fresh, force) for arm in names
    }
    lenient = {arm: recipe.for_arm(arm).eval.lenient for arm in names}
    notes = strange_starts(run, names)
    settings = {
        "seed": recipe.seed,
        "cases": [asdict(case) for case in judged],
        "margins": asdict(margins),
        "lenient": lenient,
        **({"likeliest": True} if recipe.conclusion.likeliest else {}),
        **({"notes": notes} if notes else {}),
    }
    inputs = [run.split("test"), *map(run.verdicts, names), *again.values()]
    stage = Stage(path.parent, "elicitation", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    problems = {row["id"]: row["problem"] for row in rows}
    counts = {
        arm: first[arm].with_fresh(count_solved(judge_arm(problems, samples, lenient[arm]), tiers))
        for arm, samples in again.items()
    }
    report = report_on(recipe, judged, names, Solved(rows, counts))
    sentences = [text for one in report["judged"].values() for text in _sentences(one)] + notes
    report |= {"notes": notes} if notes else {}
    sheets, printed = list(elicitation_sheets(report)), [conclusion_sheet(report)]
    publish(path, report, sheets, sentences, printed)
    words = path.with_suffix(".md")
    stage.finish([path.name, words.name], hashes={path.name: sha256(path)})
    print(f"elicitation: {path.parent} has {path.name} and {words.name}", flush=True)


def _sentences(judged: Mapping[str, Any]) -> Iterator[str]:
    yield judged["sentence"]
    tiers = judged["tiers"]
    for name, concluded in {**(tiers if len(tiers) > 1 else {}), "": judged["overall"]}.items():
        if name:
            yield f"On {name}: {concluded['conclusion']}, {concluded['reason']}."
        yield from (f"Note{' on ' + name if name else ''}: {note}." for note in concluded["notes"])


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
