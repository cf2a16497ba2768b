"""Our own sampler draws the answers of GRPO, by the trainer's public ``rollout_func``.

It reads each prompt once instead of once an answer, and drops finished rows
(``pipeline.model.sampler``). Answers come from the same distribution as by ``generate``; seeds are
drawn from torch's own stream, which checkpoints keep, so a resumed training draws the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline.model import processes
from pipeline.model.decode import stop_tokens
from pipeline.model.sampler import draw_batch

if TYPE_CHECKING:
    from trl import GRPOConfig

#: Settings of sampling that it knows nothing of, with the values that change nothing.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "top_k": (None, 0),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "generation_kwargs": (None, {}),
    "cache_implementation": (None,),
    "use_vllm": (False,),
    "use_transformers_continuous_batching": (False,),
}

RollOut = Callable[[list[Any], Any], dict[str, Any]]


def rollouts_for(args: GRPOConfig) -> RollOut | None:
    """Our sampler as TRL's ``rollout_func``; None where the trainer has to draw by itself: settings
    that the sampler does not have, or several processes."""
    unknown = [key for key, same in _NEUTRAL.items() if getattr(args, key, same[0]) not in same]
    if unknown or processes.count() > 1:
        return None
    return roll_out


def roll_out(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """Draw one answer to each of ``prompts``, conversations of which each stands there as often as
    its group has answers."""
    args, tokenizer = trainer.args, trainer.processing_class
    model = trainer.accelerator.unwrap_model(trainer.model)
    training = model.training
    group = trainer.num_generations if training else trainer.num_generations_eval
    texts = [
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False, **(args.chat_template_kwargs or {})
        )
        for prompt in prompts[::group]
    ]
    seeds = torch.randint(2**62, (len(texts),)).tolist()
    model.eval()
    try:
        tokens, lengths, _ = draw_batch(
            model, tokenizer, texts, group, seeds, stop_tokens(model, tokenizer),
            args.max_completion_length, args.temperature, args.top_p,
        )  # fmt: skip
    finally:
        model.train(training)
    asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
    drawn = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return {
        "prompt_ids": [ids for ids in asked for _ in range(group)],
        "completion_ids": [row[:length] for row, length in drawn],
        "logprobs": None,
    }
