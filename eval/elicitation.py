"""Stage ``make eval``, last part: did training elicit what the base could do, or teach something?

Asks again, with new seeds, what the base left unsolved and what the judged arms did, brings the
counts to a verdict by the rule of ``eval.rule``, and says what the arms' answers are like. Writes
``runs/<run>/eval``: ``<arm>/fresh/{samples,verdicts}.jsonl``, ``elicitation/elicitation.json`` and
``elicitation/elicitation.md``.

``elicitation.json``; an Estimate is ``{"value", "low", "high", "n"}``::

    {"sentence": str,                        # of the first judged arm
     "margins": {…}, "detectable": {tier: {…}},
     "judged": {arm: {
        "sentence": str,
        "overall": {"verdict", "reason", "notes", "estimates": {name: Estimate}, "budget", …},
        "tiers": {tier: {… as overall …,
            "pass_at_1": {"base" and the arm: Estimate},
            "two_by_two": {member: {…}}, "crossing": {member: {…}}, "gap": {member: Estimate},
            "expansion": {member: {…}}, "shrinkage": {member: {…}}}}}},
     "tiers": {tier: {
        "histogram": {arm: {bin: problems}}, "coverage": {arm: {threshold: Estimate}},
        "floor_adjusted": {arm: {k: Estimate}}, "reasoning": {arm: {…}},
        "entropy": {arm: {…}}, "kl": {arm: {…}}, "likelihood": {arm: {…}}}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import run_main
from data.files import Stage, finished, read_jsonl, write_json, write_text
from data.make import read_split, split_path
from data.problem import Problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.seeds import seed_of
from eval import likelihood
from eval.analyses import (
    Counts,
    accuracy_histogram,
    coverage,
    crossing,
    expansion,
    floor_adjusted,
    floor_at,
    sampling_efficiency_gap,
    solved_within,
    two_by_two,
    unsolved_by,
)
from eval.passk import bootstrap_indices, crossed_interval, ks_for, pass_at_k
from eval.power import detectable
from eval.reasoning import Claim, reasoning_report
from eval.report import VERDICTS, judge_arm
from eval.roles import Case, cases, guesses
from eval.sample import arms, ask_again, samples_path, way_of_asking
from eval.summary import tally
from eval.tables import Sheet, cell, label, markdown_of, plain_console, print_sheets
from eval.verdict import Arms, Judgement, judge
from pipeline.train import model_folder

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

    def places(self, tiers: Sequence[str]) -> NDArray[np.intp]:
        return np.flatnonzero([row["tier"] in tiers for row in self.rows])

    def problems(self, tier: str) -> dict[str, Problem]:
        return {row["id"]: row["problem"] for row in self.rows if row["tier"] == tier}

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


def verdict_on(case: Case, asked: Asked, recipe: Recipe) -> Judgement:
    """The verdict on one judged arm."""
    return judge(
        {
            tier: Arms(
                base=asked.counts(["base"], tier),
                grpo=asked.counts(case.members, tier),
                base_best=asked.counts([case.base_best], tier) if case.base_best else None,
                sft=asked.counts([case.start], tier) if case.start else None,
                format_only=asked.counts(case.format_only, tier) if case.format_only else None,
                guess=guesses(list(asked.problems(tier).values())),
            )
            for tier in case.tiers
        },
        recipe.verdict.margins,
        seed_of(recipe.seed, case.name),
        label(case.name),
    )


def compared(case: Case, tier: str, asked: Asked, recipe: Recipe) -> dict[str, Any]:
    """The judged arm beside the base on one tier, member by member: the analyses that explain."""
    base = asked.counts(["base"], tier)
    level = recipe.verdict.margins.level
    rng = np.random.default_rng(seed_of(recipe.seed, "elicitation", tier))
    indices = bootstrap_indices(base.problems, recipe.verdict.margins.resamples, rng)
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
            report.setdefault(key, {})[member] = value.to_json()
    return report


def _mean(values: NDArray[np.float64], indices: NDArray[np.int32], level: float) -> dict[str, Any]:
    """Of [problems] or [seeds, problems]."""
    cube = np.atleast_2d(values)[:, :, None]
    return crossed_interval(cube, indices, level, bounds=(0.0, 1.0))[0].to_json()


def spread(entries: Mapping[str, Sequence[str]], tier: str, asked: Asked, recipe: Recipe) -> Any:
    """How the problems of one tier fare in every entry of the recipe, the samples of its members
    taken together: accuracies, coverage, and pass@k with guessing removed."""
    guess = guesses(list(asked.problems(tier).values()))
    rng = np.random.default_rng(seed_of(recipe.seed, "spread", tier))
    level = recipe.verdict.margins.level
    indices = bootstrap_indices(len(guess), recipe.verdict.margins.resamples, rng)
    report: dict[str, Any] = {"histogram": {}, "coverage": {}, "floor_adjusted": {}}
    for name, members in entries.items():
        counts = asked.counts(members, tier)
        each = np.atleast_2d(counts.c)
        n, c = counts.n * len(each), each.sum(axis=0)
        ks = ks_for(int(counts.n.min()))
        curve = np.mean([pass_at_k(counts.n, one, ks) for one in each], axis=0)
        adjusted = floor_adjusted(curve, floor_at(guess, ks), indices, level)
        report["histogram"][name] = accuracy_histogram(n, c)
        report["coverage"][name] = {
            str(threshold): estimate.to_json()
            for threshold, estimate in coverage(n, c, indices, level=level).items()
        }
        report["floor_adjusted"][name] = {
            str(k): None if estimate is None else estimate.to_json()
            for k, estimate in zip(ks, adjusted, strict=True)
        }
    return report


def likelihoods(
    recipe: Recipe, found: Sequence[Case], names: Sequence[str], asked: Asked
) -> dict[str, dict[str, Any]]:
    """Entropy, KL and likelihood by tier, of the arms whose answers are samples of their model:
    asked at temperature 1 and top_p 1 from the bare prompt."""
    ways = {arm: way_of_asking(samples_path(recipe, arm).parent) for arm in names}
    bare = [a for a, way in ways.items() if (way.temperature, way.top_p, way.shots) == (1, 1, 0)]
    starts = dict.fromkeys(case.start for case in found if case.start)
    print(f"elicitation: scoring answers of {', '.join(bare)} under {', '.join(bare)}", flush=True)
    measured = likelihood.measure(
        {arm: model_folder(recipe, arm) for arm in bare},
        {arm: list(_first_answers(samples_path(recipe, arm))) for arm in bare},
        asked.rows,
        recipe.dtype,
        recipe.seed,
        references=("base", *starts),
        resamples=recipe.verdict.margins.resamples,
    )
    report: dict[str, dict[str, Any]] = {}
    for tier, by_arm in measured.items():
        report[tier] = {
            "entropy": {arm: m["entropy"] for arm, m in by_arm.items()},
            "kl": {
                arm: {f"to {name}": kl for name, kl in m["kl"].items()}
                for arm, m in by_arm.items()
                if "kl" in m
            },
            "likelihood": {
                arm: {
                    "tokens": m["tokens"],
                    "tokens as drawn": m["tokens_as_drawn"],
                    **{f"under {name}": values for name, values in m["under"].items()},
                }
                for arm, m in by_arm.items()
            },
        }
    return report


def _first_answers(path: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in read_jsonl(path) if row["sample"] < likelihood.PER_PROBLEM)


def _answered(path: Path, ids: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Verdict rows of ``ids`` with the text that was judged."""
    pairs = zip(read_jsonl(path.with_name(VERDICTS)), read_jsonl(path), strict=True)
    for (_, verdict), (_, sample) in pairs:
        if verdict["id"] in ids:
            yield {**verdict, "answer": sample["completion"]}


