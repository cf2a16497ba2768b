"""Adapters: written as PEFT lays them out, and merged into the model they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from data.common.errors import UserError
from pipeline.model.load import from_pretrained, write_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

#: An adapter whose change is lost in rounding by more than this changes nothing; the rest of it is
#: of weights near 0.
_ALL = 0.99
#: Rows of each layer that a merge is checked on.
_ROWS = 64


class Merge(TypedDict):
    """What merging did.

    Attributes:
        modules: layers that have an adapter.
        change: norm of the adapter's change over the norm of these layers' weights.
        rounding: norm of what rounding made of the change, over the change's.
    """

    modules: int
    change: float
    rounding: float


def save_adapter(model: PeftModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the LoRA adapter that was trained, not the copy that TRL may hold beside it as the
    reference of its KL. ``weights``: see ``write_model``."""
    model.save_pretrained(str(folder), selected_adapters=["default"], state_dict=weights)


def merge(model: str, adapter: Path, dtype: str, folder: Path) -> Merge:
    """Write ``model`` with an adapter added into its weights of ``dtype``, whatever bits it was
    trained above, and check that the result is base + adapter and not the base.

    Returns:
        Its norms are over up to 64 rows of each layer.

    Raises:
        UserError: when (all but) all of the change is lost in rounding.
        AssertionError: when the merged model is not base + adapter.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    network, tokenizer = from_pretrained(model, dtype)
    adapted: Any = PeftModel.from_pretrained(network, str(adapter))  # forwards to its inner model
    before, wanted = {}, {}
    for module, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            of = getattr(layer, "parameter_name", "weight")  # experts are parameters of one module
            name = f"{module.replace('.base_layer', '')}.{of}"
            weight = getattr(layer.get_base_layer(), of).detach()
            before[name] = _some(weight)
            wanted[name] = _some(_change(layer, weight))
    assert before, f"{adapter} is the adapter of no layer of {model}"
    merged = adapted.merge_and_unload()
    exact = torch.finfo(getattr(torch, dtype)).eps
    squares = torch.zeros(3, dtype=torch.float64)
    for name, rows in before.items():
        change = wanted[name]
        made = _some(merged.get_parameter(name).detach()) - rows
        allowed = 4 * exact * (rows.abs() + change.abs()) + 1e-9
        off = (made - change).abs()
        assert bool((off <= allowed).all()), f"{name} is not base + adapter after merging"
        squares += torch.stack([part.square().sum() for part in (rows, change, made - change)])
    of_base, of_change, of_loss = squares.sqrt().tolist()
    lost = of_loss / of_change if of_change else 0.0
    if lost > _ALL:
        raise UserError(
            f"merging {adapter} into {model} changes nothing: {lost:.0%} of it is lost in rounding "
            f"to {dtype}; train longer, at a higher learning rate, or with dtype: float32"
        )
    write_model(merged, tokenizer, folder)
    return {"modules": len(before), "change": of_change / of_base, "rounding": lost}


def _some(weight: Tensor) -> Tensor:
    """The first rows of a weight [..., row, column] of any layer."""
    return weight.flatten(0, -2)[:_ROWS].double()


def _change(layer: Any, weight: Tensor) -> Tensor:
    """What merging adds to the ``weight`` of a layer with an adapter, before it is rounded."""
    variant = layer.lora_variant.get("default")  # such as DoRA
    if variant is None:
        return layer.get_delta_weight("default").detach()
    return variant.merge_safe(layer, "default", weight).detach() - weight
