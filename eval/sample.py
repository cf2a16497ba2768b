"""Samples answers to the test problems from every arm, under identical decoding, to disk.

Writes ``runs/<run>/eval/<arm>/samples.jsonl``, one row a completion. All samples of a problem are
written together, so an interrupted run goes on with the problems that are missing.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError, run_main
from data.files import Stage, finished, sha256, stage_facts, to_line, write_bytes, write_text
from data.make import read_split, split_path
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.sections import EvalSection
from data.seeds import seed_of
from eval.roles import beforehand
from eval.score import score_rows
from pipeline.train import is_trained, maker, model_folder, model_inputs
from rewards.verify import Status

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Keys of the eval section that change nothing about the answers.
_JUDGING = ("lenient", "resamples", "server")


def arms(recipe: Recipe) -> list[str]:
    """The arms of a recipe in the order of training, the base first."""
    return ["base", *recipe.all_arms()]


def trained_arms(recipe: Recipe) -> list[str]:
    """The arms whose weights are there; what is missing is said."""
    found = []
    for arm in arms(recipe):
        if is_trained(recipe, arm):
            found.append(arm)
        else:
            print(f"eval: no finished {arm} model, so it is left out; {maker(arm)} trains it")
    return found


def samples_path(recipe: Recipe, arm: str) -> Path:
    return recipe.folder / "eval" / arm / "samples.jsonl"


def sample_arm(recipe: Recipe, arm: str, force: bool) -> None:
    """Sample one arm, in its own way of asking, unless it is up to date."""
    model = model_folder(recipe, arm)
    test = read_split(recipe, "test")
    asking = recipe.for_arm(arm).eval
    tune = {} if arm == "base" else recipe.all_arms()[arm].tune
    settings = {
        **_settings(recipe, arm, asking),
        **({"tune": tune, "main": recipe.data.main} if tune else {}),
    }
    path = samples_path(recipe, arm)
    splits = ["test", *(["val"] if tune else []), *(["train"] if asking.shots or tune else [])]
    inputs = [split_path(recipe, split) for split in splits]
    stage = Stage(path.parent, f"eval {arm}", settings, [*inputs, *model_inputs(model)])
    if stage.is_current(force):
        return
    asker = Asker(recipe, arm)
    facts: dict[str, Any] = {}
    if tune:
        asking, facts["tuned"] = _tuned(recipe, asker, asking, tune)
    asking = replace(asking, max_tokens=asking.max_tokens or asker.limit(test))
    write_answers(asker, test, asking, path, "sample", stage.goes_on)
    stage.finish(
        [path.name],
        samples=asking.samples,
        asking=asdict(asking),
        sha256=sha256(path),
        **facts,
    )


def ask_again(
    recipe: Recipe, arm: str, rows: Sequence[Mapping[str, Any]], samples: int, force: bool
) -> Path:
    """Draw ``samples`` fresh answers of a sampled arm to each of ``rows``, in the way in which it
    was asked the first time, unless that is up to date; returns their file."""
    first = samples_path(recipe, arm)
    asking = replace(way_of_asking(first.parent), samples=samples)
    model = model_folder(recipe, arm)
    path = first.parent / "fresh" / first.name
    settings = {**_settings(recipe, arm, asking), "problems": [row["id"] for row in rows]}
    splits = ["test", *(["train"] if asking.shots else [])]
    inputs = [split_path(recipe, split) for split in splits]
    stage = Stage(path.parent, f"eval {arm} again", settings, [*inputs, *model_inputs(model)])
    if not stage.is_current(force):
        write_answers(Asker(recipe, arm), rows, asking, path, "fresh", stage.goes_on)
        stage.finish([path.name], samples=samples, sha256=sha256(path))
    return path


def way_of_asking(folder: Path) -> EvalSection:
    """How a sampled arm was asked, all that was tuned or left open resolved."""
    asking = stage_facts(folder).get("asking")
    if asking is None:
        raise UserError(f"{folder} was sampled by an earlier version; FORCE=1 make eval redoes it")
    return EvalSection(**asking)


def _settings(recipe: Recipe, arm: str, asking: EvalSection) -> dict[str, Any]:
    """What an arm's answers depend on, its weights aside."""
    return {
        "arm": arm,
        "model": model_folder(recipe, arm),
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        **{key: value for key, value in asdict(asking).items() if key not in _JUDGING},
    }


def write_answers(
    asker: Asker,
    rows: Sequence[Mapping[str, Any]],
    asking: EvalSection,
    path: Path,
    stream: str,
    goes_on: bool,
) -> None:
    """Write the answers to ``rows`` that ``path`` does not have yet, as they come."""
    done = _keep_whole(path, asking.samples) if goes_on else set()
    if not done:
        write_text(path, "")
    missing = [row for row in rows if row["id"] not in done]
    if not missing:
        return
    said = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        for count, found in enumerate(asker.answers(missing, asking, stream), 1):
            file.write("".join(map(to_line, found)))
            file.flush()
            now = time.monotonic()
            if now - said > 15 or count == len(missing):
                said = now
                print(
                    f"{stream} {asker.arm}: {count}/{len(missing)} problems x {asking.samples} "
                    f"answers  {count * asking.samples / asker.seconds:.0f} answers/s",
                    flush=True,
                )