def count_verdicts(
    arm: str, path: Path, rows: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, c) of an arm's verdict file, [problems] each, in the order of ``rows``."""
    verdicts = (row for _, row in read_jsonl(path))
    found = tally(arm, verdicts, {row["id"]: row["tier"] for row in rows})
    return found.samples, found.optimal


def run(recipe: Recipe, force: bool) -> None:
    """Ask again, judge and explain, unless that is up to date."""
    sampled = [arm for arm in arms(recipe) if finished(samples_path(recipe, arm).parent)]
    found = cases(recipe, sampled)
    if not found:
        print("elicitation: no arm to judge; verdict.arms in the recipe names them", flush=True)
        return
    names = [arm for arm in sampled if any(arm in case.everyone for case in found)]
    rows = read_split(recipe, "test")
    verdicts = {arm: samples_path(recipe, arm).with_name(VERDICTS) for arm in names}
    first = {arm: count_verdicts(arm, path, rows) for arm, path in verdicts.items()}
    wanted = again(found, Asked(rows, first, {}))
    paths = {
        arm: ask_again(recipe, arm, [rows[i] for i in wanted[arm]], recipe.verdict.fresh, force)
        for arm in names
    }
    settings = {
        "seed": recipe.seed,
        "cases": [asdict(case) for case in found],
        "margins": asdict(recipe.verdict.margins),
        "lenient": {arm: recipe.for_arm(arm).eval.lenient for arm in names},
    }
    folder = recipe.folder / "eval" / FOLDER
    inputs = [split_path(recipe, "test"), *verdicts.values(), *paths.values()]
    stage = Stage(folder, "elicitation", settings, inputs)
    if stage.is_current(force):
        return
    problems = {row["id"]: row["problem"] for row in rows}
    for arm, path in paths.items():
        for _ in judge_arm(problems, path, recipe.for_arm(arm).eval.lenient):
            pass  # written as they come, counted below
    fresh = {
        arm: count_verdicts(arm, path.with_name(VERDICTS), rows) for arm, path in paths.items()
    }
    report = report_on(recipe, found, names, Asked(rows, first, fresh))
    write_json(folder / JSON, report)
    sentences = [line for one in report["judged"].values() for line in _sentences(one)]
    write_text(folder / PAGE, "\n\n".join(sentences) + "\n\n" + markdown_of(list(sheets(report))))
    console = plain_console()
    print_sheets([verdict_sheet(report)], console)
    for sentence in sentences:
        console.print(f"\n{sentence}", markup=False, soft_wrap=True)
    stage.finish([JSON, PAGE])
    print(f"elicitation: {folder} has {JSON} and {PAGE}", flush=True)


