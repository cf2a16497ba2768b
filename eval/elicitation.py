"""Stage ``make eval``, last part: did training elicit what the base could do, or teach something?

Asks again, with new seeds, what the base left unsolved and what the judged arms did, brings the
counts to a conclusion by ``eval.stats.evidence``, and says what the arms' answers are like. Writes
``runs/<run>/eval``: ``<arm>/fresh/{samples,verdicts}.jsonl``, ``elicitation/elicitation.json`` and
``elicitation/elicitation.md``.

``elicitation.json``; an Estimate is ``{"value", "low", "high", "n"}``::

    {"sentence": str,                        # of the first judged arm
     "notes": [str],                         # where there are any: see eval.judge.strange_starts
     "margins": {…}, "detectable": {tier: {…}},
     "judged": {arm: {
        "sentence": str,
        "overall": {"conclusion", "reason", "notes", "estimates": {name: Estimate}, "budget", …},
        "tiers": {tier: {… as overall …,
            "pass_at_1": {"base" and the arm: Estimate},
            "two_by_two": {member: {…}}, "crossing": {member: {…}}, "gap": {member: Estimate},
            "expansion": {member: {…}}, "shrinkage": {member: {…}}}}}},
     "tiers": {tier: {
        "histogram": {arm: {bin: problems}}, "coverage": {arm: {threshold: Estimate}},
        "floor_adjusted": {arm: {k: Estimate}}, "reasoning": {arm: {…}},
        "likelihood": {arm: {…}}}}}           # see eval.answers.likelihood.measure
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.common.console import plain_console
from data.common.errors import run_main
from data.common.files import (
    MANIFEST,
    Stage,
    finished,
    sha256,
    write_json,
    write_text,
)
from data.common.seeds import seed_of
from data.problem import Problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import VERDICTS
from eval.answers import likelihood
from eval.answers.files import SampleRow, answered, read_answers, read_verdicts, way_of_asking
from eval.answers.judge import check_judged, judge_arm
from eval.answers.reasoning import reasoning_report
from eval.answers.roles import Case, cases, guesses, planned
from eval.answers.sampling import ask_again
from eval.judge import strange_starts
from eval.show.elicitation_sheets import conclusion_sheet, elicitation_sheets
from eval.show.tables import label, markdown_of, print_sheets
from eval.stats.analyses import (
    accuracy_histogram,
    coverage,
    crossing,
    expansion,
    floor_adjusted,
    sampling_efficiency_gap,
    two_by_two,
)
from eval.stats.counts import Counts, unsolved_by
from eval.stats.estimate import bootstrap_indices, crossed_interval
from eval.stats.evidence import Arms, Conclusions, conclude
from eval.stats.passk import floor_at, ks_for, pass_at_k, solved_within
from eval.stats.summary import tally

FOLDER, JSON, PAGE = "elicitation", "elicitation.json", "elicitation.md"


@dataclass(frozen=True)
class Asked:
    """The test problems in their order, and how often each arm solved each of them.

    Attributes:
        first, fresh: by arm (n, c), [problems] each; ``fresh`` is 0 where it was not asked again.
    """

    rows: Sequence[Mapping[str, Any]]
    first: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    fresh: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]

    @property
    def ids(self) -> set[str]:
        return {row["id"] for row in self.rows}

    def places(self, tiers: Sequence[str]) -> NDArray[np.intp]:
        return np.flatnonzero([row["tier"] in tiers for row in self.rows])

    def problems(self, tier: str) -> dict[str, Problem]:
        return {row["id"]: row["problem"] for row in self.rows if row["tier"] == tier}

    def guesses(self, tier: str) -> list[float]:
        """The chance of a blind guess at each of its problems."""
        return guesses(list(self.problems(tier).values()))

    def counts(self, members: Sequence[str], tier: str) -> Counts:
        """Of arms that differ in nothing but the training seed; of one arm without that axis."""
        here = self.places([tier])

        def column(samples: Mapping[str, Any], which: int) -> NDArray[np.int64]:
            found = np.stack([samples[member][which][here] for member in members])
            return found if len(members) > 1 else found[0]

        fresh = (column(self.fresh, 0), column(self.fresh, 1)) if self.fresh else (None, None)
        return Counts(self.first[members[0]][0][here], column(self.first, 1), *fresh)


def again(found: Sequence[Case], asked: Asked) -> dict[str, list[int]]:
    """By arm, the places of the problems that it is to be asked again.

    What the bases left unsolved everyone is asked, so that a skill can be told from luck; what
    either the base or a judged arm left unsolved both are asked, for expansion and shrinkage.
    """
    wanted: dict[str, set[int]] = {}
    for case in found:
        here = asked.places(case.tiers)
        by_bases = _unsolved(asked, case.bases, here)
        for arm in case.everyone:
            wanted.setdefault(arm, set()).update(by_bases)
        for member in case.members:
            both = _unsolved(asked, ["base"], here) + _unsolved(asked, [member], here)
            wanted[member].update(both)
            wanted["base"].update(both)
    return {arm: sorted(places) for arm, places in wanted.items()}


def _unsolved(asked: Asked, of: Sequence[str], here: NDArray[np.intp]) -> list[int]:
    missed = unsolved_by([Counts(*asked.first[arm]) for arm in of])
    return here[missed[here]].tolist()


def conclusion_on(case: Case, asked: Asked, recipe: Recipe) -> Conclusions:
    """The conclusion on one judged arm."""
    return conclude(
        {
            tier: Arms(
                base=asked.counts(["base"], tier),
                grpo=asked.counts(case.members, tier),
                base_best=asked.counts([case.base_best], tier) if case.base_best else None,
                sft=asked.counts([case.start], tier) if case.start else None,
                format_only=asked.counts(case.format_only, tier) if case.format_only else None,
                guess=asked.guesses(tier),
            )
            for tier in case.tiers
        },
        recipe.conclusion.margins,
        seed_of(recipe.seed, case.name),
        label(case.name),
    )


def compared(case: Case, tier: str, asked: Asked, recipe: Recipe) -> dict[str, Any]:
    """The judged arm beside the base on one tier, member by member: the analyses that explain."""
    base = asked.counts(["base"], tier)
    level = recipe.conclusion.margins.level
    rng = np.random.default_rng(seed_of(recipe.seed, "elicitation", tier))
    indices = bootstrap_indices(base.problems, recipe.conclusion.margins.resamples, rng)
    n = int(base.n.min())
    ks = np.arange(1, n + 1)
    report: dict[str, Any] = {
        "pass_at_1": {
            name: _mean(solved_within(counts.n, counts.c, 1), indices, level)
            for name, counts in (("base", base), (case.name, asked.counts(case.members, tier)))
        }
    }
    for member in case.members:
        tuned = asked.counts([member], tier)
        curves = pass_at_k(base.n, base.c, ks), pass_at_k(tuned.n, tuned.c, ks)
        found = {
            "two_by_two": two_by_two(base.c > 0, tuned.c > 0),
            "crossing": crossing(*curves, indices, level),
            "gap": sampling_efficiency_gap(base, tuned, n, indices, level),
            "expansion": expansion(base, tuned, indices, rng, level=level),
            "shrinkage": expansion(tuned, base, indices, rng, level=level),
        }
        for key, value in found.items():
            report.setdefault(key, {})[member] = asdict(value)
    return report


def _mean(values: NDArray[np.float64], indices: NDArray[np.int32], level: float) -> dict[str, Any]:
    """Of [problems] or [seeds, problems]."""
    cube = np.atleast_2d(values)[:, :, None]
    return crossed_interval(cube, indices, level, bounds=(0.0, 1.0))[0].to_json()


def spread(names: Sequence[str], tier: str, asked: Asked, recipe: Recipe) -> dict[str, Any]:
    """How the problems of one tier fare in every arm: accuracies, coverage, and pass@k with
    guessing removed."""
    guess = asked.guesses(tier)
    rng = np.random.default_rng(seed_of(recipe.seed, "spread", tier))
    level = recipe.conclusion.margins.level
    indices = bootstrap_indices(len(guess), recipe.conclusion.margins.resamples, rng)
    report: dict[str, Any] = {"histogram": {}, "coverage": {}, "floor_adjusted": {}}
    for arm in names:
        counts = asked.counts([arm], tier)
        n, c = counts.n, counts.c
        ks = ks_for(int(n.min()))
        adjusted = floor_adjusted(pass_at_k(n, c, ks), floor_at(guess, ks), indices, level)
        report["histogram"][arm] = accuracy_histogram(n, c)
        report["coverage"][arm] = {
            str(threshold): estimate.to_json()
            for threshold, estimate in coverage(n, c, indices, level=level).items()
        }
        report["floor_adjusted"][arm] = {
            str(k): None if estimate is None else estimate.to_json()
            for k, estimate in zip(ks, adjusted, strict=True)
        }
    return report


def likelihoods(
    recipe: Recipe, found: Sequence[Case], names: Sequence[str], asked: Asked
) -> dict[str, dict[str, Any]]:
    """Entropy, KL and likelihood by tier, of the arms whose answers are samples of their model:
    asked at temperature 1 and top_p 1 from the bare prompt."""
    ways = {arm: way_of_asking(recipe.run.samples(arm).parent) for arm in names}
    bare = [a for a, way in ways.items() if (way.temperature, way.top_p, way.shots) == (1, 1, 0)]
    starts = dict.fromkeys(case.start for case in found if case.start)
    print(f"elicitation: scoring answers of {', '.join(bare)}", flush=True)
    return likelihood.measure(
        {arm: recipe.run.model(arm) for arm in bare},
        {arm: list(_first_answers(recipe.run.samples(arm), asked)) for arm in bare},
        asked.rows,
        recipe.dtype,
        recipe.seed,
        references=("base", *starts),
        resamples=recipe.conclusion.margins.resamples,
    )


def _first_answers(path: Path, asked: Asked) -> Iterator[SampleRow]:
    rows = read_answers(path, asked.ids)
    return (row for row in rows if row["sample"] < likelihood.PER_PROBLEM)


def _reasoned(path: Path, asked: Asked, tier: str) -> Iterator[dict[str, Any]]:
    """Verdict rows of one tier with the text that was judged."""
    problems = asked.problems(tier)
    for row in answered(path, asked.ids):
        if row["id"] in problems:
            yield {**row, "answer": row["completion"]}


def count_verdicts(
    arm: str, path: Path, rows: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, c) of an arm's verdict file, [problems] each, in the order of ``rows``."""
    return _count(arm, read_verdicts(path, {row["id"] for row in rows}), rows)


