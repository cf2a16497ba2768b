"""The recipe's ``sft``, ``grpo`` and ``lora`` sections as TRL and PEFT config objects.

The sections are those classes' own arguments, unchanged. Defaults that TRL would choose differently
from one version to the next, or for another machine, are set here and only here.
"""

from __future__ import annotations

import copy
import math
import types
import typing
from collections.abc import Collection, Iterable
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, brief, reason_of, require
from data.common.fields import TYPE_NAMES, check_keys, check_limits, nearest
from data.recipe import Recipe, explained, load_recipe
from data.run import BASE
from data.sections import RewardSection, SamplingSection
from pipeline.health.symptoms import SYMPTOMS
from pipeline.train.backend import is_unsloth_wanted
from pipeline.train.limits import NOT_SET, Arguments, check_together, check_value, no_gpu
from pipeline.train.vllm import with_vllm
from rewards.reward import check_reward, reward_weights

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import GRPOConfig, SFTConfig

_TRAINER_DEFAULTS: Arguments = {
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
    # Balancing the load of experts is no part of the reward, and fails for some families.
    "router_aux_loss_coef": 0.0,
}
_SFT_DEFAULTS: Arguments = {
    **_TRAINER_DEFAULTS,
    "completion_only_loss": True,
    "max_length": None,  # nothing is cut; pipeline.model.lengths finds texts that are too long
}
_GRPO_DEFAULTS: Arguments = {
    **_TRAINER_DEFAULTS,
    "beta": 0.0,
    "temperature": 1.0,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "mask_truncated_completions": False,
    "num_completions_to_print": 0,  # log_completions keeps them in tables
}
#: Names for the layers that get LoRA, as most decoders call them.
TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
TARGETS["all"] = (*TARGETS["attention"], *TARGETS["mlp"])
#: Optimizers made of weights and config alone. Others ask for a package, a GPU or the model, and
#: AdamW stands in for them where only rates and the schedule are checked.
_SIMPLE_OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd",
)  # fmt: skip


def sft_config(recipe: Recipe, output: Path) -> SFTConfig:
    """TRL's SFTConfig of the recipe."""
    from trl import SFTConfig

    ours = {"output_dir": str(output), "seed": recipe.seed, "use_cpu": no_gpu()}
    return _config(SFTConfig, str(recipe.path), "sft", recipe.sft, {**_SFT_DEFAULTS, **ours})


def grpo_config(recipe: Recipe, output: Path, max_tokens: int | None = None) -> GRPOConfig:
    """TRL's GRPOConfig of the recipe, with the weights of ``rewards.reward.reward_functions``.

    ``max_tokens`` limits completions where the recipe sets no ``max_completion_length``.
    """
    from trl import GRPOConfig

    check_reward(recipe.reward, str(recipe.path))
    ours = {
        "output_dir": str(output),
        "seed": recipe.seed,
        "use_cpu": no_gpu(),
        "reward_weights": reward_weights(recipe.reward),
    }
    if max_tokens:
        ours["max_completion_length"] = max_tokens
    if recipe.lora is None and recipe.grpo.get("beta") and recipe.dtype != "float32":
        # TRL loads the reference of the KL itself, in float32 unless told. Its warning that these
        # arguments are of no use speaks of the trained model, which is handed over.
        ours["model_init_kwargs"] = {"dtype": recipe.dtype}
    return _config(GRPOConfig, str(recipe.path), "grpo", recipe.grpo, {**_GRPO_DEFAULTS, **ours})


def lora_config(lora: Arguments | None, source: str) -> LoraConfig | None:
    """PEFT's LoraConfig of the section; None for full fine-tuning."""
    if lora is None:
        return None
    from peft import LoraConfig

    targets = lora.get("target_modules")
    if isinstance(targets, str) and targets in TARGETS:
        lora = {**lora, "target_modules": list(TARGETS[targets])}
    return _config(LoraConfig, source, "lora", lora, {"task_type": "CAUSAL_LM"})


def check_settings(recipe: Recipe) -> None:
    """Raise UserError where TRL, PEFT or torch would refuse the recipe or one of its arms."""
    path = recipe.path
    explained(path, lambda file: _check_settings(recipe if file == path else load_recipe(file)))


def _check_settings(recipe: Recipe) -> None:
    from transformers.integrations import get_available_reporting_integrations

    source = str(recipe.path)
    check_limits(recipe, f"{source}: ")  # of one that no file was read for, too
    for arm in (BASE, *recipe.all_arms):
        each = recipe.for_arm(arm)
        each = with_vllm(each, is_unsloth_wanted(each.backend))
        try:
            _check_training(source, "sft", sft_config(each, Path("unused")))
            grpo = grpo_config(each, Path("unused"))
            _check_training(source, "grpo", grpo)
            require(
                recipe.lora is None or not grpo.sync_ref_model,
                f"{source}: grpo.sync_ref_model needs lora: null; an adapter's reference is its "
                "base",
            )
            _check_groups(source, each.reward, each.sampling, each.backend, grpo)
        except UserError as error:
            if arm == BASE:
                raise
            raise UserError(f"{error} (it stands in arms.{arm.partition('.')[0]})") from None
    lora_config(recipe.lora, source)
    _check_known(f"{source}: monitor.stop", recipe.monitor.stop, [one.name for one in SYMPTOMS])
    reporters = ["none", "all", *get_available_reporting_integrations()]
    for section, given in (("sft", recipe.sft), ("grpo", recipe.grpo)):
        names = given.get("report_to") or []
        names = names if isinstance(names, list) else [names]
        _check_known(f"{source}: {section}.report_to", names, reporters)


