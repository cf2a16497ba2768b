"""Rejection sampling: SFT on the start model's own verified successes (RFT, arXiv 2308.01825).

What GRPO is compared with where the question is whether its policy gradient does more than to pick
right answers that the model gives anyway. By default it draws as many answers as the recipe's GRPO
does and trains on as many: each success as often as that takes.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.common.errors import UserError, run_main
from data.common.files import Stage, read_jsonl, sha256, write_jsonl
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from pipeline import sft
from pipeline.model.decode import (
    Decoding,
    answer_limit,
    prepare,
    reasoning_prefix,
    render,
    sample,
)
from pipeline.model.load import load_model, quiet
from pipeline.model.processes import by_main
from pipeline.train import backend
from pipeline.train.settings import check_settings, grpo_config, sft_config
from pipeline.train.trainer import model_inputs, run_trainer, start_of, training_rows
from rewards.verify import Status, verify


def budget(recipe: Recipe) -> tuple[int, int]:
    """(prompts, answers to each) that the recipe's GRPO takes on one device.

    Raises:
        UserError: where it is set to train by epochs, so that this is not known beforehand.
    """
    config = grpo_config(recipe, Path("unused"))
    if config.max_steps < 1:
        raise UserError(f"{recipe.path}: a rejection arm needs grpo.max_steps, for equal compute")
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps
    groups = config.max_steps * answers // (config.num_generations * config.num_iterations)
    return groups, config.num_generations


def successes(
    recipe: Recipe, arm: str, rows: list[dict[str, Any]], force: bool
) -> list[dict[str, Any]]:
    """Training rows whose ``gold`` is an optimal answer that the start model gave, each different
    one once; kept in ``<arm>/successes/successes.jsonl``.

    Raises:
        UserError: when it gave none.
    """
    prompts, answers = budget(recipe)
    start = start_of(recipe, arm)
    settings = {
        "model": start,
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "prompts": prompts,
        "answers": answers,
        "tiers": recipe.all_arms[arm].tiers,
        "curriculum": recipe.data.curriculum,
        "decoding": [recipe.eval.temperature, recipe.eval.top_p, recipe.eval.max_tokens],
    }
    folder = recipe.run.folder / arm / "successes"
    stage = Stage(
        folder, f"{arm} sampling", settings, [recipe.run.split("train"), *model_inputs(start)]
    )
    path = folder / "successes.jsonl"
    asked = {row["id"]: row for row in rows}
    if recipe.data.curriculum == "mixture":
        # As GRPO takes them: the file has one tier after the other.
        rng = random.Random(seed_of(recipe.seed, "rejection order", arm))
        rows = rng.sample(rows, len(rows))
    if stage.begin_unless_done(force):
        quiet()
        network, tokenizer = load_model(start, recipe.dtype)
        prepare(network)
        prefix = reasoning_prefix(tokenizer)
        decoding = Decoding(
            recipe.eval.max_tokens or answer_limit(tokenizer, rows),
            recipe.eval.temperature,
            recipe.eval.top_p,
        )
        found: list[dict[str, Any]] = []
        # More prompts than there are: further rounds ask all of them again, with other seeds.
        for first in range(0, prompts, len(rows)):
            here = rows[: prompts - first]
            seeds = [seed_of(recipe.seed, "rejection", arm, first, row["id"]) for row in here]
            texts = [render(tokenizer, row["prompt"]) for row in here]
            drawn = sample(network, tokenizer, texts, answers, decoding, seeds, recipe.eval.rows)
            for i, group in drawn:
                for text in dict.fromkeys(prefix + one.completion for one in group):
                    if verify(here[i]["problem"], text).status == Status.OPTIMAL:
                        found.append({"id": here[i]["id"], "completion": text})
        write_jsonl(path, {(row["id"], row["completion"]): row for row in found}.values())
        stage.finish([path.name], drawn=prompts * answers)
    kept = list(_read(path, asked))
    print(f"{arm}: {len(kept)} different successes of {prompts * answers} answers", flush=True)
    if not kept:
        raise UserError(f"{start} gave no optimal answer in {prompts * answers}; run SFT first")
    return [{**asked[row["id"]], "gold": row["completion"]} for row in kept]


def _read(path: Path, ids: Container[str]) -> Iterator[dict[str, Any]]:
    """The rows of a ``successes.jsonl``.

    Raises:
        UserError: naming the line that is not as it was written, and the way out.
    """
    try:
        for number, row in read_jsonl(path):
            texts = [row.get("id"), row.get("completion")]
            if not all(isinstance(text, str) for text in texts) or row["id"] not in ids:
                raise UserError(f"{path}:{number} is no answer to a training problem of this arm")
            yield row
    except UserError as error:
        raise UserError(f"{error}; delete {path.name}, and `make arms` draws it again") from None


def run(recipe: Recipe, force: bool, arm: str) -> None:
    """Sample, keep the successes, train on them; the merged result is ``<arm>/model``."""
    start_of(recipe, arm, "rejection")
    settings = recipe.all_arms[arm].settings
    recipe = recipe.for_arm(arm)
    backend.start(recipe)
    if "max_steps" not in settings:
        prompts, answers = budget(recipe)
        config = sft_config(recipe, Path("unused"))
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        steps = max(1, prompts * answers // batch)
        recipe = replace(recipe, sft={**recipe.sft, "max_steps": steps})
    check_settings(recipe)
    kept = by_main(lambda: successes(recipe, arm, training_rows(recipe, arm), force))
    picked = sha256(recipe.run.folder / arm / "successes" / "successes.jsonl")
    make = partial(sft.trainer_for, recipe, kept)
    run_trainer(recipe, arm, "sft", {"successes": picked}, force, make)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", required=True, help="the arm of the recipe to train")
    arguments = parser.parse_args()
    run(recipe_from(arguments), arguments.force, arguments.arm)


if __name__ == "__main__":
    run_main(main)
