"""Tiny models of many architectures with random weights, and a recipe that trains them in a
second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from data.recipe import Recipe, load_recipe
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.load import write_model
from pipeline.train.training import Training

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 32}
_LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
_TIED = {"tie_word_embeddings": True}
#: Families of causal language models that people train, by their name in transformers, and what
#: they need beside a size; those with experts from ``mixtral`` on, those with another state than
#: keys and values from ``mamba`` on.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16, **_TIED},
    "llama": {},
    # Looks back 16 tokens only in one layer of two.
    "gemma3_text": {
        "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"], **_TIED,
    },
    "smollm3": {},
    "phi3": {},  # has its projections fused
    "qwen2": _TIED,
    "mistral": {"sliding_window": 16},
    "ministral3": {},
    "gemma": {"head_dim": 16, **_TIED},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, **_TIED},
    "phi": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 16},
    "granite": _TIED,
    "cohere2": {"sliding_window": 16, **_TIED},
    "glm4": {"head_dim": 16},
    "stablelm": {},
    "starcoder2": {},
    "exaone4": {},
    "ernie4_5": {},
    "apertus": {},
    "gpt2": _TIED,  # has layers of its own kind
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64, **_TIED},
    "bloom": _TIED,
    "falcon": _TIED,
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": _SHARED,
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "granitemoe": {"num_local_experts": 4, **_TIED},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "deepseek_v3": _LATENT,
    "glm4_moe": {**_LATENT, "head_dim": 8},
    "mamba": {"state_size": 8, **_TIED},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], **_TIED},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32, **_MAMBA, **_TIED,
    },
    "falcon_h1": {"mamba_d_ssm": 64, **_MAMBA},
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "jamba": {
        "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
        "ssm_state_size": 8, "n_groups": 1, "head_dim": 8, "chunk_size": 16,
        "use_mamba_kernels": False,
    },
    "qwen3_next": {**_SHARED, **_DELTA},
    "qwen3_5_text": _DELTA,
    "recurrent_gemma": {
        "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"],
        **_TIED,
    },
}  # fmt: skip
#: Those that most tests try.
ARCHITECTURES = ("qwen3", "llama", "gemma3_text", "smollm3", "phi3")
TIED = {name for name, more in FAMILIES.items() if "tie_word_embeddings" in more}

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": "filled in",
    "data": {
        "main": "dense",
        "tiers": {
            "dense": {"train": 8, "val": 1, "test": 3, "events": [3, 4]},
            "blog": {"train": 2, "test": 2, "grid": 5},
        },
    },
    "arms": {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}},
    "reward": {"weights": {"format": 0.1, "optimal": 0.9}},
    "sft": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01},
    "grpo": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 0.01,
        "logging_steps": 1,
    },
    "eval": {"samples": 4, "max_tokens": 12, "resamples": 200},
    "conclusion": {"fresh": 8, "margins": {"resamples": 200}},
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all"}


def random_model(architecture: str, hidden: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """A model and our tokenizer."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(architecture, **{**size, **FAMILIES[architecture]})
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def spread_model(architecture: str = "qwen3", seed: int = 0) -> tuple[Any, Any]:
    """A model whose probabilities differ much, and our tokenizer."""
    model, tokenizer = random_model(architecture)
    torch.manual_seed(seed)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return model, tokenizer


def save_model(folder: Path, architecture: str, **size: int) -> Path:
    """A model folder; written once."""
    if not folder.is_dir():
        write_model(*random_model(architecture, **size), folder)
    return folder


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    """The weights of a model's folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def write_recipe(folder: Path, model: Path | str, **changes: Any) -> Recipe:
    """``RECIPE`` for a model, with top-level keys changed."""
    path = folder / "small.yaml"
    content = {**RECIPE, "model": str(model), **changes}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_recipe(path)


def training_for(recipe: Recipe, section: str = "sft", start: str | None = None) -> Training:
    """The training of the arm that is called like its section, by default from the base."""
    return Training(recipe, section, section, start or recipe.model)
