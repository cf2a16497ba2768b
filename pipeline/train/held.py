"""The settings that a trainer really holds, read back from what was built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

#: What the trainers hold beside their arguments, where they have it.
_ATTRIBUTES = (
    "beta",
    "epsilon_low",
    "epsilon_high",
    "loss_type",
    "scale_rewards",
    "num_generations",
    "num_iterations",
    "temperature",
    "top_p",
    "top_k",
    "max_completion_length",
    "mask_truncated_completions",
    "importance_sampling_level",
    "shuffle_dataset",
    "completion_only_loss",
    "packing",
    "padding_free",
)


def settings_held(trainer: Trainer) -> dict[str, Any]:
    """The settings that a trainer really holds, read back from what was built, JSON-able: ``args``
    are its arguments, the others say what it made of them."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    held: dict[str, Any] = {
        "trainer": type(trainer).__name__,
        "model": type(inner).__name__,
        "attention": model.config._attn_implementation,
        "use_cache": getattr(model.config, "use_cache", None),
        "parameters": sum(map(_size, weights)),
        "trainable_parameters": sum(map(_size, trained)),
        "dtype": sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}),
        "trainable_dtype": sorted({str(w.dtype).removeprefix("torch.") for w in trained}),
        "gradient_checkpointing": any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        ),
        "dropout": sorted(
            {one.p for one in model.modules() if isinstance(one, torch.nn.Dropout) and one.p}
        ),
    }
    for name, adapter in getattr(model, "peft_config", {}).items():
        held[f"lora.{name}"] = _plain(
            {key: value for key, value in adapter.to_dict().items() if value is not None}
        )
    if trainer.optimizer is not None:
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        held["optimizer"] = type(inner).__name__
        held["optimizer.groups"] = [
            {key: _plain(value) for key, value in group.items() if key not in ("params", "lr")}
            | {"weights": sum(map(_size, group["params"]))}
            for group in inner.param_groups
        ]
        held["scheduler"] = type(getattr(trainer.lr_scheduler, "scheduler", None)).__name__
    for key in _ATTRIBUTES:
        if hasattr(trainer, key):
            held[key] = _plain(getattr(trainer, key))
    generation = getattr(trainer, "generation_config", None)
    if generation is not None:
        held |= {f"generation.{k}": _plain(v) for k, v in generation.to_diff_dict().items()}
    return dict(sorted(held.items())) | {"args": _plain(trainer.args.to_sanitized_dict())}


def _size(weight: torch.Tensor) -> int:
    """Numbers in a weight, also where ZeRO-3 keeps them elsewhere."""
    return getattr(weight, "ds_numel", weight.numel())


def _plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in sorted(value.items(), key=str)}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    return str(value)
