"""The embedded base model's tokenizer: a unigram lexicon made for this task, bytes for the rest.

Tokens decide what a small model can learn on a CPU. Event names and times on a 15-minute grid are
single tokens, each with the tags around it, so a problem and its answer take about 75 tokens
instead of 1,200.
Anything else still has a spelling, in characters or bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from data.clock import CLOCK, MINUTE
from data.names import EVENT_NAMES
from data.prompts import FORMAT, NOTHING, PRIORITIES, RULES, TASK, THINK, THOUGHT, WEIGHT_WORDS
from data.rules import BASE_RULES
from pipeline.corpus.personas import PERSONAS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + ('assistant' if message['role'] == 'assistant' else 'user') + '|>' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ message['content'] + '<|end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def lexicon() -> list[str]:
    """The pieces, longest runs of text that prompts and answers repeat, without duplicates.

    A time and the tags or brackets around it are one piece, so that an event is three tokens, in
    the prompt and in the answer alike: its name, its start, its end.
    """
    sentences = [f"- {sentence}\n" for rule in BASE_RULES if (sentence := rule.sentence())]
    times = CLOCK[::15]
    prompt = [
        *(TASK, PRIORITIES, RULES, FORMAT, *sentences),
        RULES + "".join(sentences) + FORMAT,
        *(f"- {name} (" for name in EVENT_NAMES),
        *(f"- {name}\n" for name in EVENT_NAMES),
        *(f"{time} - " for time in times),
        *(f"{time})\n" for time in times),
    ]
    numbers = range(0, 1441, 15)
    reasoning = [
        # A way of answering opens with a token of its own, so that choosing one is one choice.
        *(THINK + p.opening + THOUGHT for p in PERSONAS.values() if p.opening),
        *(THINK, THOUGHT, "\n"),
        *(f" {word} (" for word in WEIGHT_WORDS.values()),
        *(f"{number}{after}" for number in numbers for after in (" + ", " from ", ", best ")),
        *(f"{name} = " for name in (*EVENT_NAMES, NOTHING)),
        *(f"{name}\n" for name in EVENT_NAMES),
        *(name + THOUGHT for name in EVENT_NAMES),
    ]
    tags = ["schedule", "event", "name", "start", "end", "think"]
    answer = [
        *(f"<{slash}{tag}>{line}" for tag in tags for slash in ("", "/") for line in ("", "\n")),
        *(f"<event>\n<name>{name}</name>\n<start>" for name in EVENT_NAMES),
        *(f"{time}</start>\n<end>" for time in times),
        *(f"{time}</end>\n</event>\n" for time in times),
    ]
    characters = [chr(code) for code in range(32, 127)]
    pieces = [*prompt, *reasoning, *answer, *EVENT_NAMES, *times, *characters]
    return list(dict.fromkeys(pieces))


#: Contents of a piece: an event's name, a time, or a number of minutes.
_CONTENT = re.compile("|".join([*EVENT_NAMES, r"\d\d:\d\d", r"\d+"]))


def content_vectors(tokenizer: PreTrainedTokenizerBase, width: int, seed: int) -> torch.Tensor:
    """First embeddings ``[tokens, width]``, made of what the pieces hold.

    A piece is the sum of its content and of what stands around it: the same event has the same
    vector in the prompt, the reasoning and the answer. Times and minutes are Fourier features, so
    near ones look alike and adding is turning.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    angles = 2 * torch.pi / torch.tensor([3.0, 5, 8, 13, 24, 48, 96, 192])
    projections = {"time": normal(16, width) / 8**0.5, "number": normal(16, width) / 8**0.5}
    parts: dict[str, torch.Tensor] = {}

    def part(text: str) -> torch.Tensor:
        """The vector of a name, or of what stands around a content; drawn once."""
        return parts.setdefault(text, normal(width))

    def content(text: str) -> torch.Tensor:
        if text in EVENT_NAMES:
            return part(text)
        kind, minutes = ("time", MINUTE[text]) if text in MINUTE else ("number", int(text))
        turned = angles * (minutes / 15)
        return torch.cat([turned.cos(), turned.sin()]) @ projections[kind]

    vectors = normal(len(tokenizer), width)
    ids = list(range(len(tokenizer)))
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        held = _CONTENT.search(piece)
        if held and len(piece) < 80 and not piece.startswith("<0x"):
            vectors[index] = content(held[0]) + part(piece.replace(held[0], "", 1))
        else:
            vectors[index] = part(piece)
    return 0.05 * vectors


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer that splits text into the fewest pieces, loadable by ``AutoTokenizer``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    special = [PAD, USER, ASSISTANT, END]
    raw_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    # Equal scores: the best segmentation is the one with the fewest pieces. Bytes never win.
    vocabulary = [
        *((piece, 0.0) for piece in special),
        ("<|unknown|>", 0.0),
        *((piece, -1.0) for piece in lexicon()),
        *((piece, -100.0) for piece in raw_bytes),
    ]
    unigram = models.Unigram(vocabulary, unk_id=len(special), byte_fallback=True)
    tokenizer = Tokenizer(unigram)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<|unknown|>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
