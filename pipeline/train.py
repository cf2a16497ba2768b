"""What SFT and GRPO share: the stage around a TRL trainer.

What a killed training goes on from, and which runs are equal and which cannot be, says
``pipeline.resume``.
"""

from __future__ import annotations

import errno
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from data.errors import UserError, reason_of
from data.files import Stage, finished, remove, write_folder
from data.make import read_split, split_path
from data.policies import random_maximal_success
from data.recipe import Recipe, nearest
from data.sections import ARMS
from pipeline import backend, processes
from pipeline.lengths import check as check_lengths
from pipeline.lengths import count, known
from pipeline.parity import settings_held
from rewards.reward import SHAPES

if TYPE_CHECKING:
    from transformers import Trainer

#: Below a stage's folder: the finished model, the LoRA adapter that was merged into it, and what
#: the trainer goes on from when interrupted.
MODEL, ADAPTER, CHECKPOINTS = "model", "adapter", "checkpoints"
#: Of a checkpoint, written last.
STATE = "trainer_state.json"
#: What transformers and peft call a checkpoint's weights.
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
#: Of an adapter's change, lost in merging it, before it is spoken of.
MOST_ROUNDING = 0.5


def model_folder(recipe: Recipe, arm: str) -> str:
    """Where an arm's weights are: the recipe's base model, what a stage made of it, or those of
    the arm that it asks in another way."""
    if arm == "base":
        return recipe.model
    found = recipe.all_arms()[arm]
    if found.trainer == "none":
        return model_folder(recipe, found.start)
    return str(recipe.folder / arm / MODEL)


def is_trained(recipe: Recipe, arm: str) -> bool:
    """Whether the weights of an arm are there."""
    if arm == "base":
        return True
    found = recipe.all_arms()[arm]
    if found.trainer == "none":
        return is_trained(recipe, found.start)
    return finished(recipe.folder / arm)


def maker(arm: str) -> str:
    """The command that trains an arm."""
    return f"`make {arm if arm in ARMS else 'arms'}`"


def check_trained(recipe: Recipe, arm: str) -> None:
    """Raise UserError unless the weights of an arm are there."""
    if not is_trained(recipe, arm):
        raise UserError(f"{model_folder(recipe, arm)} is not finished; {maker(arm)} trains it")


def start_of(recipe: Recipe, arm: str, trainer: str | None = None) -> str:
    """The model that an arm's training starts from.

    Raises:
        UserError: when the recipe has no such arm, the one it starts from is not trained, or the
            arm is not one of ``trainer``.
    """
    arms = recipe.all_arms()
    if arm not in arms:
        known = ", ".join(arms)
        raise UserError(f"{recipe.path}: arms has no {arm!r} (it has {known}){nearest(arm, arms)}")
    if trainer not in (None, arms[arm].trainer):
        raise UserError(
            f"{recipe.path}: arms.{arm} is trained by {arms[arm].trainer}, not by {trainer}; "
            "`make arms` trains it"
        )
    before = arms[arm].start
    check_trained(recipe, before)
    return model_folder(recipe, before)


def training_rows(recipe: Recipe, arm: str) -> list[dict[str, Any]]:
    """The training problems of an arm, in the order of the recipe's curriculum."""
    tiers = recipe.all_arms()[arm].tiers
    rows = [row for row in read_split(recipe, "train") if not tiers or row["tier"] in tiers]
    if recipe.data.curriculum == "easy_to_hard":
        rows.sort(key=lambda row: -random_maximal_success(row["problem"]))
    return rows


def model_inputs(model: str) -> list[Path]:
    """A local model's folder as an input of a stage; a hub id is known by its name."""
    if backend.is_local(model):
        backend.check_model_folder(Path(model))
        return [Path(model)]
    return []


def last_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end and is all there; read from the newest on,
    since each that is looked at is read as a whole."""
    newest_first = sorted(checkpoints.glob(f"checkpoint-*/{STATE}"), key=_step, reverse=True)
    return next((state.parent for state in newest_first if _is_whole(state)), None)


def _step(state: Path) -> int:
    """The step in the name of a checkpoint's folder; -1 where there is none."""
    digits = state.parent.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1


