"""What SFT and GRPO share: the stage around a TRL trainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from data.files import Stage
from data.recipe import Recipe
from pipeline import backend

if TYPE_CHECKING:
    from transformers import Trainer

#: Below a stage's folder: the finished model, and what the trainer goes on from when interrupted.
MODEL, CHECKPOINTS = "model", "checkpoints"


def model_folder(recipe: Recipe, arm: str) -> str:
    """Where an arm's weights are: the recipe's base model, or what a stage made of it."""
    return recipe.model if arm == "base" else str(recipe.folder / arm / MODEL)


def model_inputs(model: str) -> list[Path]:
    """A local model's folder as an input of a stage; a hub id is known by its name."""
    if backend.is_local(model):
        backend.check_model_folder(Path(model))
        return [Path(model)]
    return []


def last_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end: ``trainer_state.json`` is written last."""
    whole = [state.parent for state in checkpoints.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def run_trainer(
    recipe: Recipe,
    name: str,
    start: str,
    section: dict[str, Any],
    inputs: list[Path],
    force: bool,
    make: Callable[[Any, Any, Path], Trainer],
) -> None:
    """Train unless up to date: load ``start``, let ``make`` build the trainer, train, save merged.

    An interrupted training goes on from its last checkpoint when settings and inputs are the same.
    """
    settings = {
        "model": start, "dtype": recipe.dtype, "seed": recipe.seed, "lora": recipe.lora, **section
    }  # fmt: skip
    folder = recipe.folder / name
    stage = Stage(folder, name, settings, [*inputs, *model_inputs(start)])
    if stage.is_current(force):
        return
    if not stage.goes_on:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    backend.quiet()
    model, tokenizer = backend.load(start, recipe.dtype)
    try:
        trainer = make(model, tokenizer, folder / CHECKPOINTS)
    except ValueError as error:  # a setting that only the trainer itself can judge
        reason = " ".join(str(error).split())
        raise UserError(f"{recipe.path}: the {name} trainer refuses the recipe: {reason}") from None
    from pipeline.log import attach

    attach(trainer, folder)
    checkpoints = folder / CHECKPOINTS
    last = last_whole(checkpoints)
    if last:
        print(f"{name}: going on from {last}", flush=True)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    # Written whole beside the old one, which is kept until then.
    fresh = folder / f"{MODEL}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    backend.save(trainer.model, tokenizer, fresh)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    fresh.rename(folder / MODEL)
    shutil.rmtree(checkpoints, ignore_errors=True)
    stage.finish(
        [MODEL, "log.jsonl"],
        seed=recipe.seed,
        trained_with=trainer.args.to_sanitized_dict(),
        trainable_parameters=trainer.get_num_trainable_parameters(),
    )
    print(f"{name}: {folder / MODEL}", flush=True)
