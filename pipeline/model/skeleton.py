"""A model without its weights: what its config, and an adapter on it, say of its size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.common.errors import UserError, reason_of
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


def shape_of(network: PreTrainedModel) -> ModelShape:
    """The shape of a skeleton: parameters are counted, so that they are right for any architecture;
    widths are from its config."""
    text = network.config.get_text_config(decoder=True)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    query = head * text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None)
    return ModelShape(
        parameters=network.num_parameters(),
        quantisable=sum(
            module.in_features * module.out_features
            for module in network.modules()
            if hasattr(module, "in_features") and module is not network.get_output_embeddings()
        ),
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        query=query,
        key=head * groups if groups else query,
        mlp=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
    )


def lora_parameters(network: PreTrainedModel, config: LoraConfig | None) -> int:
    """Parameters of the adapters that peft puts on a skeleton, which that spends; 0 for none.

    Raises:
        UserError: when peft refuses this model.
    """
    if config is None:
        return 0
    from peft import get_peft_model

    try:
        adapted = get_peft_model(network, config)
    except ValueError as error:
        raise UserError(f"peft refuses lora for this model: {reason_of(error)}") from None
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
