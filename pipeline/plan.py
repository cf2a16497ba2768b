"""Will it fit, and how long will it take? GPU memory, hours and money before any weights load.

``make plan MODEL=folder-or-hub-id GPU=h100 PRICE=2.50`` reads the model's config (from the hub
nothing else), the recipe's own settings and the lengths of its prompts, and says what to change
where it does not fit. ``pipeline.memory`` has the arithmetic, of plain TRL; ``make gpu-check``
measures.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data.common.console import plain_console, plain_table, say
from data.common.errors import UserError, require, run_main
from data.common.fields import nearest
from data.draw import make_problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, new_row
from data.run import goal
from data.sections import TierUse
from data.tiers import TIERS
from pipeline.memory.arithmetic import GIB, PARTS, ModelShape, Peak, Settings, changes, estimate
from pipeline.memory.speed import ARITHMETIC, BANDWIDTH, CARDS, LAUNCH, Card, seconds
from pipeline.model.lengths import TokenCounts, sizes
from pipeline.model.load import check_template, quiet, read_tokenizer
from pipeline.model.skeleton import config_of, model_shape
from pipeline.train.backend import is_unsloth_wanted
from pipeline.train.settings import check_settings, grpo_config, lora_config, sft_config
from pipeline.train.vllm import with_vllm

if TYPE_CHECKING:
    from trl import GRPOConfig, SFTConfig

#: Problems drawn from each tier.
_DRAWN = 48
#: Without a tokenizer at hand: characters a token, since prompts are full of times and many
#: tokenizers split every digit; and tokens that a chat template adds.
_CHARACTERS, _TEMPLATE = 2, 40
#: Standard deviations above the mean that one batch in a hundred reaches.
_ONE_IN_100 = 2.33


# --- the text --------------------------------------------------------------------------------


def longest_rows(recipe: Recipe) -> list[Row]:
    """Rows of problems drawn from the recipe's tiers, those with the longest texts first.

    Raises:
        UserError: when all its tiers are imported.
    """
    rows = []
    for name, use in recipe.tier_uses.items():
        # Our tier of that name stands in for an imported one.
        tier = TIERS.get(name) if use.source else use.tier
        for i in range(_DRAWN):
            if tier is not None:
                problem = make_problem(recipe.seed, "plan", name, tier, i)
                rows.append(new_row(f"{name}-{i}", "plan", name, problem, recipe.data.reasoning))
    require(
        rows, f"{recipe.path}: all its tiers are imported; it is ours that texts are drawn from"
    )
    return sorted(rows, key=lambda row: -len(row["prompt"]) - len(row["gold"]))


def longest_counts(counted: Sequence[TokenCounts]) -> TokenCounts:
    """Tokens of the longest prompt, gold answer, and both together."""
    return TokenCounts(*map(max, zip(*counted, strict=True)))


def counts(rows: Sequence[Row], model: str) -> tuple[list[TokenCounts], str]:
    """Tokens of the texts of every row, counted with the model's tokenizer where that is on this
    machine; and a phrase that says how."""
    pairs = [(row["prompt"], row["gold"]) for row in rows]
    try:
        tokenizer = read_tokenizer(model, offline=True)
        check_template(tokenizer, model)
        counted = list(sizes(tokenizer, pairs))
        how = "counted with the model's tokenizer"
    except UserError:
        guessed = [(len(p) // _CHARACTERS + _TEMPLATE, len(g) // _CHARACTERS) for p, g in pairs]
        counted = [TokenCounts(prompt, gold, prompt + gold) for prompt, gold in guessed]
        how = f"{_CHARACTERS} characters taken for a token (no tokenizer at hand)"
    return counted, how


def usual_answer(
    uses: Mapping[str, TierUse], rows: Sequence[Row], tokens: Sequence[int], prompts: int
) -> int:
    """Tokens of the mean gold answer of ``prompts`` training problems, which one batch in a hundred
    exceeds; ``tokens`` has those of every row."""
    drawn = Counter(row["tier"] for row in rows)
    weights = [uses[row["tier"]].train / drawn[row["tier"]] for row in rows]
    mean = np.average(tokens, weights=weights)
    spread = np.average((np.array(tokens) - mean) ** 2, weights=weights) ** 0.5
    return min(math.ceil(mean + _ONE_IN_100 * spread / prompts**0.5), max(tokens))


# --- the settings ----------------------------------------------------------------------------


def settings_of(
    recipe: Recipe, texts: TokenCounts, lora: int = 0, usual: Callable[[int], int] | None = None
) -> list[Settings]:
    """Every training of the recipe and the sampling after it, those of equal size once.

    Args:
        texts: the longest ones.
        lora: parameters of its adapters.
        usual: tokens of an answer, of so many prompts together; None reads all texts whole.
    """
    tested = sum(use.test for use in recipe.tier_uses.values())
    trained = sum(use.train for use in recipe.tier_uses.values())
    own, unused = 32 if recipe.dtype == "float32" else 16, Path("unused")
    arms: dict[Settings, list[str]] = defaultdict(list)
    for name, arm in recipe.all_arms.items():
        if arm.section is None:
            continue
        each = recipe.for_arm(name)
        each = with_vllm(each, is_unsloth_wanted(each.backend))
        if arm.section == "sft":
            settings = _sft_settings(sft_config(each, unused), texts, trained)
        else:
            config = grpo_config(each, unused, 2 * texts.gold)
            settings = _grpo_settings(config, texts, trained)
            if usual and _shares(each.backend, each.model, config):
                prompts = math.ceil(settings.rows / settings.group)
                settings = replace(settings, usual=min(usual(prompts), settings.completion))
        arms[replace(settings, bits=recipe.bits or own, lora=lora)].append(name)
    for name in recipe.run.names:
        asking = recipe.for_arm(name).eval
        prompts = max(1, asking.rows // asking.samples)
        sampling = Settings(
            stage="sampling",
            bits=own,  # of merged weights
            prompt=texts.prompt + asking.shots * texts.both,
            completion=asking.max_tokens or 2 * texts.gold,
            read=prompts,
            drawn=prompts * asking.samples,
            group=asking.samples,
            rounds=math.ceil(tested / prompts),
        )
        arms[sampling].append("eval")
    return [replace(one, arm=names[0], times=len(names)) for one, names in arms.items()]


def _shares(backend: str, model: str, config: GRPOConfig) -> bool:
    """Whether GRPO here reads a prompt once for its group, as far as it can be told of a config."""
    from pipeline.train.prompt_once import may_share

    return not is_unsloth_wanted(backend) and may_share(config_of(model), config)


def _sft_settings(config: SFTConfig, texts: TokenCounts, trained: int) -> Settings:
    return Settings(
        stage="sft",
        prompt=texts.both - texts.gold,
        completion=texts.gold,
        chunked=config.use_liger_kernel or config.loss_type == "chunked_nll",
        **_of_training(config, trained),
    )


def _grpo_settings(config: GRPOConfig, texts: TokenCounts, trained: int) -> Settings:
    beside = config.use_vllm and config.vllm_mode == "colocate"
    drawn = 0 if config.use_vllm else config.generation_batch_size or 0
    return Settings(
        stage="grpo",
        prompt=texts.prompt,
        completion=config.max_completion_length or 0,
        chunked=config.use_liger_kernel,
        read=drawn,  # trl reads a prompt once for each of its answers
        drawn=drawn,
        group=config.num_generations or 1,
        iterations=config.num_iterations,
        beta=config.beta,
        vllm=config.vllm_gpu_memory_utilization if beside else 0.0,
        **_of_training(config, trained * (config.num_generations or 1) * config.num_iterations),
    )


def _of_training(config: SFTConfig | GRPOConfig, sequences: int) -> dict[str, Any]:
    """What SFT and GRPO have in common; an epoch has so many ``sequences``."""
    rows, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    epochs = math.ceil(config.num_train_epochs * sequences / (rows * accumulation))
    return {
        "rows": rows,
        "checkpointing": config.gradient_checkpointing,
        "optim": str(getattr(config.optim, "value", config.optim)),
        "accumulation": accumulation,
        "rounds": config.max_steps if config.max_steps > 0 else epochs,
    }


# --- the plan --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a recipe would hold; ``source`` says how the longest ``texts`` are known."""

    model: str
    shape: ModelShape
    texts: TokenCounts
    source: str
    stages: list[Peak]


