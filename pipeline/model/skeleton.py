"""A model without its weights: what its config, and an adapter on it, say of its size."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of
from pipeline.memory.arithmetic import Linear, ModelShape, lora_parameters
from pipeline.memory.shapes import known_model
from pipeline.model.load import is_local, read_config

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedModel

_BLOCK = re.compile(r"\.(layers|h|blocks)\.\d+\.")


def config_of(model: str) -> tuple[PreTrainedConfig, str]:
    """A model's config and where it is from: its folder or the hub, and where the hub is not at
    hand our own table of well-known models.

    Raises:
        UserError: when there is none.
    """
    from transformers import AutoConfig

    try:
        return read_config(model), "its config.json"
    except UserError:
        if not is_local(model):
            with suppress(UserError):
                known = AutoConfig.for_model(**deepcopy(known_model(model)))
                return known, "pipeline.memory.shapes, since the hub is not at hand"
        raise


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config without its weights: all tensors are on torch's meta device.

    Raises:
        UserError: when transformers has no causal language model of this kind.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        reason = reason_of(error)
        raise UserError(f"no language model can be made of this config: {reason}") from None


def shape_of(network: PreTrainedModel, name: str = "") -> ModelShape:
    """The shape of a skeleton: parameters and layers counted, so that they are right for any
    architecture; widths of attention from its config."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    text = network.config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    query, key = heads * head, head * (getattr(text, "num_key_value_heads", None) or heads)
    cache = DynamicCache(config=network.config).layers
    norms, float_norms = _norms(network, {"q_norm": query, "k_norm": key})
    return ModelShape(
        name=name or text.model_type,
        parameters=network.num_parameters(),
        linears=_counted(_linears(network)),
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        windows=tuple(
            getattr(layer, "sliding_window", None)
            for layer in cache
            if isinstance(layer, DynamicLayer)
        ),
        heads=heads,
        query=query,
        key=key,
        mlp=_mlp_width(text),
        gated=any(re.search(r"gate_(up_)?proj", name) for name, _ in network.named_parameters()),
        norms=norms // text.num_hidden_layers,
        float_norms=float_norms,
    )


def _linears(network: PreTrainedModel) -> Iterator[Linear]:
    for name, module in network.named_modules():
        if hasattr(module, "in_features") and module is not network.get_output_embeddings():
            yield Linear(name.rpartition(".")[2], module.in_features, module.out_features)


def _counted(linears: Iterator[Linear]) -> tuple[Linear, ...]:
    """Layers of the same name and size as one entry with their number."""
    return tuple(replace(one, count=count) for one, count in Counter(linears).items())


def _norms(network: PreTrainedModel, per_head: Mapping[str, int]) -> tuple[int, bool]:
    """Width of all norms of the layers, and whether they stay in float32 until their end. A norm of
    queries or keys has the weight of one head and runs on all of them."""
    width, floats = 0, False
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and weight is not None and _BLOCK.search(name + "."):
            width += max(weight.numel(), per_head.get(name.rpartition(".")[2], 0))
            floats |= "Gemma" in type(module).__name__
    return width, floats


def _mlp_width(text: Any) -> int:
    """Width of the feed-forward layer; with experts, of those that a token goes to."""
    width = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
    width = max(width) if isinstance(width, list | tuple) else width or 4 * text.hidden_size
    if active := getattr(text, "num_experts_per_tok", None):
        shared = getattr(text, "shared_expert_intermediate_size", None) or 0
        return active * (getattr(text, "moe_intermediate_size", None) or width) + shared
    return width


def adapters_on(
    network: PreTrainedModel, config: LoraConfig | None
) -> tuple[tuple[Linear, ...], int, int]:
    """The layers of a skeleton that get LoRA, its rank, and how many parameters are trained beside,
    as peft puts them on; that spends the skeleton.

    Raises:
        UserError: when peft refuses this model.
    """
    if config is None:
        return (), 0, 0
    from peft import get_peft_model

    try:
        adapted = get_peft_model(network, config)
    except ValueError as error:
        raise UserError(f"peft refuses lora for this model: {reason_of(error)}") from None
    layers = _counted(
        Linear(name.rpartition(".")[2], module.lora_A["default"].in_features, module.out_features)
        for name, module in adapted.named_modules()
        if "default" in getattr(module, "lora_A", ())
    )
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return layers, config.r, max(count - lora_parameters(layers, config.r), 0)
