"""What SFT and GRPO share: the stage around a TRL trainer.

``pipeline.train.resume`` says how an interrupted training goes on, and which runs are equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of, require
from data.common.files import Stage, remove, write_folder
from data.run import ADAPTER, LOG, MODEL, START
from data.sections import RewardSection
from pipeline.model import processes
from pipeline.model.lengths import check_lengths, count_lengths, longest, uses
from pipeline.model.load import quiet, write_model
from pipeline.train.checkpoints import go_on, last_whole, ours
from pipeline.train.loading import load_for_training
from pipeline.train.merging import merge, save_adapter
from pipeline.train.training import Training
from rewards.reward import shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

#: Below a stage's folder: what an interrupted training goes on from.
CHECKPOINTS = "checkpoints"
#: Below the checkpoints: tables of the answers, which GRPO writes with ``log_completions``.
_COMPLETIONS = "completions"
#: Warn when merging rounds away more than this share of the adapter's change.
MOST_ROUNDING = 0.5


def run_trainer(
    training: Training,
    force: bool,
    make: Callable[[Any, PreTrainedTokenizerBase, Path], Any],
    more: Mapping[str, Any] | None = None,
    gate: Callable[[], None] = lambda: None,
) -> None:
    """Train an arm unless up to date, and save it; a LoRA adapter by itself and merged. With
    several processes all of them train, and the main one does the rest.

    An interrupted training goes on from its last checkpoint when settings and inputs are the same.

    Args:
        make: builds TRL's trainer from model, tokenizer and the folder of checkpoints.
        more: further settings that the result depends on.
        gate: raises where the training must not begin.
    """
    claimed = processes.by_main(lambda: _claim_stage(training, force, more or {}, gate))
    if claimed is None:
        return
    stage, length = claimed
    quiet()
    model, tokenizer = load_for_training(training, length)
    checkpoints = stage.folder / CHECKPOINTS
    try:
        trainer = make(model, tokenizer, checkpoints)
        if "layerwise" not in trainer.args.optim:  # which would take hold of the weights
            trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    # A setting that only the trainer itself can judge, or a package that it would need.
    except (ValueError, NotImplementedError, ImportError) as error:
        raise _refused_by_trainer(training, error) from None
    check_groups(training.source, training.recipe.reward, trainer.args)
    check_steps(training, trainer)
    last = processes.by_main(lambda: _begin(training, stage, force))
    _train(training, trainer, stage.folder, last)
    weights = processes.whole_weights(trainer, training.recipe.dtype)
    processes.by_main(lambda: _save(training, stage, trainer, tokenizer, weights))


def check_groups(source: str, reward: RewardSection, args: Any) -> None:
    """Raise UserError where a reward that compares the answers to a prompt would see only some of
    them: each process rewards the answers that it sampled."""
    if not (hasattr(args, "num_generations") and shape_of(reward.name).in_group):
        return
    here = args.per_device_train_batch_size * args.steps_per_generation
    require(
        here % args.num_generations == 0,
        f"{source}: the reward {reward.shape!r} compares the answers to a prompt, so each of the "
        f"{processes.count()} processes must sample whole groups of {args.num_generations}, but it "
        f"samples {here} answers at a time; change grpo.per_device_train_batch_size or "
        "grpo.gradient_accumulation_steps",
    )


def check_steps(training: Training, trainer: Any) -> None:
    """Raise UserError where there are fewer training problems than are taken at a time: a trainer
    then takes no step, and ends as if it had trained."""
    args, rows, section = trainer.args, len(trainer.train_dataset), training.section
    sizes = ["per_device_train_batch_size"]
    if section == "grpo":
        takes = args.generation_batch_size // args.num_generations
        what = f"a generation takes {takes} prompts"
        given = "generation_batch_size" in training.arguments
        sizes = ["generation_batch_size"] if given else [*sizes, "steps_per_generation"]
    else:
        takes = args.train_batch_size * processes.count() if args.dataloader_drop_last else 1
        what = f"a batch takes {takes} (sft.dataloader_drop_last)"
    lower = " or ".join(f"{section}.{key} ({getattr(args, key)})" for key in sizes)
    require(
        rows >= takes,
        f"{training.source}: {training.arm} would take no step: {what}, and there are {rows} "
        f"training problems; lower {lower}, or make more problems",
    )


def _claim_stage(
    training: Training, force: bool, more: Mapping[str, Any], gate: Callable[[], None]
) -> tuple[Stage, int] | None:
    """The stage and the tokens of its longest text; None where the training is up to date."""
    recipe = training.recipe
    folder = recipe.run.stage(training.arm)
    stage = Stage(folder, training.arm, {**training.settings(), **more}, training.inputs())
    if not stage.claim(force):
        _put_away(folder)  # killed at the very end
        return None
    lengths, texts = count_lengths(recipe), list(uses(recipe))
    check_lengths(texts, lengths, recipe.run, recipe.max_seq_length)
    gate()
    return stage, recipe.max_seq_length or longest(texts, lengths)


def _begin(training: Training, stage: Stage, force: bool) -> Path | None:
    """Mark the training as begun; returns the checkpoint that it goes on from. Comes after all
    checks: until then an earlier result is kept."""
    checkpoints, backend = stage.folder / CHECKPOINTS, training.backend
    # Not the folders that a trainer makes before it begins.
    tables = (checkpoints / _COMPLETIONS).glob("*")
    stage.begin(force, [*ours(checkpoints), checkpoints / START, *tables])
    print(f"{training.arm}: trained by {backend.name} ({backend.why})", flush=True)
    return go_on(checkpoints, training.arm)


def _train(training: Training, trainer: Any, folder: Path, last: Path | None) -> None:
    """Train, watched, from the checkpoint ``last`` if any.

    Raises:
        UserError: see ``monitored``; where no step was taken.
    """
    # These import what Unsloth patches.
    from pipeline.train.resume import Resumable
    from pipeline.watch.monitor import monitored

    arm, section = training.arm, training.section
    trainer.add_callback(Resumable(trainer))
    with monitored(
        trainer, training.recipe, arm, section, folder,
        saved=lambda: last_whole(folder / CHECKPOINTS), generates=training.backend.is_unsloth,
    ):  # fmt: skip
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except ImportError as error:
            if "layerwise" not in trainer.args.optim:  # such an optimizer is made here
                raise
            raise _refused_by_trainer(training, error) from None
    require(
        trainer.state.global_step,
        f"{training.source}: {arm} took no step, so there is nothing to save; look at "
        f"{section}.max_steps, the batch sizes and the number of training problems",
    )


def _refused_by_trainer(training: Training, error: Exception) -> UserError:
    """What a trainer said, as one sentence."""
    said = reason_of(error, None)
    return UserError(f"{training.source}: the {training.arm} trainer refuses the recipe: {said}")


def _save(
    training: Training,
    stage: Stage,
    trainer: Any,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, Tensor] | None,
) -> None:
    """Save the result and say so; ``weights`` are those of ``processes.whole_weights``."""
    folder, dtype, model = stage.folder, training.recipe.dtype, trainer.model
    held = settings_held(trainer)
    merged: dict[str, Any] = {}
    outputs = [MODEL, LOG]
    if training.recipe.lora is None:
        remove(folder / ADAPTER)
        write_folder(folder / MODEL, lambda to: write_model(model, tokenizer, to, weights))
    else:
        adapter = folder / ADAPTER
        outputs.append(ADAPTER)
        write_folder(adapter, lambda to: save_adapter(model, to, weights))
        write_folder(
            folder / MODEL, lambda to: merged.update(merge(training.start, adapter, dtype, to))
        )
        _warn_of_merge(merged, stage.name)
    stage.finish(
        outputs,
        seed=training.recipe.seed,
        backend=asdict(training.backend),
        trainable_parameters=held["trainable_parameters"],
        trained_with=held.pop("args"),
        held=held,
        merge=merged,
    )
    # Not before: until then this is all that a killed process would go on from.
    _put_away(folder)
    print(f"{stage.name}: {folder / MODEL}", flush=True)


def settings_held(trainer: Any) -> dict[str, Any]:
    """Classes, dtypes and numbers of weights of a TRL trainer, JSON-able; ``args`` are its
    arguments. Read back from what was built: Unsloth puts its own classes and defaults in the place
    of others."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    return {
        "trainer": type(trainer).__name__,
        "model": type(inner).__name__,
        "attention": model.config._attn_implementation,
        "parameters": sum(map(_numbers_in, weights)),
        "trainable_parameters": sum(map(_numbers_in, trained)),
        "dtype": _dtypes(weights),
        "trainable_dtype": _dtypes(trained),
        "args": dict(sorted(trainer.args.to_sanitized_dict().items())),
    }


def _dtypes(weights: list[Tensor]) -> list[str]:
    return sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})


def _numbers_in(weight: Tensor) -> int:
    """Numbers in a weight, also where ZeRO-3 keeps them elsewhere."""
    return getattr(weight, "ds_numel", weight.numel())


def _warn_of_merge(merged: Mapping[str, Any], name: str) -> None:
    if not merged["change"]:
        print(f"{name}: training changed nothing, so the model is the one that it started from")
    elif merged["rounding"] > MOST_ROUNDING:
        print(
            f"{name}: merging lost {merged['rounding']:.0%} of the adapter's change in rounding; "
            "dtype: float32 keeps it"
        )


def _put_away(folder: Path) -> None:
    """Remove what a finished training would have gone on from; a user's own files stay."""
    checkpoints = folder / CHECKPOINTS
    card = checkpoints / "README.md"  # TRL's, of each checkpoint
    for path in [*ours(checkpoints), checkpoints / START, card]:
        with contextlib.suppress(OSError):
            remove(path)
    for left in (checkpoints / _COMPLETIONS, checkpoints):
        with contextlib.suppress(OSError):  # unless it is empty
            left.rmdir()
