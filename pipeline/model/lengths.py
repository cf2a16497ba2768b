"""Do the texts fit? Every prompt and gold answer, counted by the model's own tokenizer.

``python -m pipeline.check --lengths``, the last part of ``make data``, writes
``runs/<run>/data/lengths.json`` and refuses a recipe under
which a prompt and its answer would not fit the model, ``max_seq_length`` or ``sft.max_length``: a
trainer cuts what is too long without a word, and a sampler goes on where the model knows no
position. Problems that are too long are not dropped: floors and card are of the problems written,
so it is the tier that has to change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError
from data.common.files import Stage, finished, stage_facts
from data.prompts import messages
from data.recipe import Recipe
from data.rows import read_split
from data.sections import SPLITS
from pipeline.model.decode import render
from pipeline.model.load import check_template, explained, is_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Prompt, gold answer, and the conversation of both, in tokens.
Sizes = tuple[int, int, int]
TEXTS = ("prompt", "gold", "both")
#: Of a tier's problems in every split together.
ALL = "all"
#: What ``longest`` is rounded up to.
STEP = 64
#: Texts tokenized at a time.
_BATCH = 1000
#: What a folder's tokenizer and context are read from.
_READ = (".json", ".jinja", ".model", ".txt")


# --- the model -------------------------------------------------------------------------------


def read_config(model: str) -> Any:
    """A model's config, from its folder or the hub.

    Raises:
        UserError: when there is none, or transformers does not know the architecture.
    """
    from transformers import AutoConfig

    if is_local(model) and not (Path(model) / "config.json").is_file():
        raise UserError(f"model folder {model} does not exist or has no config.json")
    with explained(model, "config.json"):
        return AutoConfig.from_pretrained(model, trust_remote_code=False)


def read_tokenizer(model: str, offline: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer, from its folder or the hub; ``offline`` from this machine alone.

    Raises:
        UserError: when it is not to be had.
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json")
    if is_local(model) and not any((Path(model) / name).is_file() for name in files):
        raise UserError(f"model folder {model} has no tokenizer (tokenizer.json)")
    with explained(model, "tokenizer.json"):
        return AutoTokenizer.from_pretrained(
            model, local_files_only=offline, trust_remote_code=False
        )


# --- counting --------------------------------------------------------------------------------


def sizes(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> Iterator[Sizes]:
    """Tokens of each prompt as the model reads it, up to where the answer begins; of its gold
    answer; and of the whole conversation, which is what SFT trains on."""
    count, plain = _counter(tokenizer), tokenizer.chat_template is None
    for start in range(0, len(pairs), _BATCH):
        asked = [prompt for prompt, _ in pairs[start : start + _BATCH]]
        golds = [gold for _, gold in pairs[start : start + _BATCH]]
        if plain:
            both = [f"{prompt}{gold}\n" for prompt, gold in zip(asked, golds, strict=True)]
        else:
            turns = [messages(*pair) for pair in zip(asked, golds, strict=True)]
            both = tokenizer.apply_chat_template(turns, tokenize=False)
            asked = [render(tokenizer, prompt) for prompt in asked]
        yield from zip(count(asked), count(golds), count(both), strict=True)


def _counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[int]]:
    """What counts the tokens of texts. Asked past transformers, the tokenizers library is twice as
    fast: no offsets, masks and lists of ids."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return lambda texts: [
            len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
    fast.no_truncation()
    fast.no_padding()
    return lambda texts: [
        len(found) for found in fast.encode_batch_fast(texts, add_special_tokens=False)
    ]


def _summary(found: Mapping[str, Sizes]) -> dict[str, Any]:
    """Of sizes by problem id: how many there are, the longest of each text and whose it is, and
    the 99th percentile."""
    facts: dict[str, Any] = {"problems": len(found)}
    place = math.ceil(0.99 * len(found)) - 1
    for number, text in enumerate(TEXTS):
        first = max(found, key=lambda name: found[name][number])
        tokens = sorted(size[number] for size in found.values())
        facts[text] = {"longest": tokens[-1], "id": first, "p99": tokens[place]}
    return facts