def plan_of(recipe: Recipe) -> Plan:
    """The plan of a recipe. No weights are read.

    Raises:
        UserError: when the recipe is not sound or its model's config is not available.
    """
    check_settings(recipe)
    shape, lora = model_shape(recipe.model, lora_config(recipe.lora, str(recipe.path)))
    rows = longest_rows(recipe)
    counted, source = counts(rows, recipe.model)
    texts, answers = longest_counts(counted), [count.gold for count in counted]
    usual = partial(usual_answer, recipe.tier_uses, rows, answers)
    stages = [estimate(shape, one) for one in settings_of(recipe, texts, lora, usual)]
    source = f"longest of {len(rows)} problems drawn, {source}"
    return Plan(recipe.model, shape, texts, source, stages)


def room_for(stage: Peak, gpu: float) -> int:
    """Bytes that a GPU of so many GiB leaves a stage."""
    return int(gpu * GIB * (1 - stage.settings.vllm))


def gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _table(stages: Sequence[Peak], gpu: float | None) -> Table:
    """Parts down, stages across, each stage at its peak."""
    table = plain_table("GiB at the peak", *(one.settings.arm for one in stages))
    for part in PARTS:
        if any(part in one.parts for one in stages):
            table.add_row(
                part, *(gib(one.parts[part]) if part in one.parts else "" for one in stages)
            )
    table.add_row("CUDA, fragmentation", *(gib(one.total - one.allocated) for one in stages))
    table.add_section()
    table.add_row("together", *(gib(one.total) for one in stages), style="bold")
    if gpu:
        fit = ("yes" if one.total <= room_for(one, gpu) else "NO" for one in stages)
        table.add_row(f"fits {gpu:g} GiB", *fit, style="bold")
    table.add_row("peaks while", *(one.moment for one in stages))
    return table


