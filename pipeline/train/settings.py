"""The recipe's ``sft``, ``grpo`` and ``lora`` sections as TRL and PEFT config objects.

The sections are those classes' own arguments, unchanged. Defaults that TRL would choose differently
from one version to the next, or for another machine, are set here and only here.
"""

from __future__ import annotations

import copy
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, brief, reason_of, require
from data.common.fields import TYPE_NAMES, Limit, at_least, check_keys, nearest, one_of
from data.recipe import Recipe
from data.sections import SEEDS
from pipeline.health.symptoms import SYMPTOMS
from pipeline.model.load import check_dtype
from rewards.reward import check_reward, reward_weights

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import GRPOConfig, SFTConfig

#: Free arguments of a library's class.
Arguments = Mapping[str, Any]

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
_NO_EVAL = "the trainers have no eval set, and monitor: {every: ...} measures on val"
_NO_HUB = "training needs no network; `make export` writes a folder to upload"
_LAUNCHED = "LAUNCH=pipeline/accelerate/FILE.yaml says how processes share the work"
#: Arguments that the pipeline sets itself, and those of older versions, with the way out.
_OURS = {
    "output_dir": "the run's folder is the output",
    "reward_weights": "give weights under reward:",
    "multi_objective_aggregation": "a component that does not apply must count 0, not as average",
    "model_init_kwargs": "give model: and dtype: at the top",
    "save_only_model": "a training that is interrupted could not go on",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint by itself",
    "assistant_only_loss": "completion_only_loss, the default, is the same here",
    "dataset_kwargs": "the texts are the recipe's data, by the model's template",
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "eval_on_start", "load_best_model_at_end"),
        _NO_EVAL,
    ),
    **dict.fromkeys(
        (
            "push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_private_repo",
            "hub_always_push", "hub_revision", "push_to_hub_token", "log_completions_hub_repo",
        ),
        _NO_HUB,
    ),
    **dict.fromkeys(
        (
            "deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config",
            "ddp_backend", "local_rank",
        ),
        _LAUNCHED,
    ),
    **dict.fromkeys(("eos_token", "pad_token"), "the model's tokenizer and template say them"),
    "ignore_data_skip": "a training that was interrupted goes on with the problems that are left",
    "max_prompt_length": "prompts are never cut: max_seq_length at the top bounds a prompt with "
    "its answer, max_completion_length an answer",
    "max_seq_length": "it belongs at the top of the recipe",
    "warmup_ratio": "warmup_steps below 1 is a share of the steps",
    "group_by_length": "train_sampling_strategy: group_by_length does it",
    "chat_template_path": "answers are sampled by the model's own template",
    **dict.fromkeys(
        ("use_transformers_paged", "use_transformers_continuous_batching"),
        "answers are drawn by our own sampler, or by vLLM (use_vllm)",
    ),
}  # fmt: skip


def _is_pattern(names: Any) -> bool:
    try:
        re.compile(names if isinstance(names, str) else "")
    except re.error:
        return False
    return True


def _are_above_0(numbers: Arguments) -> bool:
    return all(type(one) in (int, float) and one > 0 for one in numbers.values())


