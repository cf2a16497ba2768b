"""What SFT and GRPO share: the stage around a TRL trainer.

What a killed training goes on from, and which runs are equal and which cannot be, says
``pipeline.train.resume``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of
from data.common.fields import nearest
from data.common.files import Stage, remove, write_folder
from data.policies import random_maximal_success
from data.recipe import Recipe
from data.rows import read_split
from data.run import ADAPTER, LOG, MODEL, START
from pipeline.model import processes
from pipeline.model.lengths import check_lengths, lengths_now, longest
from pipeline.model.load import check_model_folder, is_local, quiet, write_model
from pipeline.train import backend
from pipeline.train.checkpoints import go_on, last_whole, ours
from pipeline.train.held import settings_held
from pipeline.train.settings import prompts_together
from rewards.reward import SHAPES

if TYPE_CHECKING:
    from transformers import Trainer

#: Below a stage's folder: the finished model, the LoRA adapter that was merged into it, and what
#: the trainer goes on from when interrupted.
CHECKPOINTS = "checkpoints"
#: Below the checkpoints while it is trained, and then below the stage: tables of the answers, which
#: GRPO's trainer writes with ``log_completions``.
COMPLETIONS = "completions"
#: Of an adapter's change, lost in merging it, before it is spoken of.
MOST_ROUNDING = 0.5


def start_of(recipe: Recipe, arm: str, trainer: str | None = None) -> str:
    """The model that an arm's training starts from.

    Raises:
        UserError: when the recipe has no such arm, the one it starts from is not trained, or the
            arm is not one of ``trainer``.
    """
    arms = recipe.all_arms
    if arm not in arms:
        known = ", ".join(arms)
        raise UserError(f"{recipe.path}: arms has no {arm!r} (it has {known}){nearest(arm, arms)}")
    if trainer not in (None, arms[arm].trainer):
        raise UserError(
            f"{recipe.path}: arms.{arm} is trained by {arms[arm].trainer}, not by {trainer}; "
            "`make arms` trains it"
        )
    before = arms[arm].start
    recipe.run.require_trained(before)
    return recipe.run.model(before)


def training_rows(recipe: Recipe, arm: str) -> list[dict[str, Any]]:
    """The training problems of an arm, in the order of the recipe's curriculum."""
    tiers = recipe.all_arms[arm].tiers
    rows = [row for row in read_split(recipe.run, "train") if not tiers or row["tier"] in tiers]
    if recipe.data.curriculum == "easy_to_hard":
        rows.sort(key=lambda row: -random_maximal_success(row["problem"]))
    return rows


def model_inputs(model: str) -> list[Path]:
    """A local model's folder as an input of a stage; a hub id is known by its name."""
    if is_local(model):
        check_model_folder(Path(model))
        return [Path(model)]
    return []


def _speak_of(merge: dict[str, Any], name: str) -> None:
    """Say what a merged adapter may make one think of."""
    if not merge["change"]:
        print(f"{name}: training changed nothing, so the model is the one that it started from")
    elif merge["rounding"] > MOST_ROUNDING:
        print(
            f"{name}: merging lost {merge['rounding']:.0%} of the adapter's change in rounding; "
            "dtype: float32 keeps it"
        )


def check_groups(recipe: Recipe, trainer: Trainer) -> None:
    """Raise UserError where a reward that compares the answers to a prompt would see only some of
    them: each process rewards what it sampled."""
    args = trainer.args
    here = args.per_device_train_batch_size * args.steps_per_generation
    if SHAPES[recipe.reward.shape].in_group and here % args.num_generations:
        raise UserError(
            f"{recipe.path}: the reward {recipe.reward.shape!r} compares the answers to a prompt, "
            f"so each of the {processes.count()} processes must sample whole groups of "
            f"{args.num_generations}, but it samples {here} answers at a time; change "
            "grpo.per_device_train_batch_size or grpo.gradient_accumulation_steps"
        )


def check_steps(recipe: Recipe, name: str, trainer: Trainer) -> None:
    """Raise UserError where there are fewer training problems than are taken at a time: a trainer
    then takes no step, and ends as if it had trained."""
    args, rows = trainer.args, len(trainer.train_dataset)
    sizes = ["per_device_train_batch_size"]
    if hasattr(args, "num_generations"):
        stage, takes = "grpo", prompts_together(args)
        what = f"a generation takes {takes} prompts"
        given = "generation_batch_size" in recipe.grpo
        sizes = ["generation_batch_size"] if given else [*sizes, "steps_per_generation"]
    else:
        stage = "sft"
        takes = args.train_batch_size * processes.count() if args.dataloader_drop_last else 1
        what = f"a batch takes {takes} (sft.dataloader_drop_last)"
    if rows < takes:
        lower = " or ".join(f"{stage}.{key} ({getattr(args, key)})" for key in sizes)
        raise UserError(
            f"{recipe.path}: {name} would take no step: {what}, and there are {rows} training "
            f"problems; lower {lower}, or make more problems"
        )


