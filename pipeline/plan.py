"""Will it fit? Peak GPU memory of SFT, GRPO and sampling, by part, before any weights are loaded.

``make plan MODEL=folder-or-hub-id GPU=24`` reads the model's config (from the hub nothing else),
the recipe's own settings and the lengths of its prompts, for plain TRL and for Unsloth, and says
what to change where it does not fit. ``pipeline.memory`` has the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import finished
from data.draw import make_problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, new_row, read_split
from data.sections import EvalSection
from data.tiers import TIERS
from pipeline.memory.advice import savings
from pipeline.memory.arithmetic import GIB, Linear, ModelShape, Settings, trained
from pipeline.memory.stages import CONTEXT, FRAGMENTATION, PARTS, StageMemory, estimate
from pipeline.model.lengths import TokenCounts, sizes
from pipeline.model.load import quiet, read_tokenizer
from pipeline.model.skeleton import adapters_on, config_of, shape_of, skeleton
from pipeline.train.settings import check_settings, grpo_config, lora_config, sft_config

if TYPE_CHECKING:
    from trl import GRPOConfig, SFTConfig

#: Problems drawn from each tier where the run has no data yet, and rows that are tokenized.
_DRAWN, _TOKENIZED = 12, 64
#: Without a tokenizer at hand: characters a token, since prompts are full of times and many
#: tokenizers split every digit; and tokens that a chat template adds.
_CHARACTERS, _TEMPLATE = 2, 40


# --- the text --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, gold answer, and both together; ``source`` says how known."""

    prompt: int
    gold: int
    both: int
    source: str


def longest_rows(recipe: Recipe) -> tuple[list[Row], str]:
    """The rows with the longest texts, of the run's data or, where there are none yet, of problems
    drawn from its tiers; and a phrase that says which.

    Raises:
        UserError: when there are no data yet and all tiers are imported.
    """
    if finished(recipe.run.data):
        rows = [row for split in ("train", "test") for row in read_split(recipe.run, split)]
        source = f"longest of {len(rows):,} problems"
    else:
        rows = []
        for name, use in recipe.tier_uses.items():
            # Our tier of that name stands in for an imported one.
            tier = TIERS.get(name) if use.source else use.tier
            if tier is None:
                continue
            for i in range(_DRAWN):
                problem = make_problem(recipe.seed, "plan", name, tier, i)
                rows.append(new_row(f"{name}-{i}", "plan", name, problem, recipe.data.reasoning))
        source = f"longest of {len(rows)} problems drawn from the tiers"
    if not rows:
        raise UserError(
            f"{recipe.path}: all its tiers are imported, so the lengths of their texts are known "
            "after `make data`"
        )
    rows.sort(key=lambda row: -len(row["prompt"]) - len(row["gold"]))
    return rows[:_TOKENIZED], source


def lengths_of(rows: Sequence[Row], source: str, model: str) -> Lengths:
    """Lengths of rows, counted with the model's tokenizer where that is on this machine."""
    pairs = [(row["prompt"], row["gold"]) for row in rows]
    try:
        counted = list(sizes(read_tokenizer(model, offline=True), pairs))
        source += ", counted with the model's tokenizer"
    except UserError:
        counted = [
            TokenCounts(
                len(p) // _CHARACTERS + _TEMPLATE,
                len(g) // _CHARACTERS,
                (len(p) + len(g)) // 2 + 40,
            )
            for p, g in pairs
        ]
        source += f", {_CHARACTERS} characters taken for a token (no tokenizer at hand)"
    prompt, gold, both = (max(column) for column in zip(*counted, strict=True))
    return Lengths(prompt, gold, both, source)


# --- the settings ----------------------------------------------------------------------------


def settings_of(
    recipe: Recipe,
    backend: str,
    lengths: Lengths,
    lora: tuple[tuple[Linear, ...], int, int] = ((), 0, 0),
    gpu: float = 0.0,
) -> list[Settings]:
    """Every training of the recipe that ``backend`` may do and the sampling after it, those of
    equal size once.

    Args:
        gpu: GiB of the GPU, which vLLM takes a share of.
    """
    own = 32 if recipe.dtype == "float32" else 16
    adapters, rank, extra = lora
    common = Settings(
        arm="",
        stage="",
        backend=backend,
        bits=recipe.bits or own,
        prompt=lengths.prompt,
        completion=lengths.gold,
        rows=1,
        adapters=adapters,
        rank=rank,
        extra=extra,
        dropout=bool((recipe.lora or {}).get("lora_dropout")),
        gpu=gpu,
        gold=lengths.gold,
    )
    arms: dict[Settings, str] = {}
    for name, arm in recipe.all_arms.items():
        each, unused = recipe.for_arm(name), Path("unused")
        if each.backend not in ("auto", backend):
            continue
        if arm.section == "sft":
            arms.setdefault(_sft_settings(sft_config(each, unused), common, lengths), name)
        elif arm.section == "grpo":
            arms.setdefault(
                _grpo_settings(grpo_config(each, unused, 2 * lengths.gold), common), name
            )
    # Both backends' models are sampled by pipeline.model.decode, from merged weights.
    bits = 16 if recipe.bits == 16 else own
    plain = replace(common, backend="trl", bits=bits, adapters=(), rank=0, extra=0)
    for name in recipe.run.names:
        arms.setdefault(_sampling_settings(recipe.for_arm(name).eval, plain, lengths), "eval")
    return [replace(settings, arm=name) for settings, name in arms.items()]


