"""The settings that a trainer really holds, read back from what was built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Settings that trainers keep beside their arguments.
_ATTRIBUTES = (
    "beta", "epsilon_low", "epsilon_high", "loss_type", "scale_rewards", "num_generations",
    "num_iterations", "temperature", "top_p", "top_k", "max_completion_length",
    "mask_truncated_completions", "importance_sampling_level", "shuffle_dataset",
    "completion_only_loss", "packing", "padding_free",
)  # fmt: skip


def settings_held(trainer: Any) -> dict[str, Any]:
    """The settings of a TRL trainer, JSON-able: ``args`` are its arguments, the others say what it
    made of them."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    modules = list(model.modules())
    held: dict[str, Any] = {
        "trainer": type(trainer).__name__,
        "model": type(inner).__name__,
        "attention": model.config._attn_implementation,
        "use_cache": getattr(model.config, "use_cache", None),
        "parameters": sum(map(_numbers_in, weights)),
        "trainable_parameters": sum(map(_numbers_in, trained)),
        "dtype": _dtypes(weights),
        "trainable_dtype": _dtypes(trained),
        "gradient_checkpointing": any(getattr(m, "gradient_checkpointing", False) for m in modules),
        "dropout": sorted({m.p for m in modules if isinstance(m, torch.nn.Dropout) and m.p}),
        **{key: getattr(trainer, key) for key in _ATTRIBUTES if hasattr(trainer, key)},
    }
    for name, adapter in getattr(model, "peft_config", {}).items():
        held[f"lora.{name}"] = {k: v for k, v in adapter.to_dict().items() if v is not None}
    if trainer.optimizer is not None:
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        held["optimizer"] = type(optimizer).__name__
        held["optimizer.groups"] = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            | {"weights": sum(map(_numbers_in, group["params"]))}
            for group in optimizer.param_groups
        ]
        held["scheduler"] = type(getattr(trainer.lr_scheduler, "scheduler", None)).__name__
    generation = getattr(trainer, "generation_config", None)
    if generation is not None:
        held |= {f"generation.{key}": v for key, v in generation.to_diff_dict().items()}
    return {**_plain(held), "args": _plain(trainer.args.to_sanitized_dict())}


def _dtypes(weights: list[Tensor]) -> list[str]:
    return sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})


def _numbers_in(weight: Tensor) -> int:
    """Numbers in a weight, also where ZeRO-3 keeps them elsewhere."""
    return getattr(weight, "ds_numel", weight.numel())


def _plain(value: Any) -> Any:
    """``value`` as JSON has it, keys sorted."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in sorted(value.items(), key=str)}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    return str(value)