def count_lengths(recipe: Recipe) -> dict[str, Any]:
    """The content of ``lengths.json``: the model, its context (null where its config names none),
    and for each tier, and each split of it, the ``_summary`` of its problems.

    Raises:
        UserError: when the data are not finished, or model or tokenizer are not to be had.
    """
    rows = {split: read_split(recipe.run, split) for split in SPLITS}
    tokenizer = read_tokenizer(recipe.model)
    check_template(tokenizer, recipe.model)
    text = read_config(recipe.model).get_text_config(decoder=True)
    found: dict[str, dict[str, dict[str, Sizes]]] = {}
    for split in SPLITS:
        pairs = [(row["prompt"], row["gold"]) for row in rows[split]]
        for row, size in zip(rows[split], sizes(tokenizer, pairs), strict=True):
            for part in (ALL, split):
                found.setdefault(row["tier"], {}).setdefault(part, {})[row["id"]] = size
    return {
        "model": recipe.model,
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "context": getattr(text, "max_position_embeddings", None),
        "tiers": {
            tier: {part: _summary(ids) for part, ids in parts.items()}
            for tier, parts in found.items()
        },
    }


def lengths_stage(recipe: Recipe) -> Stage:
    """The folder has the manifest alone; the data's own lies where the result does."""
    model = Path(recipe.model)
    files = []
    if is_local(recipe.model) and model.is_dir():
        files = sorted(path for path in model.iterdir() if path.suffix in _READ)
    inputs = [*(recipe.run.split(split) for split in SPLITS), *files]
    return Stage(recipe.run.lengths.with_suffix(""), "lengths", {"model": recipe.model}, inputs)


def known_lengths(recipe: Recipe) -> dict[str, Any] | None:
    """``lengths.json``, if it is of the run's data and model as they are now. Prints nothing."""
    folder = recipe.run.lengths.with_suffix("")
    if not (finished(recipe.run.split("train").parent) and finished(folder)):
        return None
    facts, key = stage_facts(folder), lengths_stage(recipe).key
    current = {name: facts.get(name) for name in key} == key
    return read_lengths(recipe) if current and recipe.run.lengths.is_file() else None


def read_lengths(recipe: Recipe) -> dict[str, Any]:
    path = recipe.run.lengths
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        facts = {}
    if not (isinstance(facts, dict) and {"context", "tiers"} <= facts.keys()):
        raise UserError(f"{path} cannot be read; FORCE=1 make data writes it again")
    return facts


# --- what they have to fit -------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One way in which a recipe puts texts before the model.

    Attributes:
        arm: whose it is.
        training: or else sampling.
        split, tiers: of the problems; no tiers are all of them.
        key: of the recipe, that limits an answer; none where the answer is the gold one.
        limit: what it says; None allows twice the longest gold answer.
        shots: solved training problems shown before the prompt.
    """

    arm: str
    training: bool
    split: str
    tiers: tuple[str, ...] = ()
    key: str | None = None
    limit: int | None = None
    shots: int = 0


def uses(recipe: Recipe) -> Iterator[Use]:
    """What training and evaluation of every arm read."""
    for name, arm in recipe.all_arms.items():
        each = recipe.for_arm(name)
        tokens = each.eval.max_tokens
        if arm.section == "sft":
            yield Use(name, True, "train", arm.tiers)
        if arm.trainer == "rejection":  # trains on answers that it sampled
            yield Use(name, True, "train", arm.tiers, "eval.max_tokens", tokens)
        if arm.trainer == "grpo":
            key = "max_completion_length"
            yield Use(name, True, "train", arm.tiers, f"grpo.{key}", each.grpo.get(key))
    for name in ("base", *recipe.all_arms):
        asking = recipe.for_arm(name).eval
        tune = {} if name == "base" else recipe.all_arms[name].tune
        shots = max(tune.get("shots", (asking.shots,)))
        key = "eval.max_tokens"
        yield Use(name, False, "test", (), key, asking.max_tokens, shots)
        if tune:
            main = (recipe.data.main,)
            yield Use(name, False, "val", main, key, asking.max_tokens, shots)


@dataclass(frozen=True)
class Longest:
    """The longest texts of one use, in tokens.

    Attributes:
        prompt: of the prompt with its shots; of prompt and gold answer where that is the answer.
        answer: that may follow.
        gold: of the longest gold answer.
    """

    id: str
    tier: str
    prompt: int
    answer: int
    gold: int

    @property
    def total(self) -> int:
        return self.prompt + self.answer


def longest_of(facts: Mapping[str, Any], use: Use) -> Longest | None:
    """The longest texts of a use; None where it has no problems. Which shots a problem gets is
    drawn, so they count as the longest of their tier."""
    tiers = {
        tier: parts[use.split]
        for tier, parts in facts["tiers"].items()
        if use.split in parts and tier in (use.tiers or facts["tiers"])
    }
    gold = max((summary["gold"]["longest"] for summary in tiers.values()), default=0)
    answer = (use.limit or 2 * gold) if use.key else 0
    found = []
    for tier, summary in tiers.items():
        text = summary["prompt" if use.key else "both"]
        shown = facts["tiers"][tier].get("train") if use.shots else None
        shots = use.shots * shown["both"]["longest"] if shown else 0
        found.append(Longest(text["id"], tier, text["longest"] + shots, answer, gold))
    return max(found, key=lambda one: one.total, default=None)


def check_lengths(recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Raise UserError where a text is longer than the recipe or the model allows, naming the
    problem and what to change. ``facts`` is the content of ``lengths.json``."""
    context = facts["context"]
    limits = [(recipe.max_seq_length, f"max_seq_length of {recipe.path}")]
    limits.append((context, f"the context of {recipe.model}"))
    limit, name = min((one for one in limits if one[0]), default=(math.inf, ""))
    for use in uses(recipe):
        found = longest_of(facts, use)
        if found is None:
            continue
        if use.training and not use.key:
            _check_cut(recipe, use, found)
        if found.total > limit:
            ways = list(_ways(recipe, use, found, limit, context))
            out = ", or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
            raise UserError(
                f"{_said(recipe, use, found)}, more than the {limit:,} of {name}; {out}"
            )


