"""Samples an arm as a stage: answers to the test problems, or fresh ones to some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from data.common.files import Stage, remove, sha256
from data.common.locks import holding, in_turn
from data.recipe import Recipe
from data.rows import Row, read_split
from data.run import BASE, SAMPLES, Run
from data.sections import EvalSection
from eval.answers.asker import Asker, write_answers
from eval.answers.files import way_of_asking
from eval.answers.judge import score_rows
from eval.answers.parts import Shard, join
from pipeline.model.load import model_inputs
from rewards.verify import Status

#: Keys of the eval section that change no answer, unless others are tuned by them.
_JUDGING = ("lenient", "resamples")
#: The values to try, by key of the eval section.
Tune = Mapping[str, Sequence[Any]]


def sample_arm(recipe: Recipe, arm: str, force: bool, shard: Shard | None = None) -> None:
    """Sample one arm, in its own way of asking, unless it is up to date; with a ``shard`` only that
    part, and the last part to finish joins all.

    Raises:
        UserError: when another process does the same work; NotServedError when the arm's server
            holds another model.
    """
    run, asking = recipe.run, recipe.for_arm(arm).eval
    test = read_split(run, "test")
    tune: Tune = {} if arm == BASE else run.arms[arm].tune
    if tune and shard and shard.number > 1:
        print(f"eval {arm}: tuned and sampled by one process, --shard 1/{shard.of}", flush=True)
        return
    asker = Asker(run, arm, recipe.dtype, recipe.seed, asking.server)
    settings = _asking_settings(asker, asking)
    if tune:  # the best way depends on how the answers are judged
        settings |= {"tune": tune, "main": recipe.data.main, "lenient": asking.lenient}
    path = run.samples(arm)
    splits = ["test", *(["val"] if tune else []), *(["train"] if asking.shots or tune else [])]
    stage = Stage(path.parent, f"eval {arm}", settings, _inputs(run, arm, splits))
    if shard and not tune:
        _sample_part(stage, asker, test, asking, shard, force)
    elif stage.begin_unless_done(force, [path]):
        tried = {}
        if tune:
            val = [row for row in read_split(run, "val") if row["tier"] == recipe.data.main]
            asking, tried["tuned"] = _tuned(asker, val, asking, tune)
        asking, facts = _resolved(asker, test, asking)
        write_answers(asker, test, asking, path, "sample", stage.goes_on)
        _finish_answers(stage, [path], test, {**facts, **tried})


def _sample_part(
    stage: Stage,
    asker: Asker,
    test: Sequence[Row],
    asking: EvalSection,
    shard: Shard,
    force: bool,
) -> None:
    """Sample a part of an arm, unless it is up to date, and join all parts if it is the last.

    Processes take turns to begin and to join. Of two that finish at the same moment, the second
    finds the part of the first, or a finished stage.
    """
    parts = {one: stage.part(str(one)) for one in shard.all}
    files = {one: part.folder / SAMPLES for one, part in parts.items()}
    mine, own = parts[shard], files[shard]
    with in_turn(stage.folder), holding(stage.folder):  # no process draws the whole
        if stage.says_done(force):
            return
        stage.begin(force and stage.is_done(), [stage.folder / SAMPLES])
    asking, facts = _resolved(asker, test, asking)
    if mine.begin_unless_done(force, [own]):
        share = shard.share(test, asker.batches(test, asking))
        write_answers(asker, share, asking, own, "sample", mine.goes_on)
        mine.finish([own.name])
    with in_turn(stage.folder), holding(stage.folder):
        lacking = [str(one) for one, part in parts.items() if not part.is_done()]
        if stage.is_done():  # another process joined all parts
            return
        if lacking:
            print(f"{stage.name}: joined when {', '.join(lacking)} are drawn", flush=True)
            return
        _finish_answers(stage, files.values(), test, facts)
        for part in parts.values():
            remove(part.folder)


def _resolved(
    asker: Asker, test: Sequence[Row], asking: EvalSection
) -> tuple[EvalSection, dict[str, Any]]:
    """The way of asking with a limit of tokens, and what the manifest says of it.

    Raises:
        NotServedError: when the arm's server holds another model.
    """
    facts: dict[str, Any] = {"served": asker.served} if asker.server else {}
    asking = replace(asking, max_tokens=asking.max_tokens or asker.limit(test))
    return asking, {**facts, "samples": asking.samples, "asking": asdict(asking)}


def _finish_answers(
    stage: Stage, files: Iterable[Path], test: Sequence[Row], facts: Mapping[str, Any]
) -> None:
    """Join the answers in ``files`` as the arm's samples."""
    path = stage.folder / SAMPLES
    join(files, path, [row["id"] for row in test], facts["samples"])
    stage.finish([path.name], sha256=sha256(path), **facts)


def ask_again(recipe: Recipe, arm: str, rows: Sequence[Row], samples: int, force: bool) -> Path:
    """Draw ``samples`` fresh answers of a sampled arm to each of ``rows``, in the way in which it
    was asked the first time, unless that is up to date; returns their file. A server may have moved
    since, to the recipe's address."""
    run, first = recipe.run, recipe.run.samples(arm)
    asking = replace(way_of_asking(first.parent), samples=samples)
    if asking.server:
        asking = replace(asking, server=recipe.for_arm(arm).eval.server or asking.server)
    asker = Asker(run, arm, recipe.dtype, recipe.seed, asking.server)
    path = first.parent / "fresh" / first.name
    settings = {**_asking_settings(asker, asking), "problems": [row["id"] for row in rows]}
    inputs = _inputs(run, arm, ["test", *(["train"] if asking.shots else [])])
    stage = Stage(path.parent, f"eval {arm} again", settings, inputs)
    if stage.begin_unless_done(force, [path]):
        write_answers(asker, rows, asking, path, "fresh", stage.goes_on)
        join([path], path, [row["id"] for row in rows], samples)
        stage.finish([path.name], samples=samples, sha256=sha256(path))
    return path


def _asking_settings(asker: Asker, asking: EvalSection) -> dict[str, object]:
    """What an arm's answers depend on, its weights aside. A server's address may change, and how
    much is asked of it at a time."""
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
) -> tuple[EvalSection, list[dict[str, object]]]:
    """The way of asking with the most optimal answers to ``rows``, of all combinations of the
    values in ``tune``; and each combination with the share that it reached."""
    problems = {row["id"]: row["problem"] for row in rows}
    tried, shares = [], []
    for values in product(*tune.values()):
        changes = dict(zip(tune, values, strict=True))
        way = replace(asking, **changes)
        answers = chain.from_iterable(asker.answers(rows, way, "tune"))
        statuses = [row["status"] for row in score_rows(problems, answers, lenient=way.lenient)]
        shares.append(statuses.count(Status.OPTIMAL) / len(statuses))
        tried.append({**changes, "optimal": shares[-1]})
        print(f"eval {asker.arm}: tried {tried[-1]}", flush=True)
    best = tried[shares.index(max(shares))]
    return replace(asking, **{key: best[key] for key in tune}), tried