def _check_groups(
    source: str, reward: RewardSection, sampling: SamplingSection | None, backend: str, args: Any
) -> None:
    """Raise UserError where reward or ``sampling`` cannot act: what TRL makes of a group's rewards
    undoes it, another draws than our sampler, or its answers do not fit the steps."""
    from pipeline.train.rollouts import hindrance

    require(
        reward.shape != "passk" or args.scale_rewards != "group",
        f"{source}: the reward 'passk' needs grpo.scale_rewards: batch (or none): divided by its "
        "own group's spread it is 'binary'",
    )
    if not sampling:
        return
    found = hindrance(args)
    if not found and is_unsloth_wanted(backend):
        found = "Unsloth (backend: trl trains without)"
    require(
        not found,
        f"{source}: a sampling section needs our own sampler, which does not draw with {found}; "
        "leave one of the two out",
    )
    if (most := sampling.answers) is None:
        return
    once = args.generation_batch_size
    steps = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    needed = math.ceil(most // once * steps)
    where = f"{source}: sampling.answers ({most})"
    require(most >= once, f"{where} must be at least {once}, which a generation draws")
    require(
        args.max_steps >= needed,
        f"{where} need grpo.max_steps of {needed} or more where no group is drawn again, not "
        f"{args.max_steps}",
    )


def _check_known(where: str, names: Iterable[Any], known: Collection[str]) -> None:
    """Raise UserError where a name is not a known one, such as a reporter that is not installed."""
    for name in names:
        near = nearest(str(name), known)
        require(name in known, f"{where} has {name!r:.80}, not one of {', '.join(known)}{near}")


def _config(
    cls: type[Any], source: str, section: str, given: Arguments, defaults: Arguments
) -> Any:
    """An object of a library's config class from a section.

    Raises:
        UserError: naming the key that is ours, unknown or of the wrong type; or what TRL says.
    """
    library = next(one for one in cls.__mro__ if one.__module__.startswith(("trl.", "peft.")))
    known = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(library)
        if f.init
    }
    hints = typing.get_type_hints(library)
    for key, value in given.items():
        where = f"{source}: {section}.{key}"
        if key in NOT_SET:
            raise UserError(f"{where} cannot be set; {NOT_SET[key]}")
        check_keys([key], known.keys() - NOT_SET.keys(), source, f"{section}.")
        kinds = _kinds(hints[key]) | ({bool} if key == "scale_rewards" else set())
        if type(value) not in kinds:
            kinds -= {int} if float in kinds else set()
            names = " or ".join(n for kind, n in TYPE_NAMES.items() if kind in kinds) or "left out"
            raise UserError(f"{where} must be {names}, not {value!r}")
        parts = set[type]().union(*map(_parts, (hints[key], *typing.get_args(hints[key]))))
        if isinstance(value, list) and not parts.issuperset(map(type, value)):
            raise UserError(f"{where} has parts of another type than it must: {brief(value)}")
        check_value(where, section, key, value)
    try:
        check_together(source, section, {**defaults, **given})
        # torch takes no whole number beside a broken one.
        betas = {key: float(given[key]) for key in ("adam_beta1", "adam_beta2") if key in given}
        # All arguments explicitly: Unsloth gives its own version of a class other defaults.
        return cls(**{**known, **defaults, **given, **betas})
    except (TypeError, ValueError, LookupError, ImportError, OSError) as error:
        raise _refusal(cls, source, section, error) from None


def _refusal(cls: type, source: str, section: str, error: Exception) -> UserError:
    return UserError(f"{source}: {cls.__name__} refuses {section}: {reason_of(error, None)}")


def _kinds(hint: Any) -> set[type]:
    """The types that a recipe may give for an annotation. The config classes do not check: a word
    in place of a number would fail in the middle of the training."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = set[type]().union(*map(_kinds, options))
        return kinds - {str} if dict in kinds else kinds  # as text, for command lines
    if origin is typing.Literal:
        return {type(option) for option in options}
    if hint is Any:
        return set(TYPE_NAMES)
    kind: type = origin or hint
    if issubclass(kind, Enum | str):
        return {str}
    return {float, int} if kind is float else {kind}


def _parts(hint: Any) -> set[type]:
    """The types of the parts of a list, where the annotation is one of lists."""
    return set[type]().union(
        *(map(_kinds, typing.get_args(hint)) if typing.get_origin(hint) is list else ())
    )


def _check_training(source: str, section: str, config: Any) -> None:
    """Raise UserError for mistakes that a trainer would find only as it trains: an optimizer or a
    schedule that cannot be made, no step to take."""
    import torch
    from transformers import Trainer, get_scheduler

    if config.max_steps == 0 or (config.max_steps < 0 and config.num_train_epochs <= 0):
        key = "num_train_epochs" if config.max_steps else "max_steps"
        raise UserError(f"{source}: {section}.{key} must be above 0, or nothing is trained")
    config = copy.copy(config)
    if config.optim not in _SIMPLE_OPTIMIZERS:
        config.optim = "adamw_torch"
    steps = config.max_steps if config.max_steps > 0 else 1000
    warm = config.get_warmup_steps(steps)
    try:
        optimizer, arguments = Trainer.get_optimizer_cls_and_kwargs(config)
        schedule = get_scheduler(
            config.lr_scheduler_type,
            optimizer([torch.nn.Parameter(torch.zeros(1))], **arguments),
            num_warmup_steps=warm,
            num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
        for rate in getattr(schedule, "lr_lambdas", ()):
            rate((warm + steps) // 2)  # reads the schedule's own arguments, unlike warming up
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _refusal(type(config), source, section, error) from None