def _check_cut(recipe: Recipe, use: Use, found: Longest) -> None:
    most = recipe.for_arm(use.arm).sft.get("max_length")
    if most and found.total > most:
        raise UserError(
            f"{_said(recipe, use, found)}, more than the {most:,} of sft.max_length in "
            f"{recipe.path}, which would cut the answer; set it to {found.total} or leave it out"
        )


def _said(recipe: Recipe, use: Use, found: Longest) -> str:
    """A problem and its tokens, as a sentence begins."""
    where = f"{recipe.run.split(use.split)}: problem {found.id} of tier {found.tier!r} has"
    if not use.key:
        return f"{where} {found.total:,} tokens with its gold answer"
    shots = f" with {use.shots} shots" if use.shots else ""
    return (
        f"{where} a prompt of {found.prompt:,} tokens{shots}, and with an answer of up to "
        f"{found.answer:,} ({use.key} of arm {use.arm}) that is {found.total:,}"
    )


def _ways(
    recipe: Recipe, use: Use, found: Longest, limit: int, context: int | None
) -> Iterator[str]:
    """What to change, the least first."""
    if found.total <= (context or math.inf):
        yield f"raise max_seq_length to {found.total} or more"
    if use.key and limit - found.prompt >= found.gold:
        yield f"set {use.key} to {limit - found.prompt} or less"
    if use.shots:
        yield "show fewer shots"
    if not found.total <= (context or math.inf):
        yield "take a model with a longer context"
    source = recipe.tier_uses[found.tier].source
    yield (
        f"leave the problem out of {source}"
        if source
        else (f"ask for fewer events in data.tiers.{found.tier}")
    )


def lengths_now(recipe: Recipe) -> dict[str, Any]:
    """``lengths.json`` where it is current, else counted; writes and prints nothing.

    Raises:
        UserError: see ``count_lengths``.
    """
    return known_lengths(recipe) or count_lengths(recipe)


def longest(recipe: Recipe, facts: Mapping[str, Any]) -> int:
    """Tokens of the longest prompt with its answer that any training of the recipe can see, rounded
    up to a multiple of ``STEP`` but not above the model's context: what Unsloth should be given as
    ``max_seq_length`` where the recipe has none.

    Args:
        facts: the content of ``lengths.json``.
    """
    found = (longest_of(facts, use) for use in uses(recipe) if use.training)
    most = max((one.total for one in found if one), default=0)
    rounded = STEP * math.ceil(most / STEP)
    return max(most, min(rounded, facts["context"] or rounded))
