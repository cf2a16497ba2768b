"""Rejection sampling: SFT on the start model's own verified successes (RFT, arXiv 2308.01825).

The control for GRPO where the question is whether its policy gradient does more than pick right
answers that the model gives anyway. By default it draws as many answers as the recipe's GRPO does
and trains on as many: each success as often as that takes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.common.console import paced
from data.common.errors import require, run_main
from data.common.files import Stage, read_jsonl, sha256, write_jsonl
from data.common.seeds import seed_of
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row
from pipeline import sft
from pipeline.model.decode import Decoding, answer_limit, prepare, reasoning_prefix, render, sample
from pipeline.model.load import load_model, quiet
from pipeline.model.processes import by_main
from pipeline.train.settings import grpo_config, sft_config
from pipeline.train.trainer import run_trainer
from pipeline.train.training import Training, training_of
from rewards.parse import whole
from rewards.verify import Status, verify


def budget(config: Any, source: str) -> tuple[int, int]:
    """(prompts, answers to each) that a GRPO of this config takes on one device.

    Raises:
        UserError: where it is set to train by epochs, so that this is not known beforehand.
    """
    require(
        config.max_steps >= 1, f"{source}: a rejection arm needs grpo.max_steps, for equal compute"
    )
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps
    groups = config.max_steps * answers // (config.num_generations * config.num_iterations)
    return groups, config.num_generations


def successes(training: Training, size: tuple[int, int], force: bool) -> list[Row]:
    """Training rows whose ``gold`` is an optimal answer that the start model gave, each different
    one once; kept in ``<arm>/successes/successes.jsonl``.

    Args:
        size: prompts, and answers to each.

    Raises:
        UserError: when it gave none.
    """
    recipe, arm, asking = training.recipe, training.arm, training.recipe.eval
    prompts, answers = size
    settings = {
        "model": training.start,
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "prompts": prompts,
        "answers": answers,
        "tiers": training.entry.tiers,
        "decoding": [asking.temperature, asking.top_p, asking.max_tokens],
    }
    rows = training.rows()
    asked = {row["id"]: row for row in rows}
    # In GRPO's order: the file has one tier after the other.
    rng = random.Random(seed_of(recipe.seed, "rejection order", arm))
    rows = rng.sample(rows, len(rows))
    path = recipe.run.successes(arm)
    stage = Stage(path.parent, f"{arm} sampling", settings, training.inputs())
    if stage.begin_unless_done(force):
        drawn = dict.fromkeys(_draw_successes(training, rows, prompts, answers))
        write_jsonl(path, ({"id": name, "completion": text} for name, text in drawn))
        stage.finish([path.name], drawn=prompts * answers)
    kept: list[Row] = [
        {**asked[row["id"]], "gold": row["completion"]} for _, row in read_jsonl(path)
    ]
    print(f"{arm}: {len(kept)} different successes of {prompts * answers} answers", flush=True)
    require(kept, f"{training.start} gave no optimal answer in {prompts * answers}; run SFT first")
    return kept


def _draw_successes(
    training: Training, rows: Sequence[Row], prompts: int, answers: int
) -> Iterator[tuple[str, str]]:
    """Ask the start model, and yield its optimal answers, each after the id of its problem."""
    quiet()
    recipe, asking = training.recipe, training.recipe.eval
    model, tokenizer = load_model(training.start, recipe.dtype)
    prepare(model)
    prefix = reasoning_prefix(tokenizer)
    limit = asking.max_tokens or answer_limit(tokenizer, rows)
    decoding = Decoding(limit, asking.temperature, asking.top_p)
    # More prompts than there are: further rounds ask all of them again, with other seeds.
    for first in range(0, prompts, len(rows)):
        here = rows[: prompts - first]
        seeds = [seed_of(recipe.seed, "rejection", training.arm, first, row["id"]) for row in here]
        texts = [render(tokenizer, row["prompt"]) for row in here]
        drawn = sample(model, tokenizer, texts, answers, decoding, seeds, asking.rows)
        for i, group in paced(drawn, len(texts), training.arm, f" prompts x {answers} answers"):
            texts_of = (whole(prefix + one.completion, one.finish_reason) for one in group)
            for text in dict.fromkeys(texts_of):
                if verify(here[i]["problem"], text).status == Status.OPTIMAL:
                    yield here[i]["id"], text


def run(recipe: Recipe, force: bool, arm: str) -> None:
    """Sample, keep the successes, train on them; the merged result is ``<arm>/model``."""
    training = training_of(recipe, arm, "rejection")
    recipe = training.recipe
    size = budget(grpo_config(recipe, Path("unused")), training.source)
    if "max_steps" not in training.entry.settings:
        config = sft_config(recipe, Path("unused"))
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        steps = max(1, size[0] * size[1] // batch)
        recipe = replace(recipe, sft={**recipe.sft, "max_steps": steps})
        training = replace(training, recipe=recipe)
    kept = by_main(lambda: successes(training, size, force))
    picked = sha256(recipe.run.successes(arm))
    make = partial(sft.trainer_for, training, kept)
    run_trainer(training, force, make, {"successes": picked})


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", required=True, help="the arm of the recipe to train")
    arguments = parser.parse_args()
    run(recipe_from(arguments), arguments.force, arguments.arm)


if __name__ == "__main__":
    run_main(main)
