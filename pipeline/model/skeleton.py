"""A model without its weights: what its config, and an adapter on it, say of its size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from data.common.errors import UserError, reason_of, require
from pipeline.memory.arithmetic import ModelShape
from pipeline.memory.shapes import known_model
from pipeline.model.load import is_local, read_config

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedModel


def config_of(model: str) -> PreTrainedConfig:
    """A model's config from its folder or the hub, and where the hub is not at hand from our own
    table of well-known models.

    Raises:
        UserError: when there is none.
    """
    from transformers import AutoConfig

    try:
        return read_config(model)
    except UserError:
        known = None if is_local(model) else known_model(model)
        if known is None:
            raise
        return AutoConfig.for_model(**known)


def skeleton(config: PreTrainedConfig, model: str) -> PreTrainedModel:
    """The network of a config on torch's meta device.

    Raises:
        UserError: when transformers has no causal language model of this kind, or cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UserError(f"{model} cannot be trained so: {reason_of(error)}") from None
    except Exception as error:  # a network may run into anything that its config lacks
        raise UserError(
            f"{model} cannot be trained so: transformers builds no network of its config.json "
            f"({type(error).__name__}: {reason_of(error)})"
        ) from None


def model_shape(model: str, lora: LoraConfig | None) -> tuple[ModelShape, int]:
    """The shape of a model, and the parameters of a LoRA on it: both are counted, so that they are
    right for any architecture. All tensors are on torch's meta device.

    Raises:
        UserError: see ``skeleton``; when peft refuses it, or its config does not say its sizes.
    """
    from peft import get_peft_model
    from torch.nn import Linear

    config, adapters = config_of(model), 0
    text = config.get_text_config(decoder=True)
    network = skeleton(config, model)
    parameters, head = network.num_parameters(), network.get_output_embeddings()
    linears = [one for one in network.modules() if isinstance(one, Linear) and one is not head]
    quantisable = sum(one.in_features * one.out_features for one in linears)
    try:
        if lora:
            trained = get_peft_model(network, lora).parameters()
            adapters = sum(weight.numel() for weight in trained if weight.requires_grad)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{model} cannot be trained so: {reason_of(error)}") from None
    layers = _number(text, "num_hidden_layers")
    hidden = _number(text, "hidden_size")
    vocabulary = _number(text, "vocab_size")
    require(
        layers and hidden and vocabulary,
        f"{model} cannot be planned: its config.json ({text.model_type}) does not say "
        "num_hidden_layers, hidden_size and vocab_size",
    )
    widths = [_widths(one, hidden) for one in _by_layer(text)]
    query, key, mlp = (math.ceil(sum(width) / len(widths)) for width in zip(*widths, strict=True))
    shape = ModelShape(
        parameters=parameters,
        quantisable=quantisable,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        query=query,
        key=key,
        mlp=mlp,
    )
    return shape, adapters


def _by_layer(text: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config of each layer where they differ, else the one of all."""
    return list(text.per_layer_config) if text.is_heterogeneous else [text]


def _widths(layer: PreTrainedConfig, hidden: int) -> tuple[int, int, int]:
    """Widths of all queries, all keys and the feed-forward layer; without heads, as in a state
    space model, there are no keys, and the layer works on a width like the hidden one."""
    heads = _number(layer, "num_attention_heads")
    mlp = _number(layer, "intermediate_size") or 4 * hidden
    if not heads:
        return hidden, 0, mlp
    each = _number(layer, "head_dim") or hidden // heads
    return each * heads, each * (_number(layer, "num_key_value_heads") or heads), mlp


def _number(config: PreTrainedConfig, name: str) -> int:
    """A number of a config, on average where it is a list with one for each layer; 0 where there is
    none."""
    value = getattr(config, name, None) or 0
    return math.ceil(sum(value) / len(value)) if isinstance(value, list | tuple) else value