def run_trainer(
    recipe: Recipe,
    name: str,
    stage_name: str,
    more: dict[str, Any],
    force: bool,
    make: Callable[[Any, Any, Path], Trainer],
    gate: Callable[[], None] = lambda: None,
) -> None:
    """Train arm ``name`` unless up to date: pass the ``gate``, load the model that it starts from,
    let ``make`` build the trainer, train, save; a LoRA adapter by itself and merged. With several
    processes all of them train, and the main one does the rest.

    ``recipe`` is as it stands for the arm; ``stage_name`` is its section, ``sft`` or ``grpo``, and
    ``more`` is what the training depends on beside it. An interrupted training goes on from its
    last checkpoint when settings and inputs are the same.
    """
    start = start_of(recipe, name)
    choice = backend.start(recipe)
    settings = {
        "model": start,
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "lora": recipe.lora,
        "curriculum": recipe.data.curriculum,
        "tiers": recipe.all_arms[name].tiers,
        "backend": choice.name,
        "bits": recipe.bits,
        "max_seq_length": recipe.max_seq_length,
        "fast_inference": recipe.fast_inference,
        stage_name: getattr(recipe, stage_name),
        **processes.layout(),
        **more,
    }

    def look() -> tuple[Stage, int] | None:
        inputs = [recipe.run.split("train"), *model_inputs(start)]
        stage = Stage(recipe.run.stage(name), name, settings, inputs)
        if not stage.claim(force):
            _put_away(stage.folder)  # killed at the very end
            return None
        lengths = lengths_now(recipe)
        check_lengths(recipe, lengths)
        gate()
        return stage, recipe.max_seq_length or longest(recipe, lengths)

    begun = processes.by_main(look)
    if begun is None:
        return
    stage, length = begun
    quiet()
    model, tokenizer = backend.load_for_training(recipe, stage_name, start, length)

    checkpoints = stage.folder / CHECKPOINTS
    try:
        trainer = make(model, tokenizer, checkpoints)
        if "layerwise" not in trainer.args.optim:  # which would take hold of the weights
            trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    # A setting that only the trainer itself can judge, or a package that it would need.
    except (ValueError, NotImplementedError, ImportError) as error:
        raise _refusal(recipe, name, error) from None
    if stage_name == "grpo":
        check_groups(recipe, trainer)
    check_steps(recipe, name, trainer)

    def begin() -> Path | None:
        # Not before all that a mistake may stop: what was finished is kept until then.
        stage.begin(force, _left_by_training(stage.folder))
        print(f"{name}: trained by {choice.name} ({choice.why})", flush=True)
        return go_on(checkpoints, name)

    last = processes.by_main(begin)
    # These import what Unsloth patches.
    from pipeline.train.resume import Resumable
    from pipeline.watch import monitor

    trainer.add_callback(Resumable(trainer))
    with monitor.monitored(
        trainer,
        tokenizer,
        recipe,
        name,
        stage_name,
        stage.folder,
        lambda: last_whole(checkpoints),
        choice.name == "unsloth",
    ):
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except ImportError as error:  # of a layerwise optimizer, which is made here
            raise _refusal(recipe, name, error) from None
    if not trainer.state.global_step:
        raise UserError(
            f"{recipe.path}: {name} took no step, so there is nothing to save; look at "
            f"{stage_name}.max_steps, the batch sizes and the number of training problems"
        )
    weights = processes.whole_weights(trainer, recipe.dtype)
    processes.by_main(lambda: _finish(recipe, stage, start, trainer, tokenizer, weights))


def _refusal(recipe: Recipe, name: str, error: Exception) -> UserError:
    """What a trainer said, as one sentence."""
    said = reason_of(error, None)
    return UserError(f"{recipe.path}: the {name} trainer refuses the recipe: {said}")


def _finish(
    recipe: Recipe, stage: Stage, start: str, trainer: Trainer, tokenizer: Any, weights: Any
) -> None:
    """Save what was trained and say so; ``weights`` are of ``processes.whole_weights``."""
    name, folder = stage.name, stage.folder
    held = settings_held(trainer)
    made: dict[str, Any] = {}
    if recipe.lora is None:
        remove(folder / ADAPTER)
        write_folder(
            folder / MODEL, lambda fresh: write_model(trainer.model, tokenizer, fresh, weights)
        )
    else:
        write_folder(
            folder / ADAPTER, lambda fresh: backend.save_adapter(trainer.model, fresh, weights)
        )
        write_folder(
            folder / MODEL,
            lambda fresh: made.update(backend.merge(start, folder / ADAPTER, recipe.dtype, fresh)),
        )
        _speak_of(made, name)
    stage.finish(
        [MODEL, LOG, *([ADAPTER] if recipe.lora else [])],
        seed=recipe.seed,
        backend=asdict(backend.choose(recipe.backend)),
        trainable_parameters=held["trainable_parameters"],
        trained_with=held.pop("args"),
        held=held,
        merge=made,
    )
    # Not before: until then this is all that a killed process would go on from.
    _put_away(folder)
    print(f"{name}: {folder / MODEL}", flush=True)


def _left_by_training(folder: Path) -> list[Path]:
    """What a training that is not gone on with has left below a stage's folder. The folders that a
    trainer makes before it begins are not among it."""
    checkpoints = folder / CHECKPOINTS
    tables = (checkpoints / COMPLETIONS).glob("*")
    return [*ours(checkpoints), checkpoints / START, *tables, folder / COMPLETIONS]


def _put_away(folder: Path) -> None:
    """Remove what a finished training would have gone on from, and keep what was asked for."""
    checkpoints = folder / CHECKPOINTS
    for table in sorted((checkpoints / COMPLETIONS).glob("*.parquet")):
        (folder / COMPLETIONS).mkdir(exist_ok=True)
        table.replace(folder / COMPLETIONS / table.name)
    card = checkpoints / "README.md"  # TRL's, of each checkpoint
    for path in [*ours(checkpoints), checkpoints / START, checkpoints / COMPLETIONS, card]:
        with contextlib.suppress(OSError):
            remove(path)
    with contextlib.suppress(OSError):  # where something else lies there
        checkpoints.rmdir()
