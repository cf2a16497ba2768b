"""Do the texts fit? Every prompt and gold answer, counted by the model's own tokenizer.

A text must fit the model, ``max_seq_length`` and ``sft.max_length``: a trainer cuts what is too
long without a word, and a sampler goes on where the model knows no position. Problems that are too
long are not dropped: floors and card are of the problems written, so the tier has to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from data.common.errors import UserError
from data.recipe import Recipe
from data.rows import Row, longest_told, read_split, retold
from data.run import BASE, Run
from data.sections import SPLITS
from pipeline.model.decode import count_tokens, render
from pipeline.model.load import check_template, check_vocabulary, read_config, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: ``longest`` is rounded up to a multiple of this.
STEP = 64
#: Texts tokenized at a time.
_BATCH = 1000


class TokenCounts(NamedTuple):
    """Tokens of a prompt, of its gold answer, and of both and their end."""

    prompt: int
    gold: int
    both: int


TEXTS = TokenCounts._fields
#: The longest of each text of ``TokenCounts``, with the id of its problem.
Longest = dict[str, tuple[int, str]]


class TextLengths(TypedDict):
    """The content of ``lengths.json``.

    Attributes:
        context: positions that the model knows; None where its config names none.
        tiers: the longest texts of each tier and split.
        shown: those of train where a share of the gold answers reasons, by share, where arms are
            shown different ones.
    """

    model: str
    context: int | None
    tiers: dict[str, dict[str, Longest]]
    shown: NotRequired[dict[str, dict[str, dict[str, Longest]]]]


def sizes(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> Iterator[TokenCounts]:
    """Tokens of each prompt as the model reads it, up to where the answer begins; of its gold
    answer; and of both with the token that ends them, which SFT trains on."""
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        asked = count_tokens(tokenizer, [render(tokenizer, prompt) for prompt, _ in batch])
        golds = count_tokens(tokenizer, [gold for _, gold in batch])
        counts = zip(asked, golds, strict=True)
        yield from (TokenCounts(prompt, gold, prompt + gold + 1) for prompt, gold in counts)


def count_lengths(recipe: Recipe) -> TextLengths:
    """Count the texts of every split of a recipe's run, gold answers as the arm reads them that has
    reasoning in the most.

    Raises:
        UserError: when the data are not finished, or model or tokenizer are not available.
    """
    run, model = recipe.run, recipe.model
    stored = {split: read_split(run, split) for split in SPLITS}
    tokenizer = read_tokenizer(model)
    if tokenizer.chat_template is None:
        print(f"{model} has no chat template: turns are in plain text, 'User:' and 'Assistant:'")
    check_template(tokenizer, model)
    config = read_config(model).get_text_config(decoder=True)
    check_vocabulary(tokenizer, config.vocab_size, model)
    told = {
        split: longest_told(rows, recipe.data, recipe.arms.values())
        for split, rows in stored.items()
    }
    lengths: TextLengths = {
        "model": model,
        "context": getattr(config, "max_position_embeddings", None),
        "tiers": _longest_texts(tokenizer, told),
    }
    if any(arm.reasoned is not None for arm in recipe.arms.values()):
        lengths["shown"] = {
            str(share): _longest_texts(
                tokenizer, {"train": retold(stored["train"], replace(recipe.data, reasoned=share))}
            )
            for share in sorted({use.reasoned for use in uses(recipe) if use.reasoned is not None})
        }
    return lengths


def _longest_texts(
    tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
) -> dict[str, dict[str, Longest]]:
    """The longest texts of each tier and split."""
    tiers: dict[str, dict[str, Longest]] = {}
    for split, rows in splits.items():
        counts = sizes(tokenizer, [(row["prompt"], row["gold"]) for row in rows])
        for row, size in zip(rows, counts, strict=True):
            found = tiers.setdefault(row["tier"], {}).setdefault(split, {})
            for text, tokens in size._asdict().items():
                if text not in found or tokens > found[text][0]:
                    found[text] = (tokens, row["id"])
    return tiers


@dataclass(frozen=True)
class Use:
    """One way in which a recipe puts texts before the model.

    Attributes:
        split, tiers: of the problems, ``train`` in training; no tiers are all of them.
        key: of the recipe, that limits an answer; None where the answer is the gold one.
        limit: its value; None allows twice the longest gold answer.
        cut: tokens after which the trainer cuts prompt and gold answer.
        shots: solved training problems shown before the prompt.
        reasoned: share of the gold answers that reason, where these are trained on.
    """

    arm: str
    split: str
    tiers: tuple[str, ...] = ()
    key: str | None = None
    limit: int | None = None
    cut: int | None = None
    shots: int = 0
    reasoned: float | None = None


def uses(recipe: Recipe) -> Iterator[Use]:
    """The texts that training and evaluation of every arm read."""
    for name, arm in recipe.all_arms.items():
        each = recipe.for_arm(name)
        if arm.section == "sft":
            cut, share = each.sft.get("max_length"), each.data.reasoned
            yield Use(name, "train", arm.tiers, cut=cut, reasoned=share)
        if arm.trainer == "rejection":  # trains on answers that it sampled
            tokens = each.eval.max_tokens
            yield Use(name, "train", arm.tiers, "eval.max_tokens", tokens)
        if arm.trainer == "grpo":
            key = "max_completion_length"
            yield Use(name, "train", arm.tiers, f"grpo.{key}", each.grpo.get(key))
    for name in (BASE, *recipe.all_arms):
        asking = recipe.for_arm(name).eval
        tune = {} if name == BASE else recipe.all_arms[name].tune
        shots = max(tune.get("shots", (asking.shots,)))
        key, tokens = "eval.max_tokens", asking.max_tokens
        yield Use(name, "test", (), key, tokens, shots=shots)
        if tune:
            yield Use(name, "val", (recipe.data.main,), key, tokens, shots=shots)


class LongestUse(NamedTuple):
    """The longest text of one use, in tokens: a prompt with its shots, or with its gold answer
    where that is the answer, and the most that may follow."""

    id: str
    tier: str
    prompt: int
    answer: int

    @property
    def total(self) -> int:
        return self.prompt + self.answer


def longest_of(lengths: TextLengths, use: Use) -> LongestUse | None:
    """The longest text of a use; None where it has no problems. Shots are drawn for each problem,
    so they count as the longest of their tier."""
    shown = lengths.get("shown", {}).get(str(use.reasoned), lengths["tiers"])
    tiers = {
        tier: splits[use.split]
        for tier, splits in shown.items()
        if use.split in splits and tier in (use.tiers or shown)
    }
    gold = max((texts["gold"][0] for texts in tiers.values()), default=0)
    answer = (use.limit or 2 * gold) if use.key else 0
    each = []
    for tier, texts in tiers.items():
        tokens, name = texts["prompt" if use.key else "both"]
        train = lengths["tiers"][tier].get("train")
        shots = use.shots * train["both"][0] if train else 0
        each.append(LongestUse(name, tier, tokens + shots, answer))
    return max(each, key=lambda one: one.total, default=None)


def longest(texts: Iterable[Use], lengths: TextLengths) -> int:
    """Tokens of the longest prompt with its answer that any training can see, rounded up to a
    multiple of ``STEP`` but not above the model's context: Unsloth's ``max_seq_length`` where the
    recipe has none."""
    found = (longest_of(lengths, use) for use in texts if use.split == "train")
    most = max((one.total for one in found if one), default=0)
    rounded = STEP * math.ceil(most / STEP)
    return max(most, min(rounded, lengths["context"] or rounded))


def check_lengths(
    texts: Iterable[Use], lengths: TextLengths, run: Run, max_seq_length: int | None
) -> None:
    """Raise UserError where a text is longer than the recipe or the model allows, naming the
    problem and what to change."""
    limits = {
        "max_seq_length": max_seq_length,
        f"the context of {lengths['model']}": lengths["context"],
    }
    for use in texts:
        text = longest_of(lengths, use)
        own = {**limits, "sft.max_length": use.cut}
        name, allowed = min(
            ((name, most) for name, most in own.items() if most),
            key=lambda limit: limit[1],
            default=("", math.inf),
        )
        if text and text.total > allowed:
            way_out = f"raise that to {text.total}"
            if lengths["context"] and text.total > lengths["context"]:
                way_out = "take a model with a longer context"
            shorter = f"set {use.key} lower" if use.key else "use problems with fewer events"
            raise UserError(
                f"{_described(use, text, run)}, more than the {allowed:,} of {name}; {way_out}, or "
                f"{shorter}"
            )


def _described(use: Use, text: LongestUse, run: Run) -> str:
    """A problem and its tokens, as a sentence begins."""
    where = f"{run.split(use.split)}: problem {text.id} of tier {text.tier!r} has"
    if not use.key:
        return f"{where} {text.total:,} tokens with its gold answer"
    shots = f" with {use.shots} shots" if use.shots else ""
    return (
        f"{where} a prompt of {text.prompt:,} tokens{shots}, and with an answer of up to "
        f"{text.answer:,} ({use.key} of arm {use.arm}) that is {text.total:,}"
    )
