"""Draws the answers of an arm as a stage: to the test problems, or fresh ones to some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from data.common.files import Stage, finished, sha256
from data.common.locks import in_turn
from data.recipe import Recipe
from data.rows import read_split
from data.sections import EvalSection
from eval.answers.asker import Asker, write_answers
from eval.answers.files import way_of_asking
from eval.answers.judge import score_rows
from eval.answers.parts import Shard, begin, claimed, gathered, put_together
from pipeline.train.trainer import model_inputs
from rewards.verify import Status

#: Keys of the eval section that change nothing about the answers, unless these are tuned.
_JUDGING = ("lenient", "resamples")


def sample_arm(recipe: Recipe, arm: str, force: bool, shard: Shard | None = None) -> None:
    """Sample one arm, in its own way of asking, unless it is up to date; of its problems only those
    of ``shard``, and who finishes last puts all together.

    Raises:
        UserError: when another process does the same work, or parts of another number lie there;
            NotServedError when the arm's server holds another model.
    """
    model = recipe.run.model(arm)
    test = read_split(recipe.run, "test")
    asking = recipe.for_arm(arm).eval
    tune = {} if arm == "base" else recipe.all_arms[arm].tune
    if tune and shard:
        if shard.number > 1:
            print(f"eval {arm}: tuned and sampled by one process, --shard 1/{shard.of}", flush=True)
            return
        shard = None
    # What is best depends on how the answers are judged.
    tuning = {"tune": tune, "main": recipe.data.main, "lenient": asking.lenient}
    settings = {**_settings(recipe, arm, asking), **(tuning if tune else {})}
    path = recipe.run.samples(arm)
    splits = ["test", *(["val"] if tune else []), *(["train"] if asking.shots or tune else [])]
    inputs = [recipe.run.split(split) for split in splits]
    stage = Stage(path.parent, f"eval {arm}", settings, [*inputs, *model_inputs(model)])
    with ExitStack() as held:
        with in_turn(path.parent):
            alone = held.enter_context(claimed(path, shard))
            if not begin(stage, path, shard, force, alone):
                return
        asker = Asker(recipe, arm, asking.server)
        asking, facts = _resolved(recipe, asker, asking, tune)
        shares = asker.shares(test, asking, shard.of) if shard else [test]
        mine, own = (shares[shard.number - 1], shard.path(path)) if shard else (test, path)
        elsewhere = gathered(path, asking.samples, but=own) if stage.goes_on else {}
        write_answers(asker, mine, asking, own, "sample", stage.goes_on, elsewhere.keys())
        with in_turn(path.parent):
            if finished(path.parent):  # another process put all together
                return
            lacking = put_together(path, test, asking.samples)
            if lacking:
                _say_waiting(arm, shares, lacking)
                return
            stage.finish([path.name], samples=asking.samples, sha256=sha256(path), **facts)


def _resolved(
    recipe: Recipe, asker: Asker, asking: EvalSection, tune: Mapping[str, Sequence[Any]]
) -> tuple[EvalSection, dict[str, Any]]:
    """The way of asking with all that is tuned or left open resolved, and what the manifest says
    of it.

    Raises:
        NotServedError: when the arm's server holds another model.
    """
    facts: dict[str, Any] = {"served": asker.served} if asker.server else {}
    if tune:
        asking, facts["tuned"] = _tuned(recipe, asker, asking, tune)
    limit = asking.max_tokens or asker.limit(read_split(recipe.run, "test"))
    asking = replace(asking, max_tokens=limit)
    return asking, {"asking": asdict(asking), **facts}


def _say_waiting(
    arm: str, shares: Sequence[Sequence[Mapping[str, Any]]], lacking: set[str]
) -> None:
    waiting = [
        str(number)
        for number, rows in enumerate(shares, 1)
        if not lacking.isdisjoint(row["id"] for row in rows)
    ]
    print(
        f"eval {arm}: part {', '.join(waiting)} of {len(shares)} not whole yet; who finishes last "
        "puts them together",
        flush=True,
    )


def ask_again(
    recipe: Recipe, arm: str, rows: Sequence[Mapping[str, Any]], samples: int, force: bool
) -> Path:
    """Draw ``samples`` fresh answers of a sampled arm to each of ``rows``, in the way in which it
    was asked the first time, unless that is up to date; returns their file. A server may have moved
    since, to where the recipe says."""
    first = recipe.run.samples(arm)
    asking = replace(way_of_asking(first.parent), samples=samples)
    if asking.server:
        asking = replace(asking, server=recipe.for_arm(arm).eval.server or asking.server)
    model = recipe.run.model(arm)
    path = first.parent / "fresh" / first.name
    settings = {**_settings(recipe, arm, asking), "problems": [row["id"] for row in rows]}
    splits = ["test", *(["train"] if asking.shots else [])]
    inputs = [recipe.run.split(split) for split in splits]
    stage = Stage(path.parent, f"eval {arm} again", settings, [*inputs, *model_inputs(model)])
    with claimed(path):
        if stage.begin_unless_done(force, [path]):
            asker = Asker(recipe, arm, asking.server)
            write_answers(asker, rows, asking, path, "fresh", stage.goes_on)
            put_together(path, rows, samples)
            stage.finish([path.name], samples=samples, sha256=sha256(path))
    return path


def _settings(recipe: Recipe, arm: str, asking: EvalSection) -> dict[str, Any]:
    """What an arm's answers depend on, its weights aside. Of a server, that it is one: its address
    may change, and how much is asked of it at a time."""
    aside = (*_JUDGING, "server", *(["rows"] if asking.server else []))
    return {
        "arm": arm,
        "model": recipe.run.model(arm),
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        **{key: value for key, value in asdict(asking).items() if key not in aside},
        **({"engine": "server"} if asking.server else {}),
    }


def _tuned(
    recipe: Recipe, asker: Asker, asking: EvalSection, tune: Mapping[str, Sequence[Any]]
) -> tuple[EvalSection, list[dict[str, Any]]]:
    """The way of asking with the most optimal answers on the main tier's val problems, of all
    combinations of ``tune``'s values, and the share that each one reached."""
    val = [row for row in read_split(recipe.run, "val") if row["tier"] == recipe.data.main]
    problems = {row["id"]: row["problem"] for row in val}
    tried = []
    for values in product(*tune.values()):
        way = replace(asking, **dict(zip(tune, values, strict=True)))
        rows = chain.from_iterable(asker.answers(val, way, "tune"))
        verdicts = [row["status"] for row in score_rows(problems, rows, lenient=way.lenient)]
        share = verdicts.count(Status.OPTIMAL) / len(verdicts)
        tried.append({**dict(zip(tune, values, strict=True)), "optimal": share})
        print(f"eval {asker.arm}: tried {tried[-1]}", flush=True)
    best = max(tried, key=lambda found: found["optimal"])
    return replace(asking, **{key: best[key] for key in tune}), tried
