"""Tiny models of several architectures with random weights, and a recipe that trains them in a
second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from data.recipe import Recipe, load_recipe
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.load import write_model
from pipeline.train.training import Training

#: Embeddings are tied in Qwen 3 and Gemma 3, which also looks back 16 tokens only in one layer of
#: two; Phi 3 has its projections fused.
ARCHITECTURES = {
    "qwen3": lambda size: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **size)),
    "llama": lambda size: LlamaForCausalLM(LlamaConfig(**size)),
    "gemma3": lambda size: Gemma3ForCausalLM(
        Gemma3TextConfig(
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            **size,
        )
    ),
    "smollm3": lambda size: SmolLM3ForCausalLM(SmolLM3Config(**size)),
    "phi3": lambda size: Phi3ForCausalLM(Phi3Config(**size)),
}
TIED = {"qwen3": True, "llama": False, "gemma3": True, "smollm3": False, "phi3": False}

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
        "tie_word_embeddings": TIED[architecture],
    }
    return ARCHITECTURES[architecture](size).eval(), tokenizer


def save_model(folder: Path, architecture: str, **size: int) -> Path:
    """A model folder; written once."""
    if not folder.is_dir():
        write_model(*random_model(architecture, **size), folder)
    return folder


def write_recipe(folder: Path, model: Path | str, **changes: Any) -> Recipe:
    """``RECIPE`` for a model, with top-level keys changed."""
    path = folder / "small.yaml"
    content = {**RECIPE, "model": str(model), **changes}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_recipe(path)


def training_for(recipe: Recipe, section: str = "sft", start: str | None = None) -> Training:
    """The training of the arm that is called like its section, by default from the base."""
    return Training(recipe, section, section, start or recipe.model)