def print_hours(plan: Plan, card: Card | None, price: float | None, console: Console) -> None:
    """Print the time of every stage and of all on one card, and what it costs."""
    if card is None:
        names = ", ".join(CARDS)
        say(console, f"\nGPU=h100, or another card by name ({names}), says how many hours.")
        return
    times = {
        one.settings.arm: (one, seconds(plan.shape, one.settings, card)) for one in plan.stages
    }
    each = [
        f"{arm} {time / 3600:.2f}"
        + (f" ({one.settings.times} arms)" if one.settings.times > 1 else "")
        for arm, (one, time) in times.items()
    ]
    total = sum(time for _, time in times.values()) / 3600
    cost = f", {total * price:,.2f} dollars at {price:g} an hour" if price else ""
    say(
        console,
        f"\nHours: {', '.join(each)}; together about {total:.2f}{cost}.\n"
        f"Estimated for {ARITHMETIC:.0%} of the card's peak arithmetic, {BANDWIDTH:.0%} of its "
        f"bandwidth, {1e3 * LAUNCH:g} ms a layer and token to launch kernels, one card, and texts "
        "as long as the longest; fresh answers of the conclusion come on top. No GPU has confirmed "
        "it; training says its own time after the first steps.",
    )


def print_plan(
    plan: Plan,
    gpu: float | None,
    console: Console,
    card: Card | None = None,
    price: float | None = None,
) -> None:
    """Print the table, below it what would make a stage fit that does not, and the hours."""
    shape, texts, settings = plan.shape, plan.texts, plan.stages[0].settings
    lora = f"LoRA, {settings.lora:,} parameters trained"
    say(
        console,
        f"{plan.model}: {shape.parameters:,} parameters, {shape.layers} layers; "
        f"{lora if settings.lora else 'full fine-tuning'}; weights of {settings.bits} bits.\n"
        f"Prompts up to {texts.prompt:,} tokens, gold answers up to {texts.gold:,} "
        f"({plan.source}).\n",
    )
    console.print(_table(plan.stages, gpu), markup=False)
    for one in plan.stages:
        if not gpu or one.total <= room_for(one, gpu):
            continue
        say(console, f"\n{one.settings.arm} does not fit. One after the other,")
        for words, changed in changes(shape, one.settings):
            total = estimate(shape, changed).total
            say(console, f"  {words}  makes that {gib(total)} GiB")
            if total <= room_for(one, gpu):
                break
    print_hours(plan, card, price, console)
    if not gpu:
        say(console, "\nGPU=24 says whether it fits a GPU of 24 GiB, and what to change.")
    check = goal("gpu-check")
    say(console, f"\nAn estimate, of TRL; Unsloth is made to hold less. {check} measures.")


def gpu_here() -> tuple[float | None, Card | None]:
    """GiB of this machine's GPU, if it has one, and its data sheet where that is known."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    here = torch.cuda.get_device_properties(0)
    name = here.name.lower().replace(" ", "")
    known = max((card for card in CARDS if card in name), key=len, default="")
    return here.total_memory / GIB, CARDS.get(known)


def _gpu(text: str) -> tuple[float, Card | None]:
    """For argparse: GiB, or a card by name."""
    name = text.lower().replace(" ", "")
    known = name.replace("-", "")
    for card in (known, f"rtx{known}"):
        if card in CARDS:
            return CARDS[card].gib, CARDS[card]
    try:
        return _size(name.removesuffix("gib").removesuffix("gb")), None
    except argparse.ArgumentTypeError:
        cards, near = ", ".join(CARDS), nearest(name, CARDS)
        raise argparse.ArgumentTypeError(
            f"must be GiB above 0 or a card ({cards}), not {text!r}{near}"
        ) from None


def _size(text: str) -> float:
    """For argparse: a finite number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=_gpu, help="GiB, or a card by name (default: this one)")
    parser.add_argument("--price", type=_size, help="dollars an hour of the card")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments, begins=True)
    quiet()
    gpu, card = arguments.gpu or gpu_here()
    if arguments.price and card is None:
        raise UserError(
            f"PRICE= (--price) needs a card by name in GPU= (--gpu): one of {', '.join(CARDS)}"
        )
    print_plan(plan_of(recipe), gpu, plain_console(), card, arguments.price)


if __name__ == "__main__":
    run_main(main)
