"""k completions of each prompt of one batch: every prompt is read once, its k samples share that.

Compared with ``generate(num_return_sequences=k)`` the prompt is prefilled once instead of k times,
finished rows are dropped, the KV cache is written in place instead of being copied at every token,
and grouped-query attention does not repeat its keys. A model whose state is not keys and
values alone (Mamba, hybrids) is found by trying, and draws by ``generate``, prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BatchEncoding,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.common.errors import UserError
from pipeline.model.decoding import Decoding
from pipeline.model.exact import InFloat32

#: Name of our attention among those of transformers.
GROUPED = "grouped"
#: The KV cache grows by room for this many tokens at a time.
_GROWTH = 64


class _RoomyLayer(DynamicLayer):
    """A KV cache layer that appends in place; ``keys`` and ``values`` view the used part of the
    room [rows, heads, tokens, width]."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._room = [key_states[..., :0, :], value_states[..., :0, :]]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        total = used + key_states.shape[-2]
        if self._room[0].shape[-2] < total:
            more = total + _GROWTH - used
            self._room = [pad(room[..., :used, :], (0, 0, 0, more)) for room in self._room]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., used:total, :] = new
        return self._show(total)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self._room[0].shape[0])
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        used = self.get_seq_length()
        self._room = [room[indices.to(room.device)] for room in self._room]
        self._show(used)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (room[..., :length, :] for room in self._room)
        self.keys, self.values = keys, values
        return keys, values


def _grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one new token over the cache, without repeating grouped keys: the heads that
    share a key stand where tokens do; all else: SDPA.

    Shapes: query [rows, heads, 1, d], key and value [rows, kv heads, length, d].
    """
    rows, heads, new, width = query.shape
    groups = key.shape[1]
    if new != 1 or heads == groups or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    grouped = query.view(rows, groups, heads // groups, width)
    out = scaled_dot_product_attention(grouped, key, value, attention_mask, scale=scaling)
    return out.view(rows, 1, heads, width), None


AttentionInterface.register(GROUPED, _grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def _roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """The model's own cache, its plain layers replaced by roomy ones."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(la) is DynamicLayer else la for la in cache.layers]
    return cache


def draw_tokens(logits: Tensor, temperature: float, top_p: float, uniforms: Tensor) -> Tensor:
    """Sample one token a row by inverting the cumulative distribution at ``uniforms`` in [0, 1).

    ``logits`` [rows, vocabulary]; top-p keeps the smallest set of tokens whose probability
    reaches p (Holtzman et al. 2020), the most likely one always.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    tokens = None
    if top_p < 1:
        probabilities, tokens = probabilities.sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return (place if tokens is None else tokens.gather(-1, place))[:, 0]


def check_finite(model: PreTrainedModel, logits: Tensor) -> None:
    """Raise UserError where the model's probabilities are not numbers. A broken token in the cache
    spoils all that follow it, so checking the first and the last is enough."""
    if not torch.isfinite(logits.float().logsumexp(-1)).all():
        raise UserError(
            f"{model.name_or_path or 'the model'}: the probabilities of its next token are not "
            f"numbers; its weights are broken, or what it computes is too large for {model.dtype} "
            "(dtype: float32 has more room)"
        )


class _Rows:
    """The rows of a batch that are not finished, their cache and the logits of their next token."""

    def __init__(self, model: PreTrainedModel, inputs: BatchEncoding, samples: int) -> None:
        """Read every prompt once; its ``samples`` rows start from there."""
        self.model, self.cache, mask = model, _roomy_cache(model), inputs["attention_mask"]
        position = mask.cumsum(-1) - 1
        step = model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            position_ids=position.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        check_finite(model, step.logits[:, -1])
        self.logits = step.logits[:, -1].repeat_interleave(samples, 0)
        self.cache.batch_repeat_interleave(samples)
        self.mask = mask.repeat_interleave(samples, 0)
        self.position = position[:, -1:].repeat_interleave(samples, 0)

    def keep(self, rows: Tensor) -> None:
        """Drop all but these ``rows``."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def append(self, tokens: Tensor) -> None:
        """Read one more token of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.position = self.position + 1
        self.logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]


#: Models that were tried by ``reads_once``.
_TRIED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def reads_once(model: PreTrainedModel) -> bool:
    """Whether samples of a prompt may go on from its cache, by trying: the logits after it,
    padded, must be those of reading all of it. ``check_finite`` sees to what is no number."""
    if model not in _TRIED:
        ids = torch.arange(24, device=model.device).reshape(2, 12) % 7 + 2
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        try:
            with InFloat32():
                texts = ids[:1, 4:], ids[1:]
                alone = [model(input_ids=text, use_cache=False).logits[0, -1] for text in texts]
                whole = torch.stack([alone[0], alone[1], alone[1]])
                asked = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1]}
                rows = _Rows(model, BatchEncoding(asked), 2)
                # Not as many rows as prompts, or a state that was left as it was would pass.
                rows.keep(torch.tensor([0, 2, 3], device=model.device))
                rows.append(ids[[0, 1, 1], -1])
                apart = (rows.logits - whole).abs().max() / whole.abs().max()
            _TRIED[model] = bool(apart < 1e-3) or not bool(whole.isfinite().all())
        # Errors of models that take no such cache.
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            _TRIED[model] = False
    return _TRIED[model]


def generation_config(decoding: Decoding, stops: Tensor, padding: int) -> GenerationConfig:
    """How the library's ``generate`` draws as our sampler does, whatever habits the model's own
    config has, such as a penalty on repetition."""
    draws = decoding.temperature > 0
    chosen = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=decoding.max_tokens, do_sample=draws, num_return_sequences=1,
        eos_token_id=stops.tolist(), pad_token_id=padding, repetition_penalty=1.0,
        **(chosen if draws else {}),
    )  # fmt: skip


def _generate(
    model: Any,
    inputs: BatchEncoding,
    samples: int,
    seeds: Sequence[int],
    stops: Tensor,
    decoding: Decoding,
    drawn: Tensor,
) -> None:
    """Fill ``drawn`` [rows, max_tokens] by the library's ``generate``. Prompts go alone: padding
    on the left would enter a state that is no attention's."""
    config = generation_config(decoding, stops, int(drawn[0, 0]))
    for i, ids in enumerate(inputs["input_ids"]):
        asked = ids[inputs["attention_mask"][i].bool()].repeat(samples, 1)
        with torch.random.fork_rng():
            torch.manual_seed(seeds[i])
            out = model.generate(
                input_ids=asked, attention_mask=torch.ones_like(asked), generation_config=config
            )[:, asked.shape[1] :]
        drawn[i * samples : (i + 1) * samples, : out.shape[1]] = out