def _trainer_settings(common: Settings, config: SFTConfig | GRPOConfig) -> Settings:
    """What SFT and GRPO have in common. Where the recipe says to checkpoint, Unsloth has what it
    saves wait in the host's memory (``use_gradient_checkpointing="unsloth"``)."""
    return replace(
        common,
        rows=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        checkpointing=config.gradient_checkpointing,
        offload=common.backend == "unsloth" and config.gradient_checkpointing,
        autocast=bool(config.bf16 or config.fp16) and common.bits == 32,
        optim=str(getattr(config.optim, "value", config.optim)),
    )


def _sft_settings(config: SFTConfig, common: Settings, lengths: Lengths) -> Settings:
    most = config.max_length or math.inf
    both = int(most if config.packing and config.max_length else min(lengths.both, most))
    gold = min(lengths.gold, both)
    trainer = _trainer_settings(common, config)
    loss = "chunked" if config.loss_type == "chunked_nll" else "full"
    return replace(
        trainer,
        stage="sft",
        prompt=both - gold,
        completion=gold,
        offload=trainer.offload or config.activation_offloading,
        loss="liger" if config.use_liger_kernel else loss,
    )


def _grpo_settings(config: GRPOConfig, common: Settings) -> Settings:
    beside = config.use_vllm and config.vllm_mode == "colocate"
    if beside and not common.gpu:
        raise UserError("vLLM takes a share of the GPU; --gpu says how large that is")
    return replace(
        _trainer_settings(common, config),
        stage="grpo",
        completion=config.max_completion_length or 0,
        loss="liger" if config.use_liger_kernel else "full",
        generated=0 if config.use_vllm else config.generation_batch_size or 0,
        group=config.num_generations or 1,
        beta=config.beta,
        vllm=config.vllm_gpu_memory_utilization if beside else 0.0,
        sleeps=bool(config.vllm_enable_sleep_mode),
    )