def _keep_whole(path: Path, samples: int) -> set[str]:
    """Drop the rows of a problem that was cut short; the ids of the problems that are complete."""
    if not path.is_file():
        return set()
    rows: dict[str, list[bytes]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):  # the torn last line of an interrupted write
            break
        rows.setdefault(json.loads(line)["id"], []).append(line)
    whole = {identity: lines for identity, lines in rows.items() if len(lines) == samples}
    write_bytes(path, b"".join(line for lines in whole.values() for line in lines))
    return set(whole)


class Asker:
    """An arm's model, loaded when it is asked. ``seconds`` counts from the first question."""

    def __init__(self, recipe: Recipe, arm: str) -> None:
        self.recipe, self.arm, self._started = recipe, arm, 0.0

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from pipeline import backend
        from pipeline.decode import prepare

        backend.quiet()
        model, tokenizer = backend.load(model_folder(self.recipe, self.arm), self.recipe.dtype)
        prepare(model)
        return model, tokenizer

    def limit(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Tokens that an answer to ``rows`` may have where the recipe does not say."""
        from pipeline.decode import answer_limit

        return answer_limit(self._loaded[1], rows)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def answers(
        self, rows: Sequence[Mapping[str, Any]], asking: EvalSection, stream: str = "sample"
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the sample rows of each problem. ``stream`` names the random stream: with another
        one the answers are fresh."""
        from pipeline.decode import Decoding, reasoning_prefix, render, sample

        model, tokenizer = self._loaded
        prefix = reasoning_prefix(tokenizer)
        decoding = Decoding(
            max_tokens=asking.max_tokens or self.limit(rows),
            temperature=asking.temperature,
            top_p=asking.top_p,
        )
        shots = shots_for(self.recipe, rows, asking.shots)
        prompts = [render(tokenizer, row["prompt"], shots[row["id"]]) for row in rows]
        seeds = [seed_of(self.recipe.seed, stream, self.arm, row["id"]) for row in rows]
        self._started = time.monotonic()
        drawn = sample(model, tokenizer, prompts, asking.samples, decoding, seeds, asking.rows)
        for i, found in drawn:
            yield [
                {
                    "id": rows[i]["id"],
                    "arm": self.arm,
                    "sample": number,
                    "completion": prefix + one.completion,
                    "finish_reason": one.finish_reason,
                    "tokens": one.tokens,
                }
                for number, one in enumerate(found)
            ]


def shots_for(
    recipe: Recipe, rows: Sequence[Mapping[str, Any]], count: int
) -> dict[str, list[tuple[str, str]]]:
    """By ``id``, ``count`` solved training problems of each problem's tier.

    Raises:
        UserError: when a tier has fewer.
    """
    if not count:
        return {row["id"]: [] for row in rows}
    by_tier: dict[str, list[dict[str, Any]]] = {}
    for row in read_split(recipe, "train"):
        by_tier.setdefault(row["tier"], []).append(row)
    found = {}
    for row in rows:
        known = by_tier.get(row["tier"], [])
        if len(known) < count:
            raise UserError(
                f"{recipe.path}: {count} shots need as many train problems of tier "
                f"{row['tier']!r}, which has {len(known)}"
            )
        rng = random.Random(seed_of(recipe.seed, "shots", row["id"]))
        found[row["id"]] = [(one["prompt"], one["gold"]) for one in rng.sample(known, count)]
    return found


def _tuned(
    recipe: Recipe, asker: Asker, asking: EvalSection, tune: Mapping[str, Sequence[Any]]
) -> tuple[EvalSection, list[dict[str, Any]]]:
    """The way of asking with the most optimal answers on the main tier's val problems, of all
    combinations of ``tune``'s values, and the share that each one reached."""
    val = [row for row in read_split(recipe, "val") if row["tier"] == recipe.data.main]
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


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="only this arm, instead of all that are trained")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    known = arms(recipe)
    if arguments.arm and arguments.arm not in known:
        raise UserError(f"--arm must be one of {', '.join(known)}, not {arguments.arm!r}")
    chosen = [arguments.arm] if arguments.arm else trained_arms(recipe)
    sampled = [arm for arm in known if finished(samples_path(recipe, arm).parent)]
    for sentence in beforehand(recipe, {*chosen, *sampled}):
        print(f"eval: {sentence}", flush=True)
    for arm in chosen:
        sample_arm(recipe, arm, arguments.force)


if __name__ == "__main__":
    run_main(main)