def report_on(
    recipe: Recipe, found: Sequence[Case], names: Sequence[str], asked: Asked
) -> dict[str, Any]:
    """The content of ``elicitation.json``."""
    judged = {}
    for case in found:
        judgement = verdict_on(case, asked, recipe)
        judged[case.name] = {
            "sentence": f"{label(case.name)}: {judgement.sentence}",
            "overall": judgement.overall.to_json(),
            "tiers": {
                tier: {**ruling.to_json(), **compared(case, tier, asked, recipe)}
                for tier, ruling in judgement.tiers.items()
            },
        }
    entries = {"base": ("base",)} | {name: tuple(recipe.members(name)) for name in recipe.arms}
    entries = {name: members for name, members in entries.items() if set(members) <= set(names)}
    tiers = list(dict.fromkeys(tier for case in found for tier in case.tiers))
    models = likelihoods(recipe, found, names, asked)
    return {
        "sentence": next(iter(judged.values()))["sentence"],
        "margins": asdict(recipe.verdict.margins),
        "detectable": {
            tier: detectable(
                len(asked.problems(tier)),
                recipe.eval.samples,
                recipe.verdict.fresh,
                recipe.verdict.margins,
                guesses(list(asked.problems(tier).values())),
            ).to_json()
            for tier in tiers
        },
        "judged": judged,
        "tiers": {
            tier: {
                **spread(entries, tier, asked, recipe),
                "reasoning": {
                    arm: reasoning_report(
                        problems := asked.problems(tier),
                        _answered(samples_path(recipe, arm), problems),
                        seed_of(recipe.seed, "reasoning", tier),
                        recipe.verdict.margins.resamples,
                    )
                    for arm in names
                },
                **models.get(tier, {}),
            }
            for tier in tiers
        },
    }


def _sentences(judged: Mapping[str, Any]) -> Iterator[str]:
    yield judged["sentence"]
    tiers = judged["tiers"]
    for name, ruling in {**(tiers if len(tiers) > 1 else {}), "": judged["overall"]}.items():
        if name:
            yield f"On {name}: {ruling['verdict']}, {ruling['reason']}."
        yield from (f"Note{' on ' + name if name else ''}: {note}." for note in ruling["notes"])


# --- tables ----------------------------------------------------------------------------------


def sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """The tables of ``elicitation.md``."""
    yield verdict_sheet(report)
    yield _fresh_sheet(report)
    for tier, found in report["tiers"].items():
        if found.get("entropy"):
            yield _likelihood_sheet(tier, found)
        yield _reasoning_sheet(tier, found["reasoning"])