def _is_whole(state: Path) -> bool:
    """Whether a checkpoint's last file was written to its end and is of its folder's step, none of
    its weights or archives is cut off or missing, and each process left its random state, which
    the main one does not wait for. Reads optimizer and random states once, for their checksums."""
    from safetensors import SafetensorError, safe_open

    folder, single = state.parent, processes.count() == 1  # several may keep theirs in parts
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("global_step") != _step(state):
            return False
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass  # its header is read, and compared with the size of the file
        weights = _weights(folder) if single else []
    except (ValueError, SafetensorError):
        return False
    archives = [path for end in ("pt", "pth", "bin") for path in folder.glob(f"*.{end}")]
    if not all(map(_is_sound, archives)):
        return False
    if single:
        needed = ["rng_state.pth", "optimizer.pt", "scheduler.pt", *weights]
    else:
        needed = [f"rng_state_{number}.pth" for number in range(processes.count())]
    return all((folder / name).is_file() for name in needed)


def _weights(folder: Path) -> list[str]:
    """The files that the weights of a checkpoint must be in.

    Raises:
        ValueError: when they are in several, and the list of these is none.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [ADAPTER_WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [WEIGHTS]
    listed = json.loads(index.read_text(encoding="utf-8"))
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} names no files")
    return sorted(set(map(str, names.values())))


def _is_sound(archive: Path) -> bool:
    """Whether every part of an archive of torch's has its checksum."""
    try:
        with ZipFile(archive) as parts:
            return parts.testzip() is None
    # What zipfile says of bytes that are not where they should be.
    except (BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place before the beginning
            raise
        return False


def _go_on(checkpoints: Path, name: str) -> Path | None:
    """The checkpoint to go on from. The others are removed, half ones above all: they take room,
    and would be written over."""
    last = last_whole(checkpoints)
    since = _step(last / STATE) if last else -1
    for path in checkpoints.glob("checkpoint-*"):
        if path != last:
            if (path / STATE).is_file() and _step(path / STATE) > since:
                print(f"{name}: {path} is spoilt, and left out", flush=True)
            remove(path)
    if last:
        print(f"{name}: going on from {last}", flush=True)
    return last


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
    from pipeline import monitor  # imports what Unsloth patches

    monitor.check(recipe)
    settings = {
        "model": start,
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "lora": recipe.lora,
        "curriculum": recipe.data.curriculum,
        "tiers": recipe.all_arms()[name].tiers,
        "backend": choice.name,
        "bits": recipe.bits,
        "max_seq_length": recipe.max_seq_length,
        "fast_inference": recipe.fast_inference,
        stage_name: getattr(recipe, stage_name),
        **processes.layout(),
        **more,
    }

    def look() -> Stage | None:
        inputs = [split_path(recipe, "train"), *model_inputs(start)]
        stage = Stage(recipe.folder / name, name, settings, inputs)
        if stage.is_done(force) or not stage.claim(force):
            shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)  # killed at the very end
            return None
        check_lengths(recipe, known(recipe) or count(recipe))
        gate()
        return stage

    stage = processes.by_main(look)
    if stage is None:
        return
    backend.quiet()
    model, tokenizer = backend.load_for_training(recipe, stage_name, start)

    def begin() -> None:
        # Not before all that a mistake may stop: what was finished is kept until then.
        stage.begin(force, [stage.folder / CHECKPOINTS])
        print(f"{name}: trained by {choice.name} ({choice.why})", flush=True)

    processes.by_main(begin)
    checkpoints = stage.folder / CHECKPOINTS
    try:
        trainer = make(model, tokenizer, checkpoints)
    # A setting that only the trainer itself can judge, or a package that it would need.
    except (ValueError, NotImplementedError, ImportError) as error:
        raise _refusal(recipe, name, error) from None
    if stage_name == "grpo":
        check_groups(recipe, trainer)
    from pipeline.resume import Resumable

    trainer.add_callback(Resumable(trainer))
    last = processes.by_main(lambda: _go_on(checkpoints, name))
    with monitor.monitored(
        trainer, tokenizer, recipe, name, stage_name, stage.folder, lambda: last_whole(checkpoints)
    ):
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except ImportError as error:  # of an optimizer, which is made here
            raise _refusal(recipe, name, error) from None
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
            folder / MODEL, lambda fresh: backend.save(trainer.model, tokenizer, fresh, weights)
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
        [MODEL, "log.jsonl", *([ADAPTER] if recipe.lora else [])],
        seed=recipe.seed,
        backend=asdict(backend.choose(recipe.backend)),
        trainable_parameters=held["trainable_parameters"],
        trained_with=held.pop("args"),
        held=held,
        merge=made,
    )
    # Not before: until then this is all that a killed process would go on from.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    print(f"{name}: {folder / MODEL}", flush=True)
