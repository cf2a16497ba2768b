"""Samples an arm as a stage: answers to the test problems, or fresh ones to some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, product
from operator import itemgetter
from pathlib import Path
from typing import Any

from data.common.files import Stage, sha256
from data.recipe import Recipe
from data.rows import Row, longest_told, read_split
from data.run import BASE, Run
from data.sections import EvalSection
from eval.answers.asker import Asker, write_answers
from eval.answers.files import way_of_asking
from eval.answers.judge import score_rows
from pipeline.model.load import model_inputs
from rewards.verify import Status

#: Keys of the eval section that change no answer, unless others are tuned by them.
_JUDGING = ("lenient", "resamples")
#: The values to try, by key of the eval section.
Tune = Mapping[str, Sequence[Any]]


def sample_arm(recipe: Recipe, arm: str, force: bool) -> None:
    """Sample one arm, in its own way of asking, unless it is up to date.

    Raises:
        UserError: when another process does the same work, or the arm's server holds another model.
    """
    run, asking = recipe.run, recipe.for_arm(arm).eval
    test = read_split(run, "test")
    tune: Tune = {} if arm == BASE else run.arms[arm].tune
    asker = Asker(run, arm, recipe.dtype, recipe.seed, asking.server)
    settings = _asking_settings(asker, asking)
    if tune:  # the best way depends on how the answers are judged
        settings |= {"tune": tune, "main": recipe.data.main, "lenient": asking.lenient}
    path = run.samples(arm)
    splits = ["test", *(["val"] if tune else []), *(["train"] if asking.shots or tune else [])]
    stage = Stage(path.parent, f"eval {arm}", settings, _inputs(run, arm, splits))
    if not stage.begin_unless_done(force, [path]):
        return
    facts: dict[str, object] = {"served": asker.served} if asker.server else {}
    if tune:
        val = [row for row in read_split(run, "val") if row["tier"] == recipe.data.main]
        asking, facts["tuned"] = _tuned(
            asker, longest_told(val, recipe.data, recipe.arms.values()), asking, tune
        )
    limit = asking.max_tokens or asker.limit(longest_told(test, recipe.data, recipe.arms.values()))
    asking = replace(asking, max_tokens=limit)
    write_answers(asker, test, asking, path, "sample", stage.goes_on)
    facts |= {"samples": asking.samples, "asking": asdict(asking), "sha256": sha256(path)}
    stage.finish([path.name], **facts)


def ask_again(recipe: Recipe, arm: str, rows: Sequence[Row], samples: int, force: bool) -> Path:
    """Draw ``samples`` fresh answers of a sampled arm to each of ``rows``, in the way in which it
    was asked the first time, unless that is up to date; returns their file."""
    run, first = recipe.run, recipe.run.samples(arm)
    asking = way_again(run, arm, recipe.for_arm(arm).eval.server)
    asking = replace(asking, samples=samples)
    asker = Asker(run, arm, recipe.dtype, recipe.seed, asking.server)
    path = first.parent / "fresh" / first.name
    settings = {**_asking_settings(asker, asking), "problems": [row["id"] for row in rows]}
    inputs = _inputs(run, arm, ["test", *(["train"] if asking.shots else [])])
    stage = Stage(path.parent, f"eval {arm} again", settings, inputs)
    if stage.begin_unless_done(force, [path]):
        write_answers(asker, rows, asking, path, "fresh", stage.goes_on)
        stage.finish([path.name], samples=samples, sha256=sha256(path))
    return path


def way_again(run: Run, arm: str, server: str | None) -> EvalSection:
    """The way in which a sampled arm was asked, to ask it again: where that was a server, it may
    have moved to this address since."""
    asking = way_of_asking(run.samples(arm).parent)
    return replace(asking, server=server or asking.server) if asking.server else asking


def _asking_settings(asker: Asker, asking: EvalSection) -> dict[str, object]:
    """Everything that an arm's answers depend on but its weights; not the address of a server."""
    aside = (*_JUDGING, "server", *(["rows"] if asking.server else []))
    return {
        "arm": asker.arm,
        "model": asker.run.model(asker.arm),
        "dtype": asker.dtype,
        "seed": asker.seed,
        **{key: value for key, value in asdict(asking).items() if key not in aside},
        **({"engine": "server"} if asking.server else {}),
    }


def _inputs(run: Run, arm: str, splits: Sequence[str]) -> list[Path]:
    return [*map(run.split, splits), *model_inputs(run.model(arm))]


def _tuned(
    asker: Asker, rows: Sequence[Row], asking: EvalSection, tune: Tune
) -> tuple[EvalSection, list[dict[str, Any]]]:
    """The way of asking with the most optimal answers to ``rows``, of all combinations of the
    values in ``tune``; and each combination with the share that it reached."""
    problems = {row["id"]: row["problem"] for row in rows}
    tried = []
    for values in product(*tune.values()):
        changes = dict(zip(tune, values, strict=True))
        way = replace(asking, **changes)
        answers = chain.from_iterable(asker.answers(rows, way, "tune"))
        statuses = [row["status"] for row in score_rows(problems, answers, lenient=way.lenient)]
        tried.append({**changes, "optimal": statuses.count(Status.OPTIMAL) / len(statuses)})
        print(f"eval {asker.arm}: tried {tried[-1]}", flush=True)
    best = max(tried, key=itemgetter("optimal"))
    return replace(asking, **{key: best[key] for key in tune}), tried
