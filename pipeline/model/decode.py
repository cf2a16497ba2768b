"""Sampling k completions of each prompt: every prompt is read once, its k samples share the work.

Compared with ``generate(num_return_sequences=k)`` the prompt is prefilled once instead of k times,
prompts of like length are batched together, finished rows are dropped, the KV cache is written in
place instead of being copied at every token, and grouped-query attention does not repeat its keys.
It takes any causal language model of the transformers library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.common.errors import UserError
from data.prompts import messages

#: Room in the KV cache grows by this many tokens at a time.
_GROWTH = 64


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn; the same for every arm."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion; ``finish_reason`` is "stop" or "length"."""

    completion: str
    finish_reason: str
    tokens: int


class _RoomyLayer(DynamicLayer):
    """A KV cache layer that appends in place; ``keys`` and ``values`` are views of what is used."""

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self._room = (key_states[..., :0, :], value_states[..., :0, :])

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        total = used + key_states.shape[-2]
        if self._room[0].shape[-2] < total:
            self._room = tuple(_longer(room, used, total + _GROWTH) for room in self._room)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., used:total, :] = new
        self.keys, self.values = (room[..., :total, :] for room in self._room)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def _select(self, rows: torch.Tensor) -> None:
        used = self.get_seq_length()
        self._room = tuple(room[rows.to(room.device)] for room in self._room)
        self.keys, self.values = (room[..., :used, :] for room in self._room)


def _longer(room: torch.Tensor, used: int, length: int) -> torch.Tensor:
    """A tensor with room for ``length`` tokens that holds the first ``used`` of ``room``."""
    longer = room.new_empty(*room.shape[:2], length, room.shape[3])
    longer[..., :used, :] = room[..., :used, :]
    return longer


def _grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of one new token over the cache, without repeating grouped keys; all else: SDPA.

    Shapes: query [rows, heads, 1, d], key and value [rows, kv heads, length, d].
    """
    rows, heads, new, width = query.shape
    groups = key.shape[1]
    if new != 1 or heads == groups or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    grouped = query.view(rows, groups, heads // groups, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)) * (scaling or width**-0.5)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    out = torch.matmul(scores.softmax(-1), value)
    return out.view(rows, 1, heads, width), None


AttentionInterface.register("grouped", _grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


def _cache(model: PreTrainedModel) -> DynamicCache:
    """The model's own cache, its plain layers replaced by roomy ones."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(la) is DynamicLayer else la for la in cache.layers]
    return cache


