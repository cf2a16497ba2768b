"""Asks a model about one day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.clock import CLOCK
from data.common.errors import UserError
from data.names import EVENT_NAMES
from data.problem import Problem
from data.rows import Row
from data.sections import EvalSection
from eval.day.entry import listed
from pipeline.model.decode import (
    Decoding,
    Sample,
    answer_limit,
    prepare,
    reasoning_prefix,
    render,
    sample_batch,
)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    shots: Sequence[tuple[str, str]],
    asking: EvalSection,
    seed: int,
) -> Sample:
    """Draw one answer to ``row``.

    Raises:
        UserError: when the prompt does not fit the model's context.
    """
    rendered = render(tokenizer, row["prompt"], shots)
    limit = asking.max_tokens or answer_limit(tokenizer, [row])
    limit = min(limit, room_for(model, tokenizer, rendered, row["gold"]) or limit)
    decoding = Decoding(limit, asking.temperature, asking.top_p)
    prepare(model)
    ((sample,),) = sample_batch(model, tokenizer, [rendered], 1, decoding, [seed])
    return replace(sample, completion=reasoning_prefix(tokenizer) + sample.completion)


def room_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rendered: str, gold: str
) -> int | None:
    """Tokens that the model has left for an answer; None where its config sets no limit.

    Raises:
        UserError: when the prompt, with room for the gold answer, is longer than its context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    asked, needed = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (rendered, gold)
    )
    if context is None:
        return None
    if asked + needed > context:
        raise UserError(
            f"the prompt has {asked} tokens and its best answer {needed}, more than the {context} "
            "that this model can hold; leave out events, or ask a larger model (MODEL=)"
        )
    return int(context - asked)


def spelled_out(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str | None:
    """A sentence where the embedded base, or a model trained from it, is asked about names or times
    that it has no tokens for; None of other models, whose tokenizers have none for whole names."""

    def is_token(text: str) -> bool:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1

    known = [name for name in EVENT_NAMES if is_token(name)]
    words = [event.name for event in problem.events]
    words += [CLOCK[minute] for e in problem.events for minute in (e.start, e.end)]
    strange = [text for text in dict.fromkeys(words) if not is_token(text)]
    if not known or not strange:
        return None
    return (
        f"Note: this small model knows {len(known)} names of events ({listed(known)}: "
        f"data/names.py) and times on the quarter hour; anything else, here {listed(strange)}, it "
        "spells letter by letter, mostly wrong: expect nonsense, or ask a larger model (MODEL=)."
    )