def verdict_sheet(report: Mapping[str, Any]) -> Sheet:
    """A line for each judged arm and tier."""
    rows = []
    for arm, judged in report["judged"].items():
        for tier, ruling in judged["tiers"].items():
            estimates = ruling["estimates"]
            rows.append(
                [
                    f"{label(arm)} on {tier}",
                    ruling["verdict"],
                    cell(ruling["pass_at_1"]["base"]),
                    cell(ruling["pass_at_1"][arm]),
                    cell(estimates["gain over base"], "+"),
                    cell(estimates["large k"], "+"),
                    cell(estimates.get("beyond base"), "+"),
                ]
            )
    first = next(iter(report["judged"].values()))["overall"]
    n, reach = first["budget"]["n"], first["budget"]["reach"]
    return Sheet(
        "Elicited or learnt? in % and points",
        ["arm", "verdict", "base @1", "arm @1", "gain", f"gain @{n}", "beyond"],
        rows,
        [
            "Intervals are for other problems and, where an arm has several, other training seeds",
            f"Beyond: problems not reachable for the base within {reach} samples that the arm "
            "answers reliably, less those that a second look at the base finds.",
        ],
    )


def _fresh_sheet(report: Mapping[str, Any]) -> Sheet:
    """Expansion and shrinkage on confirmation samples."""
    rows = []
    for judged in report["judged"].values():
        for tier, ruling in judged["tiers"].items():
            for key, by in (("expansion", "the base"), ("shrinkage", "the arm")):
                for member, found in ruling[key].items():
                    rows.append(
                        [
                            f"{label(member)} on {tier}",
                            f"{found['unsolved']} of {found['problems']}, by {by}",
                            str(found["tries"]),
                            cell(found["tuned"]),
                            cell(found["reference"]),
                            cell(found["share"], "+"),
                        ]
                    )
    return Sheet(
        "Problems left unsolved, asked again with new seeds",
        ["arm", "unsolved", "fresh tries", "the other solves", "itself again", "net, of all"],
        rows,
        ["net: the difference as a share of all problems; two equal models have 0"],
    )


def _likelihood_sheet(tier: str, found: Mapping[str, Any]) -> Sheet:
    def number(value: Mapping[str, Any] | None) -> str:
        if value is None:
            return ""
        return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"

    rows = []
    for arm, entropy in found["entropy"].items():
        under = found["likelihood"][arm].get("under base", {})
        kl = found["kl"].get(arm, {})
        rows.append(
            [
                label(arm),
                number(entropy["per_token"]),
                number(entropy["per_answer"]),
                number(kl.get("to base", {}).get("k1", {}).get("per_answer")),
                number(under.get("log_likelihood", {}).get("per_token")),
                number(under.get("least_likely_token")),
                cell(under.get("answers_outside")),
            ]
        )
    return Sheet(
        f"{tier}: how likely the answers are",
        [
            "arm",
            "entropy a token",
            "an answer",
            "KL to base, an answer",
            "log p under base, a token",
            "least likely token",
            f"outside the base's top-p {likelihood.TOP_P}, %",
        ],
        rows,
        ["In nats. Outside: answers with a token that nucleus sampling from the base rules out"],
    )


def _reasoning_sheet(tier: str, found: Mapping[str, Any]) -> Sheet:
    rows = []
    for arm, one in found.items():
        claims = one["claims"]
        rows.append(
            [
                label(arm),
                cell(one["reasoning"]),
                *(cell(claims[kind]["true"]) for kind in (Claim.VALUE, Claim.OVERLAP, Claim.TOTAL)),
                cell(one["follows"]),
                cell(one["sound"]["optimal"]),
                cell(one["unsound"]["optimal"]),
                f"{one['reflection']['with']['answers']:,}",
                cell(one["reflection"]["with"]["optimal"]),
            ]
        )
    return Sheet(
        f"{tier}: is the reasoning true? in %",
        [
            "arm",
            "answers that reason",
            "values true",
            "overlaps true",
            "totals true",
            "answer follows",
            "optimal if sound",
            "if unsound",
            "answers that reflect",
            "optimal of them",
        ],
        rows,
        ["Sound: every claim is true. To reflect: words such as 'wait' or 'check again'"],
    )


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
