"""Asking a model: prompts as it reads them, how answers are drawn, and the answers. No torch yet.

Prompts of like length are batched together; ``pipeline.model.sampler`` answers one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.prompts import THINK, THOUGHT, messages
from data.rows import Row
from pipeline.model.decoding import Decoding
from rewards.parse import opened_reasoning

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion; ``finish_reason`` is "stop" or "length"."""

    completion: str
    finish_reason: str
    tokens: int


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: str, shots: Sequence[tuple[str, str]] = ()
) -> str:
    """A prompt as the model reads it: the conversation up to where the answer begins, after
    ``shots``, each a prompt and its answer."""
    turns = [turn for shown, answer in shots for turn in messages(shown, answer)]
    return render_turns(tokenizer, turns + messages(prompt))


def render_turns(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """A conversation as the model reads it, up to where its next answer begins."""
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without those that a tokenizer would put around it."""
    return list(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def answer_limit(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> int:
    """How many tokens an answer may have where the recipe does not say: twice the longest gold's,
    as this tokenizer counts them."""
    return 2 * max(count_tokens(tokenizer, [row["gold"] for row in rows]))


def reasoning_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """The mark of reasoning, such as ``<think>``, that the chat template opens itself, or nothing.

    Such a model's text begins inside the reasoning. Judged without the prefix, a draft in reasoning
    that was cut off would pass for the answer.
    """
    return opened_reasoning(render(tokenizer, ""))


def continued(gold: str, prefix: str) -> str:
    """A gold answer as the model has to go on where its template has opened the reasoning."""
    if not prefix or (THOUGHT.strip() in gold and not gold.startswith(THINK)):
        return gold
    return gold.removeprefix(THINK) if gold.startswith(THINK) else THOUGHT.lstrip() + gold


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """``stop_ids`` of a model, on its device."""
    import torch

    return torch.tensor(stop_ids(model.generation_config, tokenizer), device=model.device)


def stop_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends an answer: the tokenizer's and the generation config's."""
    ids = config.eos_token_id
    stops = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}
    return sorted(stops)


def prepare(model: PreTrainedModel) -> None:
    """Make ``model`` ready for sampling: no dropout, and on a CPU attention that does not repeat
    grouped keys."""
    from pipeline.model.sampler import GROUPED

    model.eval()
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)


def batches(prompts: Sequence[str], samples: int, rows: int) -> list[list[int]]:
    """Prompts, by index, that are drawn together, at most about ``rows`` completions at a time:
    those of like length, so little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = max(1, rows // samples)
    return [order[i : i + size] for i in range(0, len(order), size)]


def as_samples(
    tokenizer: PreTrainedTokenizerBase, drawn: tuple[Tensor, Tensor, Tensor], samples: int
) -> list[list[Sample]]:
    """The answers to each prompt, as ``pipeline.model.sampler.draw_batch`` returns them."""
    tokens, lengths, stopped = (tensor.tolist() for tensor in drawn)
    ends = [length - stop for length, stop in zip(lengths, stopped, strict=True)]
    texts = tokenizer.batch_decode(
        [row[:end] for row, end in zip(tokens, ends, strict=True)], skip_special_tokens=True
    )
    each = [
        Sample(text, "stop" if stop else "length", length)
        for text, stop, length in zip(texts, stopped, lengths, strict=True)
    ]
    return [each[i : i + samples] for i in range(0, len(each), samples)]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    decoding: Decoding,
    seeds: Sequence[int],
    rows: int,
) -> Iterator[tuple[int, list[Sample]]]:
    """Yield (prompt index, its ``samples`` completions), batch by batch of about ``rows``.

    Each prompt has its own random stream, so what is drawn for it does not depend on the prompts
    beside it.

    Args:
        model: in eval mode.
        prompts: as ``render`` makes them.
    """
    from pipeline.model.sampler import draw_batch

    stops = stop_tokens(model, tokenizer)
    for batch in batches(prompts, samples, rows):
        texts, streams = [prompts[i] for i in batch], [seeds[i] for i in batch]
        drawn = draw_batch(model, tokenizer, texts, samples, streams, stops, decoding)
        yield from zip(batch, as_samples(tokenizer, drawn, samples), strict=True)
