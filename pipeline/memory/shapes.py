"""The architectures of well-known base models, by name, without the hub and without weights.

From such a config a model of the true size can be made with random weights, and its memory planned
(``pipeline.plan``), where the hub cannot be reached.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError
from data.common.fields import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: ``hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads``.
Sizes = tuple[int, int, int, int, int]
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_MILLION = {"rope_type": "default", "rope_theta": 1_000_000.0}
#: What the models of a family share, beside the model type and the defaults of its config class.
_QWEN2 = dict(
    model_type="qwen2",
    vocab_size=151_936,
    tie_word_embeddings=True,
    max_position_embeddings=32_768,
    rope_parameters=_MILLION,
)
_QWEN3 = {**_QWEN2, "model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40_960}
_LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA = dict(
    model_type="llama",
    vocab_size=128_256,
    tie_word_embeddings=True,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position_embeddings=131_072,
    rope_parameters=_LLAMA_ROPE,
)
_GEMMA = dict(
    model_type="gemma3_text",
    vocab_size=262_144,
    head_dim=256,
    sliding_window=512,
    max_position_embeddings=32_768,
)
_SMOLLM = dict(
    model_type="smollm3",
    vocab_size=128_256,
    tie_word_embeddings=True,
    max_position_embeddings=65_536,
    rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0},
)

#: Of each model its sizes and the rest. The numbers are those of its config.json on the hub.
SHAPES: dict[str, tuple[Sizes, dict[str, Any]]] = {
    "qwen2.5-0.5b": ((896, 4864, 24, 14, 2), _QWEN2),
    "qwen2.5-1.5b": ((1536, 8960, 28, 12, 2), _QWEN2),
    "qwen2.5-3b": ((2048, 11008, 36, 16, 2), _QWEN2),
    "qwen2.5-7b": (
        (3584, 18944, 28, 28, 4),
        {**_QWEN2, "vocab_size": 152_064, "tie_word_embeddings": False},
    ),
    "qwen3-0.6b": ((1024, 3072, 28, 16, 8), _QWEN3),
    "qwen3-1.7b": ((2048, 6144, 28, 16, 8), _QWEN3),
    "qwen3-4b": ((2560, 9728, 36, 32, 8), _QWEN3),
    "llama-3.2-1b": ((2048, 8192, 16, 32, 8), _LLAMA),
    "gemma-3-1b": ((1152, 6912, 26, 4, 1), _GEMMA),
    "smollm3-3b": ((2048, 11008, 36, 16, 4), _SMOLLM),
}


def config_of(name: str) -> PreTrainedConfig:
    """The config of a model by its name here, or by its hub id: instruct and coder models have the
    sizes of their base. Ids of special tokens are left to the tokenizer that it is used with.

    Raises:
        UserError: when the model is not one of ``SHAPES``.
    """
    from transformers import AutoConfig

    plain = name.rpartition("/")[2].lower()
    plain = plain.removesuffix("-instruct").removesuffix("-it").replace("-coder-", "-")
    if plain not in SHAPES:
        known = ", ".join(SHAPES)
        raise UserError(f"no shape is known of {name!r}, only of {known}{nearest(plain, SHAPES)}")
    sizes, rest = SHAPES[plain]
    return AutoConfig.for_model(**deepcopy(rest), **dict(zip(_SIZES, sizes, strict=True)))