def _sampling_settings(asking: EvalSection, common: Settings, lengths: Lengths) -> Settings:
    prompts = max(1, asking.rows // asking.samples)
    return replace(
        common,
        stage="sampling",
        prompt=lengths.prompt + asking.shots * lengths.both,
        completion=asking.max_tokens or 2 * lengths.gold,
        rows=prompts * asking.samples,
        prompts=prompts,
    )


# --- the plan --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything that ``make plan`` says. ``sizes_from`` says where the model's sizes are from,
    ``gpu`` is in GiB."""

    model: str
    dtype: str
    sizes_from: str
    shape: ModelShape
    lengths: Lengths
    gpu: float | None
    estimates: dict[str, list[StageMemory]]

    def fits(self, stage: StageMemory) -> bool | None:
        """None where no GPU is given."""
        return None if self.gpu is None else stage.peak.total <= self.gpu * GIB


def plan_of(recipe: Recipe, gpu: float | None = None, lengths: Lengths | None = None) -> Plan:
    """The plan of a recipe, by everything that may train it. No weights are read. Weights that are
    quantised in the model's own folder are so in training too.

    Args:
        gpu: GiB of the GPU.
        lengths: of its texts, instead of counting them.

    Raises:
        UserError: when the recipe is not sound, its model's config is not available, or weights
            are to be quantised that are to be trained.
    """
    check_settings(recipe)
    config, sizes_from = config_of(recipe.model)
    if recipe.bits is None and (quantised := getattr(config, "quantization_config", None)):
        held = quantised if isinstance(quantised, dict) else quantised.to_dict()
        bits = 4 if held.get("load_in_4bit") else 8 if held.get("load_in_8bit") else None
        recipe = replace(recipe, bits=bits)
    if recipe.quantised and recipe.lora is None:
        raise UserError(
            f"{recipe.path}: weights of {recipe.bits} bits cannot be trained; give a lora: section"
        )
    network = skeleton(config)
    shape = shape_of(network, recipe.model)
    lora = adapters_on(network, lora_config(recipe.lora, str(recipe.path)))
    lengths = lengths or lengths_of(*longest_rows(recipe), recipe.model)
    # Backends that may train the arms.
    arms = [name for name, arm in recipe.all_arms.items() if arm.section]
    named = {recipe.for_arm(name).backend for name in arms} or {recipe.backend}
    named = {"unsloth"} if recipe.fast_inference else named
    estimates = {
        backend: [
            estimate(shape, settings)
            for settings in settings_of(recipe, backend, lengths, lora, gpu or 0.0)
        ]
        for backend in ("trl", "unsloth")
        if backend in named or "auto" in named
    }
    return Plan(recipe.model, recipe.dtype, sizes_from, shape, lengths, gpu, estimates)


def gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _table(title: str, stages: Sequence[StageMemory], plan: Plan) -> Table:
    """Parts down, stages across, each stage at its peak."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(f"{title}: GiB at the peak", no_wrap=True)
    for one in stages:
        table.add_column(one.settings.arm, justify="right")
    peaks = [{**one.peak.parts, **one.peak.overhead} for one in stages]
    for part in PARTS:
        if any(part in parts for parts in peaks):
            table.add_row(part, *(gib(parts[part]) if part in parts else "" for parts in peaks))
    table.add_section()
    table.add_row("together", *(gib(one.peak.total) for one in stages), style="bold")
    if plan.gpu is not None:
        fit = ("yes" if plan.fits(one) else "NO" for one in stages)
        table.add_row(f"fits {plan.gpu:g} GiB", *fit, style="bold")
    table.add_row("peaks while", *(one.peak.name for one in stages))
    return table


def print_plan(plan: Plan, console: Console) -> None:
    """Print the tables, and below them what would save memory where a stage does not fit."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    shape, lengths = plan.shape, plan.lengths
    settings = next(iter(plan.estimates.values()))[0].settings
    how = f"LoRA r = {settings.rank}, {trained(shape, settings):,} parameters trained"
    how = f"full fine-tuning, {plan.dtype}" if settings.full else how
    say(
        f"{plan.model}: {shape.parameters:,} parameters, {shape.layers} layers; {how}; weights of "
        f"{settings.bits} bits. Sizes are from {plan.sizes_from}.\nPrompts up to "
        f"{lengths.prompt:,} tokens, gold answers up to {lengths.gold:,} ({lengths.source})."
    )
    for backend, stages in plan.estimates.items():
        console.print()
        console.print(_table({"trl": "TRL"}.get(backend, "Unsloth"), stages, plan), markup=False)
        for one in (one for one in stages if plan.fits(one) is False):
            say(f"\n{one.settings.arm} with {backend} does not fit. By itself,")
            for words, _, saved in savings(shape, one.settings):
                say(f"  {words} saves {gib(saved)} GiB")
    if plan.gpu is None:
        say("\nGPU=24 says whether it fits a GPU of 24 GiB, and what to change.")
    say(
        f"\nAn estimate; assumed are {gib(CONTEXT)} GiB for the CUDA context and "
        f"{FRAGMENTATION:.0%} for fragmentation. torch.cuda.max_memory_allocated counts neither."
    )


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan for machines; sizes in bytes, every moment of every stage."""
    stages = [
        {
            "backend": backend,
            "arm": one.settings.arm,
            "stage": one.settings.stage,
            "settings": {**asdict(one.settings), "trained": trained(plan.shape, one.settings)},
            "phases": [{**asdict(phase), "allocated": phase.allocated, "total": phase.total}
                       for phase in one.phases],
            "peak": one.peak.name,
            "allocated": one.allocated,
            "total": one.peak.total,
            "fits": plan.fits(one),
        }
        for backend, several in plan.estimates.items()
        for one in several
    ]  # fmt: skip
    about = {"model": plan.model, "sizes_from": plan.sizes_from, "dtype": plan.dtype}
    counted = {"shape": asdict(plan.shape), "lengths": asdict(plan.lengths)}
    return {**about, "gpu_gib": plan.gpu, **counted, "stages": stages}


def gpu_here() -> float | None:
    """GiB of this machine's GPU, if it has one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GIB


def _size(text: str) -> float:
    """For argparse: a finite number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=_size, help="GiB of the GPU (default: this one's)")
    parser.add_argument("--prompt-tokens", type=_size, help="instead of counting them")
    parser.add_argument("--gold-tokens", type=_size, help="instead of counting them")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, in bytes")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    quiet()
    lengths, given = None, (arguments.prompt_tokens, arguments.gold_tokens)
    if any(given):
        if not all(given):
            parser.error("--prompt-tokens and --gold-tokens go together")
        prompt, gold = map(math.ceil, given)
        lengths = Lengths(prompt, gold, prompt + gold, "as given")
    plan = plan_of(recipe, arguments.gpu or gpu_here(), lengths)
    if arguments.json:
        print(json.dumps(plan_json(plan), indent=2))
    else:
        print_plan(plan, plain_console())


if __name__ == "__main__":
    run_main(main)
