"""Stage ``make eval``: does an arm's answer hang on its reasoning, and how far does that carry?

Changes the reasoning of answers drawn already (``eval.answers.interventions``) and draws what
follows again, on the main tier; and counts answers by the number of events of a day, on all tiers.
Writes ``runs/<run>/eval/thinking/thinking.json`` and ``thinking.md``::

    {arm: {"by_events": {events: {"problems", "optimal", "traced", "sound": Estimate}},
           "passes": {k: {"pass", "cot_pass", "difference": Estimate}},
           "interventions": {name: {"optimal": Estimate, "cost": Estimate, "follows": Estimate}}}}

``cost`` is how much fewer answers are optimal than with the reasoning kept, problem by problem;
``follows``, of altered reasoning, how many answers have just the schedule that the altered number
leads to.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data.common.errors import run_main
from data.common.files import Stage, sha256
from data.common.seeds import seed_of
from data.problem import Problem
from data.prompts import THOUGHT
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, read_split
from data.run import Run
from eval.answers.asker import Asker
from eval.answers.files import AnsweredRow, answered, way_of_asking
from eval.answers.interventions import Intervention, Opening, openings
from eval.answers.judge import check_judged
from eval.show.tables import publish
from eval.show.thinking_sheets import thinking_sheets
from eval.stats.estimate import Estimate, Values, bootstrap_weights, by_name, mean_interval
from eval.stats.passk import ks_for, pass_at_k
from pipeline.model.load import model_inputs
from rewards.claims import check_trace
from rewards.parse import ParseFailure
from rewards.verify import Status, read, verify_schedule

Shares = dict[str, Any]
#: Whether each answer to a problem is optimal, makes claims, makes true claims only.
Answers = Sequence[tuple[bool, bool, bool]]


def look(
    problems: Mapping[str, Problem], rows: Iterable[AnsweredRow]
) -> tuple[Mapping[str, Answers], dict[str, str]]:
    """By problem, how its answers are, and the first of them whose reasoning makes claims and
    ends."""
    answers: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
    reasoned: dict[str, str] = {}
    for row in rows:
        name, text = row["id"], row["completion"]
        trace = check_trace(problems[name], text)
        answers[name].append((row["status"] == Status.OPTIMAL, bool(trace.claims), trace.sound))
        if trace.claims and THOUGHT.strip() in text:
            reasoned.setdefault(name, text)
    return answers, reasoned


def by_events(
    problems: Mapping[str, Problem], answers: Mapping[str, Answers], seed: int, resamples: int
) -> dict[int, Shares]:
    """Shares of answers by how many events the day has; every problem weighs the same."""
    sizes: dict[int, list[Sequence[float]]] = defaultdict(list)
    for name, of_problem in answers.items():
        sizes[len(problems[name].events)].append(np.mean(of_problem, axis=0).tolist())
    return {
        size: {
            "problems": len(means),
            **by_name(("optimal", "traced", "sound"), _means(np.array(means), seed, resamples)),
        }
        for size, means in sorted(sizes.items())
    }


def cot_passes(answers: Sequence[Answers], seed: int, resamples: int) -> dict[int, Shares]:
    """By k, pass@k and CoT-pass@k (arXiv 2506.14245), where an answer counts if it is optimal and
    every claim that it makes is true, one or more; and the latter minus the former."""
    samples = len(answers[0])
    ks = ks_for(samples)
    counts = np.array([[(o, o and sound) for o, _, sound in one] for one in answers]).sum(axis=1)
    right, by_truth = (pass_at_k(samples, of_all, ks) for of_all in counts.T)
    shares = _means(np.hstack([right, by_truth]), seed, resamples)
    apart = _means(by_truth - right, seed, resamples, low=-1.0)
    columns = zip(ks, shares[: len(ks)], shares[len(ks) :], apart, strict=True)
    return {k: by_name(("pass", "cot_pass", "difference"), of_k) for k, *of_k in columns}


def _means(values: Values, seed: int, resamples: int, low: float = 0.0) -> list[Estimate]:
    """Means over the rows of ``values`` [problems, quantities]."""
    weights = bootstrap_weights(len(values), resamples, seed)
    return mean_interval(values, weights, bounds=(low, 1.0))


def intervene(
    asker: Asker, rows: Sequence[Row], opened: Sequence[Opening], lenient: bool, resamples: int
) -> Shares:
    """Draw what follows each opening and judge the whole."""
    by_id = {row["id"]: row for row in rows}
    asking = way_of_asking(asker.run.samples(asker.arm).parent)
    outcomes: dict[Intervention, dict[str, tuple[bool, bool]]] = defaultdict(dict)
    for one, text in zip(opened, asker.continued(by_id, opened, asking), strict=True):
        problem = by_id[one.problem]["problem"]
        schedule = read(problem, text, "stop", lenient)  # "" where it was cut off
        right = (
            not isinstance(schedule, ParseFailure)
            and verify_schedule(problem, schedule).status == Status.OPTIMAL
        )
        outcomes[one.intervention][one.problem] = right, schedule == one.follows
    kept = outcomes[Intervention.KEPT]
    seed = seed_of(asker.seed, "interventions", asker.arm)
    result: Shares = {}
    for intervention, of_problem in outcomes.items():
        columns = np.array(
            [
                (right, kept[name][0] - right, follows)
                for name, (right, follows) in of_problem.items()
            ],
            dtype=float,
        )
        optimal, follows = _means(columns[:, [0, 2]], seed, resamples)
        [cost] = _means(columns[:, [1]], seed, resamples, low=-1.0)
        told = {"optimal": optimal}
        if intervention != Intervention.KEPT:
            told["cost"] = cost
        if intervention == Intervention.ALTERED:
            told["follows"] = follows
        result[intervention] = by_name(told, told.values())
    return result


def evidence(recipe: Recipe, run: Run, arm: str, rows: Sequence[Row]) -> Shares:
    """The content of ``thinking.json`` on one arm."""
    problems = {row["id"]: row["problem"] for row in rows}
    main = [row for row in rows if row["tier"] == recipe.data.main]
    seed, resamples = seed_of(recipe.seed, "thinking", arm), recipe.eval.resamples
    of_main = {row["id"]: row["problem"] for row in main}
    answers, reasoned = look(problems, answered(run.samples(arm), problems))
    shares: Shares = {
        "by_events": by_events(problems, answers, seed, resamples),
        "passes": cot_passes([answers[name] for name in of_main], seed, resamples),
    }
    texts = {name: text for name, text in reasoned.items() if name in of_main}
    asker = Asker(run, arm, recipe.dtype, recipe.seed)
    if texts and not way_of_asking(run.samples(arm).parent).server:
        print(f"thinking: {arm}: {len(texts)} answers go on from changed reasoning", flush=True)
        opened = openings(of_main, texts, random.Random(seed))
        lenient = recipe.for_arm(arm).eval.lenient  # it may have changed since the arm was asked
        shares["interventions"] = intervene(asker, main, opened, lenient, resamples)
    return shares


def run(recipe: Recipe, force: bool) -> None:
    """Look at how every sampled arm thinks, unless that is done."""
    run, sampled = recipe.run, recipe.run.sampled()
    check_judged(run, sampled)
    rows = read_split(run, "test")
    main, resamples = recipe.data.main, recipe.eval.resamples
    lenient = [arm for arm in sampled if recipe.for_arm(arm).eval.lenient]
    settings = {
        "seed": recipe.seed,
        "dtype": recipe.dtype,
        "main": main,
        "resamples": resamples,
        "arms": sampled,
        **({"lenient": lenient} if lenient else {}),
    }
    models = [path for arm in sampled for path in model_inputs(run.model(arm))]
    path = run.thinking
    inputs = [run.split("test"), *map(run.verdicts, sampled), *models]
    stage = Stage(path.parent, "thinking", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    report = {arm: evidence(recipe, run, arm, rows) for arm in sampled}
    publish(path, report, thinking_sheets(report, main))
    stage.finish([path.name, path.with_suffix(".md").name], hashes={path.name: sha256(path)})


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
