"""The recipe's ``sft``, ``grpo`` and ``lora`` sections as TRL and PEFT config objects.

The sections are those classes' own arguments, unchanged. What a recipe leaves out and TRL would
choose differently from one version to the next, or for another machine, is set here and only here.
``python -m pipeline.check --recipe FILE`` checks a recipe without running anything.
"""

from __future__ import annotations

import copy
import types
import typing
from dataclasses import MISSING, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of
from data.common.fields import TYPE_NAMES, nearest
from data.recipe import Recipe
from pipeline.health.symptoms import SYMPTOMS
from pipeline.model.load import check_dtype
from rewards.reward import check_reward, reward_weights

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import GRPOConfig, SFTConfig

#: For both trainers.
_TRAINER_DEFAULTS: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 5,
    "save_strategy": "steps",
    "save_steps": 50,
    "save_total_limit": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
    "ddp_timeout": 86_400,  # the main process may be busy for long
}
_SFT_DEFAULTS: dict[str, Any] = {
    **_TRAINER_DEFAULTS,
    "completion_only_loss": True,
    "max_length": None,  # nothing is cut; pipeline.model.lengths finds what is too long
}
_GRPO_DEFAULTS: dict[str, Any] = {
    **_TRAINER_DEFAULTS,
    "beta": 0.0,
    "temperature": 1.0,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "mask_truncated_completions": False,
}
#: Names for the layers that get LoRA, as most decoders call them.
TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
TARGETS["all"] = (*TARGETS["attention"], *TARGETS["mlp"])
#: What the pipeline decides itself.
_OURS = {
    "output_dir": "the run's folder is the output",
    "reward_weights": "give weights under reward:",
    "multi_objective_aggregation": "a component that does not apply must count 0, not as average",
    "model_init_kwargs": "give model: and dtype: at the top",
    "save_only_model": "a training that is interrupted could not go on",
}
#: What would measure on a set that no trainer is given, and its value where it does not.
_EVALUATES: dict[str, Any] = {"eval_strategy": "no", "eval_on_start": False}
#: Optimizers that are made of a weight and the config alone. Others ask for a package, a GPU or the
#: model, and AdamW stands in for them where only rates and the schedule are looked at.
_PLAIN = ("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd")


def _config(cls: type, recipe: Recipe, section: str, values: dict[str, Any]) -> Any:
    library = next(one for one in cls.__mro__ if one.__module__.startswith(("trl.", "peft.")))
    known = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(library)
        if f.init
    }
    hints = typing.get_type_hints(library)
    given = getattr(recipe, section)
    for key, value in given.items():
        if key in _OURS:
            raise UserError(f"{recipe.path}: {section}.{key} cannot be set; {_OURS[key]}")
        if key not in known:
            raise UserError(
                f"{recipe.path}: unknown key {section + '.' + key!r} (the keys are those of "
                f"{cls.__module__.split('.')[0]}'s {cls.__name__}){nearest(key, known)}"
            )
        kinds = _kinds(hints[key])
        if type(value) not in kinds:
            kinds -= {int} if float in kinds else set()
            names = " or ".join(n for kind, n in TYPE_NAMES.items() if kind in kinds) or "left out"
            raise UserError(f"{recipe.path}: {section}.{key} must be {names}, not {value!r}")
    try:
        # All of them, since Unsloth gives its own version of a class other defaults.
        return cls(**{**known, **values, **given})
    except (TypeError, ValueError, ImportError) as error:
        raise _refusal(cls, recipe, section, error) from None


def _refusal(cls: type, recipe: Recipe, section: str, error: Exception) -> UserError:
    said = reason_of(error, None)
    return UserError(f"{recipe.path}: {cls.__name__} refuses {section}: {said}")


def _kinds(hint: Any) -> set[type]:
    """The types that a recipe may give for an annotation. The config classes do not look
    themselves: a word for a number would come to light in the middle of the training."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return set().union(*map(_kinds, options))
    if origin is typing.Literal:
        return {type(option) for option in options}
    if hint is Any:
        return set(TYPE_NAMES)
    kind = origin or hint
    kind = str if issubclass(kind, Enum) else kind
    # A whole number is a number; and TRL takes true and false for some of its words.
    return {kind} | {float: {int}, str: {bool}}.get(kind, set())


def sft_config(recipe: Recipe, output: Path) -> SFTConfig:
    """TRL's SFTConfig of the recipe."""
    from trl import SFTConfig

    ours = {"output_dir": str(output), "seed": recipe.seed, "use_cpu": _no_gpu()}
    if recipe.data.curriculum == "easy_to_hard":
        ours["train_sampling_strategy"] = "sequential"
    return _config(SFTConfig, recipe, "sft", {**_SFT_DEFAULTS, **ours})


