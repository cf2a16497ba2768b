"""Samples answers to the test problems from every arm, under identical decoding, to disk.

Writes ``runs/<run>/eval/<arm>/samples.jsonl``, one row a completion. All samples of a problem are
written together, so an interrupted run goes on with the problems that are missing.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import UserError, run_main
from data.files import Stage, finished, sha256, to_line, write_bytes, write_text
from data.make import read_split, split_path
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.seeds import seed_of
from pipeline.train import model_folder, model_inputs


def arms(recipe: Recipe) -> list[str]:
    """The arms of a recipe in the order of training."""
    return ["base", "sft", "grpo"] if recipe.init == "sft" else ["base", "grpo"]


def trained_arms(recipe: Recipe) -> list[str]:
    """The arms whose weights are there; what is missing is said."""
    found = []
    for arm in arms(recipe):
        if arm == "base" or finished(recipe.folder / arm):
            found.append(arm)
        else:
            print(f"eval: no finished {arm} model, so it is left out; `make {arm}` trains it")
    return found


def samples_path(recipe: Recipe, arm: str) -> Path:
    return recipe.folder / "eval" / arm / "samples.jsonl"


def sample_arm(recipe: Recipe, arm: str, force: bool) -> None:
    """Sample one arm, unless it is up to date."""
    model = model_folder(recipe, arm)
    problems = read_split(recipe, "test")
    draw = {key: value for key, value in asdict(recipe.eval).items() if key != "resamples"}
    settings = {"arm": arm, "model": model, "dtype": recipe.dtype, "seed": recipe.seed, **draw}
    path = samples_path(recipe, arm)
    stage = Stage(
        path.parent, f"eval {arm}", settings, [split_path(recipe, "test"), *model_inputs(model)]
    )
    if stage.is_current(force):
        return
    done = _keep_whole(path, recipe.eval.samples) if stage.goes_on else set()
    if not done:
        write_text(path, "")
    _sample_missing(recipe, arm, model, path, problems, done)
    stage.finish([path.name], samples=recipe.eval.samples, sha256=sha256(path))


def _keep_whole(path: Path, samples: int) -> set[str]:
    """Drop the rows of a problem that was cut short; the ids of the problems that are complete."""
    if not path.is_file():
        return set()
    rows: dict[str, list[bytes]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.setdefault(json.loads(line)["id"], []).append(line)
        except ValueError:  # the torn last line of an interrupted write
            break
    whole = {identity: lines for identity, lines in rows.items() if len(lines) == samples}
    write_bytes(path, b"".join(line for lines in whole.values() for line in lines))
    return set(whole)


def _sample_missing(
    recipe: Recipe, arm: str, model: str, path: Path, asked: list[dict[str, Any]], done: set[str]
) -> None:
    from pipeline import backend
    from pipeline.decode import (
        Decoding,
        answer_limit,
        prepare,
        reasoning_prefix,
        render,
        sample,
    )

    backend.quiet()
    network, tokenizer = backend.load(model, recipe.dtype)
    prepare(network)
    prefix = reasoning_prefix(tokenizer)
    decoding = Decoding(
        max_tokens=recipe.eval.max_tokens or answer_limit(tokenizer, asked),
        temperature=recipe.eval.temperature,
        top_p=recipe.eval.top_p,
    )
    problems = [row for row in asked if row["id"] not in done]
    prompts = [render(tokenizer, row["prompt"]) for row in problems]
    seeds = [seed_of(recipe.seed, "sample", arm, row["id"]) for row in problems]
    started = said = time.monotonic()
    drawn = sample(
        network, tokenizer, prompts, recipe.eval.samples, decoding, seeds, recipe.eval.rows
    )
    with path.open("a", encoding="utf-8") as file:
        for count, (i, found) in enumerate(drawn, 1):
            rows = (
                {
                    "id": problems[i]["id"],
                    "arm": arm,
                    "sample": number,
                    "completion": prefix + one.completion,
                    "finish_reason": one.finish_reason,
                    "tokens": one.tokens,
                }
                for number, one in enumerate(found)
            )
            file.write("".join(map(to_line, rows)))
            file.flush()
            now = time.monotonic()
            if now - said > 15 or count == len(problems):
                said = now
                rate = count * recipe.eval.samples / (now - started)
                print(
                    f"eval {arm}: {count}/{len(problems)} problems x {recipe.eval.samples} samples"
                    f"  {rate:.0f} samples/s",
                    flush=True,
                )


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="only this arm, instead of all that are trained")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    chosen = [arguments.arm] if arguments.arm else trained_arms(recipe)
    for arm in chosen:
        if arm not in arms(recipe):
            raise UserError(f"--arm must be one of {', '.join(arms(recipe))}, not {arm!r}")
        sample_arm(recipe, arm, arguments.force)


if __name__ == "__main__":
    run_main(main)
