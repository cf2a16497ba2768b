"""Asks a model about one day and shows its text as it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

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
    reasoning_prefix,
    render,
    stop_tokens,
)

if TYPE_CHECKING:
    from transformers._typing import GenerativePreTrainedModel


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    shots: Sequence[tuple[str, str]],
    asking: EvalSection,
    seed: int,
    show: Callable[[str], None],
) -> Sample:
    """Draw one answer to ``row``, and ``show`` its text as it comes, after a note where the model
    cannot know the day's words.

    Raises:
        UserError: when the prompt does not fit the model's context.
    """
    rendered = render(tokenizer, row["prompt"], shots)
    limit = asking.max_tokens or answer_limit(tokenizer, [row])
    limit = min(limit, room_for(model, tokenizer, rendered, row["gold"]) or limit)
    prefix = reasoning_prefix(tokenizer)
    if note := spelled_out(tokenizer, row["problem"]):
        show(f"{note}\n\n")
    show(prefix)
    decoding = Decoding(limit, asking.temperature, asking.top_p)
    sample = stream(model.eval(), tokenizer, rendered, decoding, seed, show)
    show("\n")
    return Sample(prefix + sample.completion, sample.finish_reason, sample.tokens)


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


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rendered: str,
    decoding: Decoding,
    seed: int,
    show: Callable[[str], None],
) -> Sample:
    """Draw one completion of a rendered prompt and ``show`` its text as it is generated."""

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    stops = stop_tokens(model, tokenizer).tolist()
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    # Replaced as a whole: the model's own config may set more, such as a top-k.
    model.generation_config = GenerationConfig(
        do_sample=decoding.temperature > 0,
        max_new_tokens=decoding.max_tokens,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        **(sampling if decoding.temperature > 0 else {}),
    )
    inputs = tokenizer(rendered, return_tensors="pt", add_special_tokens=False).to(model.device)
    torch.manual_seed(seed)
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    # A PreTrainedModel alone has no generate; every causal language model has.
    out = cast("GenerativePreTrainedModel", model).generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], streamer=streamer
    )
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    stopped = new[-1] in stops
    text = tokenizer.decode(new[:-1] if stopped else new, skip_special_tokens=True)
    return Sample(str(text), "stop" if stopped else "length", len(new))
