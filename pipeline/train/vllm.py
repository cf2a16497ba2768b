"""vLLM as the sampler of GRPO: whether it draws, the arguments that it knows, and what it is told.

It reads a model's own files, which know neither the end of turn that the template writes nor the
lengths of the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.recipe import Recipe
from data.rows import Row
from pipeline.model.decode import count_tokens, render
from pipeline.train.backend import takes_vllm

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

#: Fields of ``SamplingParams`` that a recipe can give (vllm/sampling_params.py; TRL 1.14.2 takes
#: vLLM 0.20 to 0.30). Internal ones, and those that are no plain values, are left out.
SAMPLING_PARAMS = frozenset((
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p",
    "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens",
    "logprobs", "prompt_logprobs", "flat_logprobs", "detokenize", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output", "structured_outputs",
    "logit_bias", "allowed_token_ids", "extra_args", "bad_words", "skip_reading_prefix_cache",
    "thinking_token_budget", "repetition_detection",
))  # fmt: skip


def with_vllm(recipe: Recipe, unsloth: bool) -> Recipe:
    """A recipe, as it stands for an arm, that says so where vLLM draws GRPO's answers though it
    does not say: ``takes_vllm``, and every one of its ``generation_kwargs`` is vLLM's too."""
    if "use_vllm" in recipe.grpo or not takes_vllm(unsloth, recipe.sampling, recipe.quantised):
        return recipe
    given = recipe.grpo.get("generation_kwargs")
    if isinstance(given, Mapping) and not given.keys() <= SAMPLING_PARAMS:
        return recipe
    return replace(recipe, grpo={**recipe.grpo, "use_vllm": True})


def tell_vllm(args: Any, stops: Iterable[int], length: int, config: PreTrainedConfig) -> set[int]:
    """Tell vLLM, by a GRPOConfig, the tokens that end an answer, and where the recipe does not say,
    the ``length`` of text to make room for: else it is the whole context of the model, which has
    this ``config``. Returns ``stops`` with those of the recipe."""
    given = args.generation_kwargs or {}
    ends = {*stops, *(given.get("stop_token_ids") or ())}
    args.generation_kwargs = {**given, "stop_token_ids": sorted(ends)}
    context = getattr(config, "max_position_embeddings", None)  # beyond it, vLLM does not start
    args.vllm_max_model_length = args.vllm_max_model_length or min(length, context or length)
    return ends


def longest_text(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], args: Any) -> int:
    """Tokens of the longest prompt and an answer of the greatest length of a GRPOConfig."""
    texts = [render(tokenizer, row["prompt"]) for row in rows]
    return max(count_tokens(tokenizer, texts)) + args.max_completion_length