def _draw(logits: torch.Tensor, decoding: Decoding, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample one token a row by inverting the cumulative distribution at ``uniforms`` in [0, 1).

    ``logits`` [rows, vocabulary]; top-p keeps the smallest set of tokens whose probability
    reaches p (Holtzman et al. 2020), the most likely one always.
    """
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / decoding.temperature, -1)
    if decoding.top_p >= 1:
        cumulative = probabilities.cumsum(-1)
        target = uniforms[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)[
            :, 0
        ]
    ordered, tokens = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= decoding.top_p, 0.0)
    cumulative = ordered.cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return tokens.gather(-1, place)[:, 0]


def _check(model: PreTrainedModel, logits: torch.Tensor) -> None:
    """Raise UserError where the model says no number: drawing would go on with nonsense. What a
    token left in the cache spoils all that follow it, so the first and the last are looked at."""
    if not torch.isfinite(logits.float().logsumexp(-1)).all():
        raise UserError(
            f"{model.name_or_path or 'the model'}: the probabilities of its next token are not "
            f"numbers; its weights are broken, or what it computes is too large for {model.dtype} "
            "(dtype: float32 has more room)"
        )


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: str, shots: Sequence[tuple[str, str]] = ()
) -> str:
    """A prompt as the model reads it: the conversation up to where the answer begins, after
    ``shots``, each a prompt and its answer."""
    turns = [turn for shown, answer in shots for turn in messages(shown, answer)]
    return tokenizer.apply_chat_template(
        turns + messages(prompt), add_generation_prompt=True, tokenize=False
    )


def answer_limit(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many tokens an answer may have where the recipe does not say: twice the longest gold's,
    as this tokenizer counts them."""
    golds = tokenizer([row["gold"] for row in rows], add_special_tokens=False)["input_ids"]
    return 2 * max(map(len, golds))


def prepare(model: PreTrainedModel) -> None:
    """Make ``model`` ready for sampling: no dropout, and on a CPU attention that does not repeat
    grouped keys."""
    model.eval()
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("grouped")


def reasoning_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """``<think>`` where the chat template opens the reasoning itself, else nothing.

    Such a model's text begins inside the reasoning; judged without the prefix, a draft in reasoning
    that was cut off would pass for the answer.
    """
    return "<think>" if render(tokenizer, "").rstrip().endswith("<think>") else ""


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Every token id that ends an answer: the tokenizer's and the generation config's."""
    ids = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}
    return torch.tensor(sorted(found), device=model.device)


@torch.inference_mode()
def sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    decoding: Decoding,
    seeds: Sequence[int],
) -> list[list[Sample]]:
    """Draw ``samples`` completions of each prompt (already rendered by the chat template).

    Each prompt has its own random stream, so what is drawn for it does not depend on the prompts
    beside it. The model should be in eval mode.
    """
    device = model.device
    inputs = tokenizer(
        list(prompts), return_tensors="pt", padding=True, padding_side="left",
        add_special_tokens=False,
    ).to(device)  # fmt: skip
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    cache, mask = _cache(model), inputs["attention_mask"]
    position = mask.cumsum(-1) - 1
    step = model(
        input_ids=inputs["input_ids"],
        attention_mask=mask,
        position_ids=position.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    _check(model, step.logits[:, -1])
    logits = step.logits[:, -1].repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    mask = mask.repeat_interleave(samples, 0)
    position = position[:, -1:].repeat_interleave(samples, 0)
    stops = stop_tokens(model, tokenizer)
    rows = len(prompts) * samples
    drawn = torch.full((rows, decoding.max_tokens), tokenizer.pad_token_id, device=device)
    lengths = torch.full((rows,), decoding.max_tokens, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    alive = torch.arange(rows, device=device)  # which row each line of the batch is
    going = torch.ones(rows, dtype=torch.bool, device=device)
    for t in range(decoding.max_tokens):
        uniforms = torch.cat([torch.rand(samples, generator=stream) for stream in streams])
        tokens = _draw(logits, decoding, uniforms.to(device)[alive])
        drawn[alive, t] = tokens
        ended = torch.isin(tokens, stops) & going
        stopped[alive[ended]] = True
        lengths[alive[ended]] = t + 1
        going &= ~ended
        if not going.any() or t + 1 == decoding.max_tokens:
            break
        # Dropping rows copies the cache, so it waits until an eighth of them are done.
        if 8 * (~going).sum() >= len(going):
            keep = going.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            alive, tokens, mask, position = alive[keep], tokens[keep], mask[keep], position[keep]
            going = going[keep]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        position = position + 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    _check(model, logits)
    ends = lengths - stopped.long()
    ids = [row[:end].tolist() for row, end in zip(drawn, ends.tolist(), strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    flat = [
        Sample(text, "stop" if stop else "length", int(length))
        for text, stop, length in zip(texts, stopped.tolist(), lengths.tolist(), strict=True)
    ]
    return [flat[i : i + samples] for i in range(0, rows, samples)]


def batches(prompts: Sequence[str], samples: int, rows: int) -> list[list[int]]:
    """Prompts, by index, that are drawn together, at most about ``rows`` completions at a time:
    those of like length, so little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = max(1, rows // samples)
    return [order[i : i + size] for i in range(0, len(order), size)]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    decoding: Decoding,
    seeds: Sequence[int],
    rows: int,
) -> Iterator[tuple[int, list[Sample]]]:
    """Yield (prompt index, its samples), batch by batch."""
    for batch in batches(prompts, samples, rows):
        found = sample_batch(
            model, tokenizer, [prompts[i] for i in batch], samples, decoding,
            [seeds[i] for i in batch],
        )  # fmt: skip
        yield from zip(batch, found, strict=True)