def ends_of(drawn: Tensor, stops: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens each answer of ``drawn`` [rows, tokens] has up to its end, and whether it
    ended, both [rows]."""
    ends = torch.isin(drawn, stops)
    stopped = ends.any(-1)
    return torch.where(stopped, ends.int().argmax(-1) + 1, drawn.shape[1]), stopped


@torch.inference_mode()
def draw_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    seeds: Sequence[int],
    stops: Tensor,
    decoding: Decoding,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``samples`` completions of each prompt, see ``pipeline.model.decode.sample``.

    Args:
        stops: every token id that ends an answer.

    Returns:
        Tokens [rows, max_tokens], how many of them were drawn [rows], and whether the answer ended
        [rows]; ``samples`` rows a prompt.
    """
    device, max_tokens = model.device, decoding.max_tokens
    inputs = tokenizer(
        list(prompts), return_tensors="pt", padding=True, padding_side="left",
        add_special_tokens=False,
    ).to(device)  # fmt: skip
    rows = len(prompts) * samples
    drawn = torch.full((rows, max_tokens), tokenizer.pad_token_id, device=device)
    if not reads_once(model):
        _generate(model, inputs, samples, seeds, stops, decoding, drawn)
        return drawn, *ends_of(drawn, stops)
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    batch = _Rows(model, inputs, samples)
    lengths = torch.full((rows,), max_tokens, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    alive = torch.arange(rows, device=device)  # which row each line of the batch is
    going = torch.ones(rows, dtype=torch.bool, device=device)
    for t in range(max_tokens):
        uniforms = torch.cat([torch.rand(samples, generator=stream) for stream in streams])
        tokens = draw_tokens(
            batch.logits, decoding.temperature, decoding.top_p, uniforms.to(device)[alive]
        )
        drawn[alive, t] = tokens
        ended = torch.isin(tokens, stops) & going
        stopped[alive[ended]] = True
        lengths[alive[ended]] = t + 1
        going &= ~ended
        if not going.any() or t + 1 == max_tokens:
            break
        # Dropping rows copies the cache, so it waits until an eighth of them are done.
        if 8 * (~going).sum() >= len(going):
            kept = going.nonzero()[:, 0]
            batch.keep(kept)
            alive, tokens, going = alive[kept], tokens[kept], going[kept]
        batch.append(tokens)
    check_finite(model, batch.logits)
    return drawn, lengths, stopped