_ABOVE_0 = Limit(lambda value: value > 0, "above 0")
_UNMERGED = Limit(lambda value: not value, "left out, since it cannot be merged into a model")
_PATTERN = Limit(_is_pattern, "a name or a regular expression")
_SHARE = Limit(lambda value: 0 <= value <= 1, "a share, 0 to 1")
_SOME = Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")
_BELOW_1 = Limit(lambda value: 0 <= value < 1, "0 to below 1")
_PORT = Limit(lambda value: 0 < value < 65536, "a port, 1 to 65535")
#: Values that the libraries would take, and then fail on or train nonsense; by key, or by section
#: and key where that decides.
_LIMITS: Mapping[str, Limit] = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size", "per_device_eval_batch_size", "pad_to_multiple_of",
            "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
            "num_iterations", "num_generations_eval", "max_completion_length", "max_new_tokens",
            "max_length", "ref_model_sync_steps", "save_total_limit", "dataset_num_proc",
            "dataloader_prefetch_factor", "ddp_timeout", "ddp_bucket_cap_mb",
            "vllm_tensor_parallel_size", "vllm_max_model_length", "qalora_group_size",
        ),
        at_least(1),
    ),
    "num_generations": at_least(2),
    "r": Limit(lambda rank: 0 < rank <= 8192, "1 to 8192"),
    **dict.fromkeys(
        (
            "max_grad_norm", "neftune_noise_alpha", "warmup_steps", "beta", "epsilon_high",
            "entropy_target", "top_k", "off_policy_mask_threshold", "num_completions_to_print",
            "dataloader_num_workers", "router_aux_loss_coef",
        ),
        at_least(0),
    ),
    **dict.fromkeys(
        (
            "temperature", "repetition_penalty", "logging_steps", "save_steps",
            "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_k_neg",
            "vespo_lambda_pos", "vespo_lambda_neg", "vllm_server_timeout", "lora_alpha",
        ),
        _ABOVE_0,
    ),
    "delta": Limit(lambda value: value > 1, "above 1, or no token would be learned from"),
    **dict.fromkeys(
        ("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap"),
        Limit(lambda value: value >= 1, "1 or more, the weight of a sample of the model itself"),
    ),
    **dict.fromkeys(
        (
            "min_p", "ref_model_mixup_alpha", "weight_decay", "epsilon", "entropy_coef",
            "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta",
            "vllm_importance_sampling_clip_min",
        ),
        _SHARE,
    ),
    **dict.fromkeys(
        (
            "learning_rate", "adam_epsilon", "top_p", "top_entropy_quantile",
            "vllm_gpu_memory_utilization",
        ),
        _SOME,
    ),
    **dict.fromkeys(("lora_dropout", "adam_beta1", "adam_beta2"), _BELOW_1),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), _PORT),
    **dict.fromkeys(("seed", "data_seed"), SEEDS),
    "label_smoothing_factor": Limit(lambda value: value == 0, "0, since TRL's losses have none"),
    "activation_offloading": Limit(
        lambda value: not value or not _no_gpu(), "false where there is no GPU"
    ),
    "grpo.remove_unused_columns": Limit(
        lambda value: not value, "false, since the reward reads the column of problems"
    ),
    "grpo.loss_type": one_of(
        "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"
    ),
    "sft.loss_type": one_of("nll", "chunked_nll", "dft"),
    "importance_sampling_level": one_of("token", "sequence"),
    "scale_rewards": one_of("group", "batch", "none", True, False),
    "vllm_mode": one_of("colocate", "server"),
    "vllm_model_impl": one_of("vllm", "transformers"),
    "vllm_importance_sampling_mode": one_of(
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ),
    "truncation_mode": one_of("keep_start", "keep_end"),
    "packing_strategy": Limit(
        lambda value: value in ("bfd", "bfd_split"), "bfd or bfd_split, which cut no example"
    ),
    "save_strategy": one_of("steps", "epoch", "no"),
    "train_sampling_strategy": one_of("random", "sequential", "group_by_length"),
    "torch_compile_mode": one_of("default", "reduce-overhead", "max-autotune"),
    "dataloader_multiprocessing_context": one_of("fork", "spawn", "forkserver"),
    "log_level": one_of("debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": one_of("debug", "info", "warning", "error", "critical", "passive"),
    "include_num_input_tokens_seen": one_of("all", "non_padding", "no", True, False),
    **dict.fromkeys(("num_beams", "num_return_sequences"), one_of(1)),
    "do_sample": one_of(True),
    "torch_compile_backend": one_of("inductor", "eager", "aot_eager", "cudagraphs"),
    "gradient_checkpointing_kwargs": Limit(
        lambda given: {"use_reentrant", "preserve_rng_state"}.issuperset(given),
        "of use_reentrant and preserve_rng_state",
    ),
    "chat_template_kwargs": Limit(
        {"tokenize", "add_generation_prompt", "return_dict", "conversation", "padding"}.isdisjoint,
        "variables of the template alone, such as enable_thinking",
    ),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "vllm_structured_outputs_regex"), _PATTERN
    ),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), Limit(_are_above_0, "numbers above 0")),
    "peft_type": one_of("LORA"),
    "task_type": one_of("CAUSAL_LM"),
    "bias": one_of("none", "all", "lora_only"),
    **dict.fromkeys(
        (
            "alora_invocation_tokens", "layer_replication", "lora_bias", "trainable_token_indices",
            "megatron_config", "velora_config", "use_qalora",
        ),
        _UNMERGED,
    ),
    "inference_mode": Limit(lambda value: not value, "false, or nothing is trained"),
    "init_lora_weights": one_of(  # merging the others gives another model than was trained
        True, False, "gaussian", "orthogonal", "olora", "pissa", "mica"
    ),
}  # fmt: skip
#: Where TRL's annotation allows null and its trainer does not.
_NOT_NULL = ("num_generations", "max_completion_length")
#: Arguments that are of no use, or fail, without another one.
_NEEDS = {
    "packing": "max_length",
    "dataloader_persistent_workers": "dataloader_num_workers",
    "sync_ref_model": "beta",
}
#: Optimizers made of weights and config alone. Others ask for a package, a GPU or the model, and
#: AdamW stands in for them where only rates and the schedule are checked.
_SIMPLE_OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd",
)  # fmt: skip


