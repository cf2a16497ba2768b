"""The sizes of well-known base models, by name, without the hub and without weights."""

from __future__ import annotations

from typing import Any

#: Arguments of a config class of transformers.
Fields = dict[str, Any]
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads")  # fmt: skip
#: Values that the models of a family share, beside the defaults of their config class.
_QWEN2: Fields = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": True}
_UNTIED: Fields = {"model_type": "qwen2", "vocab_size": 152_064, "tie_word_embeddings": False}
_QWEN3: Fields = {**_QWEN2, "model_type": "qwen3", "head_dim": 128}
_LLAMA: Fields = {**_QWEN2, "model_type": "llama", "vocab_size": 128_256, "head_dim": 64}
_GEMMA: Fields = {"model_type": "gemma3_text", "vocab_size": 262_144, "head_dim": 256}
_SMOLLM2: Fields = {**_LLAMA, "vocab_size": 49_152}
_SMOLLM3: Fields = {**_QWEN2, "model_type": "smollm3", "vocab_size": 128_256}
_LFM2: Fields = {
    "model_type": "lfm2", "vocab_size": 65_536, "tie_word_embeddings": True,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}  # fmt: skip

#: By name the family and ``_SIZES``. The numbers are those of each config.json on the hub.
_FAMILIES: dict[str, tuple[Fields, tuple[int, ...]]] = {
    "qwen2.5-0.5b": (_QWEN2, (896, 4864, 24, 14, 2)),
    "qwen2.5-1.5b": (_QWEN2, (1536, 8960, 28, 12, 2)),
    "qwen2.5-3b": (_QWEN2, (2048, 11008, 36, 16, 2)),
    "qwen2.5-7b": (_UNTIED, (3584, 18944, 28, 28, 4)),
    "qwen3-0.6b": (_QWEN3, (1024, 3072, 28, 16, 8)),
    "qwen3-1.7b": (_QWEN3, (2048, 6144, 28, 16, 8)),
    "qwen3-4b": (_QWEN3, (2560, 9728, 36, 32, 8)),
    "llama-3.2-1b": (_LLAMA, (2048, 8192, 16, 32, 8)),
    "llama-3.2-3b": ({**_LLAMA, "head_dim": 128}, (3072, 8192, 28, 24, 8)),
    "gemma-3-270m": (_GEMMA, (640, 2048, 18, 4, 1)),
    "gemma-3-1b": (_GEMMA, (1152, 6912, 26, 4, 1)),
    "smollm2-135m": (_SMOLLM2, (576, 1536, 30, 9, 3)),
    "smollm2-360m": (_SMOLLM2, (960, 2560, 32, 15, 5)),
    "smollm2-1.7b": (_SMOLLM2, (2048, 8192, 24, 32, 32)),
    "smollm3-3b": (_SMOLLM3, (2048, 11008, 36, 16, 4)),
    "lfm2.5-1.2b": (_LFM2, (2048, 12288, 16, 32, 8)),
}
#: The arguments of each model's config class, ``model_type`` among them.
KNOWN_MODELS: dict[str, Fields] = {
    name: {**family, **dict(zip(_SIZES, sizes, strict=True))}
    for name, (family, sizes) in _FAMILIES.items()
}


def known_model(name: str) -> Fields | None:
    """The config of a model by its name in ``KNOWN_MODELS``, or by its hub id: instruct and coder
    models have the sizes of their base. None where it is none of them."""
    plain = name.rpartition("/")[2].lower()
    plain = plain.removesuffix("-2507").removesuffix("-instruct").removesuffix("-it")
    plain = plain.removesuffix("-base").replace("-coder-", "-")
    return KNOWN_MODELS.get(plain)
