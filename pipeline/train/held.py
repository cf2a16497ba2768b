"""What a trainer really holds, read back from what was built: Unsloth puts its own classes and
defaults in the place of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def settings_held(trainer: Any) -> dict[str, Any]:
    """Classes, dtypes and numbers of weights of a TRL trainer, JSON-able; ``args`` are its
    arguments."""
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
