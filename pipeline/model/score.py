"""How likely a model finds given answers, token by token: the one scorer of log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Logits that are held at a time, unless told otherwise; 0.25 GiB of float32.
LOGITS = 1 << 26


@dataclass(frozen=True)
class Encoded:
    """A prompt and an answer to it in tokens, the end included where the answer stopped."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, stopped: bool = True
) -> Encoded:
    """The tokens of a rendered prompt and an answer, with the token that ends it if ``stopped``."""
    asked, said = tokenizer([prompt, answer], add_special_tokens=False)["input_ids"]
    return Encoded(tuple(asked), (*said, *([tokenizer.eos_token_id] if stopped else [])))


def answer_logits(
    model: PreTrainedModel, texts: Sequence[Encoded], budget: int = LOGITS, left: bool = False
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each answer's place in ``texts``, the logits that its tokens are drawn from, in float32
    [tokens, vocabulary], and the tokens [tokens]. Where several tokens end an answer, its end is
    that any of them is drawn.

    Args:
        model: in eval mode.
        budget: logits that are held at a time.
        left: pad on the left, where fewer logits are computed in vain. Unsloth's kernels need the
            padding on the right, where a causal model does not look.
    """
    import torch

    for batch in batches_of(texts, budget // model.config.get_text_config().vocab_size, left):
        width = max(len(texts[i]) for i in batch)
        ids, mask = torch.zeros(2, len(batch), width, dtype=torch.long)
        starts = []
        for row, i in enumerate(batch):
            begin = width - len(texts[i]) if left else 0
            here = slice(begin, begin + len(texts[i]))
            ids[row, here] = torch.tensor([*texts[i].prompt, *texts[i].answer])
            mask[row, here] = 1
            starts.append(begin + len(texts[i].prompt))
        ids, mask = ids.to(model.device), mask.to(model.device)
        places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if left else {}
        kept = width - min(starts) + 1
        with torch.no_grad():
            logits = model(
                input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept, **places
            ).logits[:, -kept:-1]
        for row, (i, start) in enumerate(zip(batch, starts, strict=True)):
            answer = slice(start, start + len(texts[i].answer))
            shifted = slice(start - min(starts), start - min(starts) + len(texts[i].answer))
            tokens = ids[row, answer]
            yield i, _with_one_end(model, logits[row, shifted].float(), tokens), tokens


def _with_one_end(model: PreTrainedModel, logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits [tokens, vocabulary] in which the tokens that end an answer are one, that of
    ``tokens``: samples are kept without their end, so which of them was drawn is not known."""
    ends = model.generation_config.eos_token_id
    if not isinstance(ends, list) or len(ends) == 1:
        return logits
    any_end = logits[:, ends].logsumexp(-1)
    logits = logits.index_fill(1, tokens.new_tensor(ends), -math.inf)
    last = tokens[-1:].tolist()
    logits[:, last[0] if last and last[0] in ends else ends[0]] = any_end
    return logits


def log_probabilities(model: PreTrainedModel, texts: Sequence[Encoded]) -> list[list[float]]:
    """The log-probability in nats of each token of each answer; padded on the right."""
    each: list[list[float]] = [[] for _ in texts]
    for i, logits, tokens in answer_logits(model, texts):
        each[i] = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
    return each


def surprises(
    model: PreTrainedModel, texts: Sequence[Encoded], temperature: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``surprise`` of tokens of each answer, in any order, sampled at a temperature."""
    for _, whole, answer in answer_logits(model, texts):
        some = max(1, LOGITS // 8 // whole.shape[-1])  # tokens at a time, for the memory's sake
        for logits, tokens in zip(whole.split(some), answer.split(some), strict=True):
            yield surprise(logits / temperature, tokens)


def surprise(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The negative log-probability of each token in nats, at most 100, and its mean, the entropy,
    and variance under the distribution that the token is drawn from, each [tokens].

    Args:
        logits: in float32, [tokens, vocabulary].
        tokens: [tokens].
    """
    each = -logits.log_softmax(-1).clamp(min=-100)  # exp knows no less
    chance = (-each).exp()
    mean = (chance * each).sum(-1)
    variance = (chance * (each - mean[:, None]).square()).sum(-1)
    return each.gather(-1, tokens[:, None])[:, 0], mean, variance


def batches_of(texts: Sequence[Encoded], tokens: int, left: bool) -> Iterator[list[int]]:
    """Texts of like length together, by index, with at most ``tokens`` logits kept, padding
    included, unless it is one text."""

    def length(i: int) -> int:
        return len(texts[i]) if left else len(texts[i].prompt)

    def kept(batch: list[int]) -> int:
        if left:
            return max(len(texts[i].answer) for i in batch) + 1
        return max(len(texts[i]) for i in batch) - len(texts[batch[0]].prompt) + 1

    batch: list[int] = []
    for i in sorted(range(len(texts)), key=length):
        if batch and kept([*batch, i]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