def sft_config(recipe: Recipe, output: Path) -> SFTConfig:
    """TRL's SFTConfig of the recipe."""
    from trl import SFTConfig

    ours = {"output_dir": str(output), "seed": recipe.seed, "use_cpu": _no_gpu()}
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
        "use_cpu": _no_gpu(),
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
    from transformers.integrations import get_available_reporting_integrations

    check_dtype(recipe.dtype)
    source = str(recipe.path)
    for each in (recipe, *map(recipe.for_arm, recipe.all_arms)):
        _check_training(source, "sft", sft_config(each, Path("unused")))
        grpo = grpo_config(each, Path("unused"))
        _check_training(source, "grpo", grpo)
        require(
            recipe.lora is None or not grpo.sync_ref_model,
            f"{source}: grpo.sync_ref_model needs lora: null; an adapter's reference is its base",
        )
    lora_config(recipe.lora, source)
    _check_known(f"{source}: monitor.stop", recipe.monitor.stop, [one.name for one in SYMPTOMS])
    reporters = ["none", "all", *get_available_reporting_integrations()]
    for section, given in (("sft", recipe.sft), ("grpo", recipe.grpo)):
        names = given.get("report_to") or []
        names = names if isinstance(names, list) else [names]
        _check_known(f"{source}: {section}.report_to", names, reporters)


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
        if key in _OURS:
            raise UserError(f"{where} cannot be set; {_OURS[key]}")
        check_keys([key], known, source, f"{section}.")
        kinds = _kinds(hints[key]) | ({bool} if key == "scale_rewards" else set())
        if type(value) not in kinds:
            kinds -= {int} if float in kinds else set()
            names = " or ".join(n for kind, n in TYPE_NAMES.items() if kind in kinds) or "left out"
            raise UserError(f"{where} must be {names}, not {value!r}")
        parts = set[type]().union(*map(_parts, (hints[key], *typing.get_args(hints[key]))))
        if isinstance(value, list) and not parts.issuperset(map(type, value)):
            raise UserError(f"{where} has parts of another type than it must: {brief(value)}")
        _check_value(where, section, key, value)
    try:
        _check_together(source, section, {**defaults, **given})
        # torch takes no whole number beside a broken one.
        betas = {key: float(given[key]) for key in ("adam_beta1", "adam_beta2") if key in given}
        # All arguments explicitly: Unsloth gives its own version of a class other defaults.
        return cls(**{**known, **defaults, **given, **betas})
    except (TypeError, ValueError, LookupError, ImportError, OSError) as error:
        raise _refusal(cls, source, section, error) from None


def _check_value(where: str, section: str, key: str, value: Any) -> None:
    """Raise UserError where a value, or one inside it, is beyond its limit or no finite number."""
    if isinstance(value, dict):
        for inner, one in value.items():
            _check_value(f"{where}.{inner}", section, str(inner), one)
    for one in value if isinstance(value, list) else [value]:
        require(
            not isinstance(one, int | float) or abs(one) < 1 << 63,  # nan is not
            f"{where} must be a finite number, not {brief(one)}",
        )
    limit = _LIMITS.get(f"{section}.{key}") or _LIMITS.get(key)
    if limit and (value is not None or key in _NOT_NULL):
        require(
            value is not None and limit.holds(value),
            f"{where} must be {limit.words}, not {brief(value)}",
        )


def _check_together(source: str, section: str, given: Arguments) -> None:
    """Raise UserError where an argument lacks one that it needs, or clashes with one, or where
    sampling does not know a setting."""
    for key, other in _NEEDS.items():
        require(
            not given.get(key) or given.get(other),
            f"{source}: {section}.{key} needs {section}.{other}",
        )
    get = given.get
    by_token = str(get("vllm_importance_sampling_mode")).startswith("token_")
    corrected = get("use_vllm") and get("vllm_importance_sampling_correction", True)
    clashes = {
        "loss_type: vespo with use_vllm needs vllm_importance_sampling_mode: token_mask or "
        "token_truncate": get("loss_type") == "vespo" and corrected and not by_token,
        "loss_type: chunked_nll goes without use_liger_kernel, which needs nll": (
            get("loss_type") == "chunked_nll" and get("use_liger_kernel")
        ),
        "padding_free needs packing, or max_length: null": (
            get("padding_free") and get("max_length") and not get("packing")
        ),
        "entropy_coef_min must not be above entropy_coef_max": (
            get("entropy_coef_min", 0) > get("entropy_coef_max", 1)
        ),
    }
    for rule, clash in clashes.items():
        require(not clash, f"{source}: {section}.{rule}")
    words = get("generation_kwargs") or {}
    if isinstance(words, dict):
        from transformers import GenerationConfig

        where = f"{section}.generation_kwargs."
        check_keys(words, vars(GenerationConfig()), source, where)
        GenerationConfig(**words, cache_implementation=given.get("cache_implementation"))


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


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


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


def prompts_together(config: Any) -> int:
    """Prompts that GRPO answers at a time; a training needs at least as many."""
    return config.generation_batch_size // config.num_generations