def _count(
    arm: str, verdicts: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = tally(verdicts, {row["id"]: row["tier"] for row in rows})
    return found.samples, found.optimal


def run(recipe: Recipe, force: bool) -> None:
    """Ask again, judge and explain, unless that is up to date."""
    sampled = [arm for arm in recipe.run.names if finished(recipe.run.samples(arm).parent)]
    found = cases(recipe, sampled)
    folder = recipe.run.eval / FOLDER
    if not found:
        (folder / MANIFEST).unlink(missing_ok=True)  # nor is an older conclusion one on this run
        print("elicitation: no arm to judge; conclusion.arms in the recipe names them", flush=True)
        return
    names = [arm for arm in sampled if any(arm in case.everyone for case in found)]
    check_judged(recipe.run, names)
    rows = read_split(recipe.run, "test")
    ids = {row["id"] for row in rows}
    samples = {arm: recipe.run.samples(arm) for arm in names}
    first = {arm: _count(arm, answered(path, ids), rows) for arm, path in samples.items()}
    wanted = again(found, Asked(rows, first, {}))
    paths = {
        arm: ask_again(recipe, arm, [rows[i] for i in wanted[arm]], recipe.conclusion.fresh, force)
        for arm in names
    }
    settings = {
        "seed": recipe.seed,
        "cases": [asdict(case) for case in found],
        "margins": asdict(recipe.conclusion.margins),
        "lenient": {arm: recipe.for_arm(arm).eval.lenient for arm in names},
    }
    notes = strange_starts(recipe.run, names)
    if notes:
        settings["notes"] = notes
    verdicts = [path.with_name(VERDICTS) for path in samples.values()]
    inputs = [recipe.run.split("test"), *verdicts, *paths.values()]
    stage = Stage(folder, "elicitation", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    problems = {row["id"]: row["problem"] for row in rows}
    for arm, path in paths.items():
        for _ in judge_arm(problems, path, recipe.for_arm(arm).eval.lenient):
            pass  # written as they come, counted below
    fresh = {
        arm: count_verdicts(arm, path.with_name(VERDICTS), rows) for arm, path in paths.items()
    }
    report = report_on(recipe, found, names, Asked(rows, first, fresh))
    if notes:
        report["notes"] = notes
    write_json(folder / JSON, report)
    sentences = [line for one in report["judged"].values() for line in _sentences(one)] + notes
    write_text(
        folder / PAGE, "\n\n".join(sentences) + "\n\n" + markdown_of(elicitation_sheets(report))
    )
    console = plain_console()
    print_sheets([conclusion_sheet(report)], console)
    for sentence in sentences:
        console.print(f"\n{sentence}", markup=False, soft_wrap=True)
    stage.finish([JSON, PAGE], hashes={JSON: sha256(folder / JSON)})
    print(f"elicitation: {folder} has {JSON} and {PAGE}", flush=True)


def report_on(
    recipe: Recipe, found: Sequence[Case], names: Sequence[str], asked: Asked
) -> dict[str, Any]:
    """The content of ``elicitation.json``."""
    judged = {}
    for case in found:
        judgement = conclusion_on(case, asked, recipe)
        named = label(case.name) in judgement.overall.reason
        judged[case.name] = {
            "sentence": f"{'' if named else label(case.name) + ': '}{judgement.sentence}",
            "overall": asdict(judgement.overall),
            "tiers": {
                tier: {**asdict(ruling), **compared(case, tier, asked, recipe)}
                for tier, ruling in judgement.tiers.items()
            },
        }
    tiers = list(dict.fromkeys(tier for case in found for tier in case.tiers))
    models = likelihoods(recipe, found, names, asked)
    return {
        "sentence": next(iter(judged.values()))["sentence"],
        "margins": asdict(recipe.conclusion.margins),
        "detectable": {
            tier: planned(recipe, list(asked.problems(tier).values())).to_json() for tier in tiers
        },
        "judged": judged,
        "tiers": {
            tier: {
                **spread(names, tier, asked, recipe),
                "reasoning": {
                    arm: reasoning_report(
                        asked.problems(tier),
                        _reasoned(recipe.run.samples(arm), asked, tier),
                        seed_of(recipe.seed, "reasoning", tier),
                        recipe.conclusion.margins.resamples,
                    )
                    for arm in names
                },
                "likelihood": models.get(tier, {}),
            }
            for tier in tiers
        },
    }


def _sentences(judged: Mapping[str, Any]) -> Iterator[str]:
    yield judged["sentence"]
    tiers = judged["tiers"]
    for name, ruling in {**(tiers if len(tiers) > 1 else {}), "": judged["overall"]}.items():
        if name:
            yield f"On {name}: {ruling['conclusion']}, {ruling['reason']}."
        yield from (f"Note{' on ' + name if name else ''}: {note}." for note in ruling["notes"])


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