def grpo_config(recipe: Recipe, output: Path, max_tokens: int | None = None) -> GRPOConfig:
    """TRL's GRPOConfig of the recipe, with the weights of ``rewards.reward.reward_functions``.

    ``max_tokens`` limits completions where the recipe sets no ``max_completion_length``.
    """
    from trl import GRPOConfig

    check_reward(recipe.reward, str(recipe.path))
    ours = {
        "output_dir": str(output),
        "seed": recipe.seed,
        "use_cpu": _no_gpu(),
        "reward_weights": reward_weights(recipe.reward),
        "shuffle_dataset": recipe.data.curriculum == "mixture",
        "use_vllm": recipe.fast_inference,
        **({"max_completion_length": max_tokens} if max_tokens else {}),
    }
    if recipe.lora is None and recipe.grpo.get("beta") and recipe.dtype != "float32":
        # Of the reference of the KL, which TRL loads itself, in float32 unless told; it then warns
        # that they are of no use to the model, which it is given.
        ours["model_init_kwargs"] = {"dtype": recipe.dtype}
    return _config(GRPOConfig, recipe, "grpo", {**_GRPO_DEFAULTS, **ours})


def lora_config(recipe: Recipe) -> LoraConfig | None:
    """PEFT's LoraConfig of the recipe; None for full fine-tuning."""
    if recipe.lora is None:
        return None
    from peft import LoraConfig

    given = dict(recipe.lora)
    targets = given.get("target_modules")
    if isinstance(targets, str) and targets in TARGETS:
        given["target_modules"] = list(TARGETS[targets])
    return _config(LoraConfig, replace(recipe, lora=given), "lora", {"task_type": "CAUSAL_LM"})


def checkpointing(recipe: Recipe, stage: str) -> bool:
    """Whether a stage's activations are recomputed to save memory."""
    return bool(getattr(recipe, stage).get("gradient_checkpointing", False))


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _check_training(recipe: Recipe, section: str, config: Any) -> None:
    """Raise UserError for what a trainer would find out only when it trains: an optimizer or a
    schedule that cannot be made, no step to take, a measurement on nothing."""
    import torch
    from transformers import Trainer, get_scheduler

    for key, never in _EVALUATES.items():
        if getattr(config, key) != never:
            raise UserError(
                f"{recipe.path}: {section}.{key} cannot be set; the trainers have no eval set, and "
                "monitor: {every: ...} measures on val"
            )
    if config.max_steps == 0 or (config.max_steps < 0 and config.num_train_epochs <= 0):
        key = "num_train_epochs" if config.max_steps else "max_steps"
        raise UserError(f"{recipe.path}: {section}.{key} must be above 0, or nothing is trained")
    config = copy.copy(config)
    if config.optim not in _PLAIN:
        config.optim = "adamw_torch"
    steps = config.max_steps if config.max_steps > 0 else 1000
    warm = config.get_warmup_steps(steps)
    try:
        made, given = Trainer.get_optimizer_cls_and_kwargs(config)
        schedule = get_scheduler(
            config.lr_scheduler_type,
            made([torch.nn.Parameter(torch.zeros(1))], **given),
            num_warmup_steps=warm,
            num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
        for rate in getattr(schedule, "lr_lambdas", ()):
            rate((warm + steps) // 2)  # its own arguments, which warming up does not ask for
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _refusal(type(config), recipe, section, error) from None


def prompts_together(config: Any) -> int:
    """Prompts that GRPO answers at a time, of which a training needs as many at least."""
    return config.generation_batch_size // config.num_generations


def check_settings(recipe: Recipe) -> None:
    """Raise UserError where TRL, PEFT or torch would refuse the recipe or one of its arms."""
    check_dtype(recipe.dtype)
    for each in (recipe, *map(recipe.for_arm, recipe.all_arms)):
        _check_training(each, "sft", sft_config(each, Path("unused")))
        _check_training(each, "grpo", grpo_config(each, Path("unused")))
    lora_config(recipe)
    _check_monitor(recipe)


def _check_monitor(recipe: Recipe) -> None:
    """Raise UserError where a recipe names a symptom to stop at, or a reporter, that does not
    exist."""
    symptoms = [symptom.name for symptom in SYMPTOMS]
    for name in recipe.monitor.stop:
        if name not in symptoms:
            raise UserError(
                f"{recipe.path}: monitor.stop has {name!r}, not one of {', '.join(symptoms)}"
                f"{nearest(name, symptoms)}"
            )
    for section in ("sft", "grpo"):
        names = getattr(recipe, section).get("report_to") or ()
        for name in [names] if isinstance(names, str) else names:
            _check_reporter(f"{recipe.path}: {section}.report_to", name)


def _check_reporter(key: str, name: Any) -> None:
    from transformers.integrations import (
        get_available_reporting_integrations,
        get_reporting_integration_callbacks,
    )

    if not isinstance(name, str):
        raise UserError(f"{key} must be a name or a list of names, not {name!r:.80}")
    if name in ("none", "all") or name in get_available_reporting_integrations():
        return
    try:
        get_reporting_integration_callbacks([name])
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    raise UserError(
        f"{key}: {name} is not installed; `.venv/bin/pip install {name}`, or leave the key out "
        "(log.jsonl has every signal)"
    )
