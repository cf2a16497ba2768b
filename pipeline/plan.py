"""Will it fit? Peak GPU memory of SFT, GRPO and sampling, by part, before any weights are loaded.

``make plan MODEL=folder-or-hub-id GPU=24`` reads the model's config (from the hub nothing else),
the recipe's own settings and the lengths of its prompts, for plain TRL and for Unsloth, and says
what to change where it does not fit. The arithmetic is ``pipeline.memory.arithmetic``'s.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, reason_of, run_main
from data.common.files import finished
from data.draw import make_problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, new_row, read_split
from data.tiers import TIERS, Tier
from pipeline.backends import BOTH
from pipeline.memory.arithmetic import (
    CONTEXT,
    FRAGMENTATION,
    GIB,
    PARTS,
    Estimate,
    Linear,
    ModelShape,
    Settings,
    Step,
    advise,
    estimate,
    trained,
)
from pipeline.memory.shapes import config_of
from pipeline.model.lengths import ALL, TEXTS, known_lengths, read_config, read_tokenizer, sizes
from pipeline.model.load import is_local, quiet
from pipeline.train.settings import check_settings, grpo_config, lora_config, sft_config

#: Problems drawn from each tier where the run has no data yet, and rows that are tokenized.
_DRAWN, _TOKENIZED = 12, 64
#: Without a tokenizer at hand: characters a token. Prompts are full of times, and many tokenizers
#: split every digit; and what a chat template adds.
_CHARACTERS, _TEMPLATE = 2, 40
_BLOCK = re.compile(r"\.(layers|h|blocks)\.\d+\.")


# --- the model -------------------------------------------------------------------------------


def skeleton(config: Any) -> Any:
    """The model of a config without its weights: all tensors are on torch's meta device.

    Raises:
        UserError: when transformers has no causal language model of this kind.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        reason = reason_of(error)
        raise UserError(f"no language model can be made of this config: {reason}") from None


def shape_of(config: Any, network: Any, name: str = "") -> ModelShape:
    """The shape of a model: parameters and layers counted on its skeleton, so that they are right
    for any architecture; widths of attention from its config."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    query, key = heads * head, head * (getattr(text, "num_key_value_heads", None) or heads)
    value = key
    if getattr(text, "kv_lora_rank", None):  # latent attention, which is cached whole
        query = key = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
        value = heads * text.v_head_dim
    cached = [la for la in DynamicCache(config=config).layers if isinstance(la, DynamicLayer)]
    layers = text.num_hidden_layers
    names = [name for name, _ in network.named_parameters()]
    norms, float_norms = _norms(network, layers, {"q_norm": query, "k_norm": key})
    return ModelShape(
        name=name or text.model_type,
        parameters=network.num_parameters(),
        linears=_counted(_linears(network)),
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        layers=layers,
        windows=tuple(getattr(layer, "sliding_window", None) for layer in cached),
        heads=heads,
        query=query,
        key=key,
        value=value,
        mlp=_mlp_width(text),
        gated=any("gate_proj" in name or "gate_up" in name for name in names),
        norms=norms,
        tied=bool(text.tie_word_embeddings),
        float_norms=float_norms,
        softcapped=getattr(text, "final_logit_softcapping", None) is not None,
        state=_linear_state(text, layers - len(cached)),
    )


def _linears(network: Any) -> Iterable[Linear]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name, module in network.named_modules():
        if module is network.get_output_embeddings():
            continue
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Linear):
            yield Linear(leaf, module.in_features, module.out_features, 1)
        elif isinstance(module, Conv1D):
            yield Linear(leaf, module.weight.shape[0], module.weight.shape[1], 1)


def _counted(linears: Iterable[Linear]) -> tuple[Linear, ...]:
    """Layers of the same name and size as one entry with their number."""
    return tuple(replace(one, count=count) for one, count in Counter(linears).items())


def _norms(network: Any, layers: int, per_head: Mapping[str, int]) -> tuple[int, bool]:
    """Width of all norms of a layer, and whether they stay in float32 until their end. A norm of
    queries or keys has the weight of one head and runs on all of them."""
    width, floats = 0, False
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and weight is not None and _BLOCK.search(name + "."):
            width += max(weight.numel(), per_head.get(name.rpartition(".")[2], 0))
            floats |= "Gemma" in type(module).__name__
    return width // layers, floats


def _mlp_width(text: Any) -> int:
    """Width of the feed-forward layer; with experts, of those that a token goes to."""
    width = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
    width = max(width) if isinstance(width, list | tuple) else width or 4 * text.hidden_size
    if active := getattr(text, "num_experts_per_tok", None):
        shared = getattr(text, "shared_expert_intermediate_size", None) or 0
        return active * (getattr(text, "moe_intermediate_size", None) or width) + shared
    return width


def _linear_state(text: Any, layers: int) -> int:
    """Bytes of the states of gated delta nets (the only linear attention that says its sizes in one
    way), which do not grow with the text."""
    heads = getattr(text, "linear_num_value_heads", None)
    if not heads or not layers:
        return 0
    return 4 * layers * heads * text.linear_key_head_dim * text.linear_value_head_dim


def adapters_of(recipe: Recipe, network: Any) -> tuple[tuple[Linear, ...], int, int]:
    """The layers that get LoRA, its rank, and how many parameters are trained beside: as peft puts
    them on the skeleton, which is spent by it.

    Raises:
        UserError: when peft refuses the recipe's ``lora`` section for this model.
    """
    config = lora_config(recipe)
    if config is None:
        return (), 0, 0
    from peft import get_peft_model

    try:
        network = get_peft_model(network, config)
    except ValueError as error:
        reason = reason_of(error)
        raise UserError(f"{recipe.path}: peft refuses lora for this model: {reason}") from None
    found = []
    for name, module in network.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            down, up = module.lora_A["default"], module.lora_B["default"]
            found.append(Linear(name.rpartition(".")[2], down.in_features, up.out_features, 1))
    adapters = _counted(found)
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    within = sum(config.r * (one.inputs + one.outputs) * one.count for one in adapters)
    return adapters, config.r, max(count - within, 0)


# --- the text --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, gold answer, and both together; ``source`` says how known."""

    prompt: int
    gold: int
    both: int
    source: str


def lengths_of(recipe: Recipe, prompt_tokens: int | None, gold_tokens: int | None) -> Lengths:
    """Lengths of the run's own texts, or where there are none yet of problems drawn from its tiers,
    counted with the model's tokenizer where that is at hand."""
    found = _counted_of(recipe) or _drawn_of(recipe)
    if not (prompt_tokens or gold_tokens):
        return found
    asked, gold = prompt_tokens or found.prompt, gold_tokens or found.gold
    return Lengths(asked, gold, asked + gold, "as given")


def _counted_of(recipe: Recipe) -> Lengths | None:
    """What ``make data`` counted, if it did."""
    facts = known_lengths(recipe)
    if facts is None:
        return None
    tiers = [parts[ALL] for parts in facts["tiers"].values()]
    most = {text: max(summary[text]["longest"] for summary in tiers) for text in TEXTS}
    problems = sum(summary["problems"] for summary in tiers)
    return Lengths(
        **most, source=f"longest of {problems:,} problems, counted with the model's tokenizer"
    )


def _drawn_of(recipe: Recipe) -> Lengths:
    pairs, source = _texts(recipe)
    tokenizer = _tokenizer(recipe.model)
    longest = sorted(pairs, key=lambda pair: -len(pair[0]) - len(pair[1]))[:_TOKENIZED]
    if tokenizer is None:
        found = [(len(p) // _CHARACTERS + _TEMPLATE, len(g) // _CHARACTERS) for p, g in longest]
        counted = [(prompt, gold, prompt + gold) for prompt, gold in found]
        source += f", {_CHARACTERS} characters taken for a token (no tokenizer at hand)"
    else:
        counted = list(sizes(tokenizer, longest))
        source += ", counted with the model's tokenizer"
    return Lengths(*(max(column) for column in zip(*counted, strict=True)), source)


def _texts(recipe: Recipe) -> tuple[list[tuple[str, str]], str]:
    """Prompts with their gold answers, and where they are from."""
    if finished(recipe.run.split("train").parent):
        rows = [row for split in ("train", "test") for row in read_split(recipe.run, split)]
        return [(row["prompt"], row["gold"]) for row in rows], f"longest of {len(rows):,} problems"
    # Of an imported tier, ours of that name stands in.
    tiers = {n: TIERS.get(n) if use.source else use.tier for n, use in recipe.tier_uses.items()}
    rows = drawn_rows(recipe, "plan", tiers, _DRAWN)
    if not rows:
        raise UserError(
            f"{recipe.path}: all its tiers are imported, so the lengths of their texts are known "
            "after `make data`; or give --prompt-tokens and --gold-tokens"
        )
    pairs = [(row["prompt"], row["gold"]) for row in rows]
    return pairs, f"longest of {len(pairs)} problems drawn from the tiers"


def drawn_rows(
    recipe: Recipe, purpose: str, tiers: Mapping[str, Tier | None], count: int
) -> list[Row]:
    """Rows of ``count`` problems of each tier that is known, as ``read_split`` gives those of a
    split; ``purpose`` takes the split's place, so they are other problems than a run's."""
    rows = []
    for name, tier in tiers.items():
        for i in range(count if tier else 0):
            problem = make_problem(recipe.seed, purpose, name, tier, i)
            rows.append(new_row(f"{name}-{i}", purpose, name, problem, recipe.data.reasoning))
    return rows


def _tokenizer(model: str) -> Any:
    """The model's tokenizer if it is on this machine; None otherwise."""
    try:
        return read_tokenizer(model, offline=True)
    except UserError:
        return None


# --- the settings ----------------------------------------------------------------------------


def settings_of(
    recipe: Recipe,
    kind: str,
    lengths: Lengths,
    lora: tuple[tuple[Linear, ...], int, int] = ((), 0, 0),
    gpu: float = 0.0,
) -> list[Settings]:
    """Every training of the recipe that ``kind`` may do and the sampling after it, those of equal
    size once.

    Args:
        kind: ``trl`` or ``unsloth``.
        gpu: GiB of the GPU, which vLLM takes a share of.

    Raises:
        UserError: when weights are to be quantised that are to be trained.
    """
    own = 32 if recipe.dtype == "float32" else 16
    adapters, rank, extra = lora
    if recipe.quantised and not adapters:
        raise UserError(
            f"{recipe.path}: weights of {recipe.bits} bits cannot be trained; give a lora: section"
        )
    common = Settings(
        arm="",
        stage="",
        backend=kind,
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
    found: dict[Settings, str] = {}
    for name, arm in recipe.all_arms.items():
        each = recipe.for_arm(name)
        if each.backend not in ("auto", kind):
            continue
        if arm.section == "sft":
            found.setdefault(_sft(each, common, lengths), name)
        elif arm.section == "grpo":
            found.setdefault(_grpo(each, common, lengths), name)
    for name in ("base", *recipe.all_arms):
        each = recipe.for_arm(name)
        bits = 16 if recipe.bits == 16 else own
        sampling = replace(common, bits=bits, adapters=(), rank=0, extra=0)
        found.setdefault(_sampling(each, sampling, lengths), "eval")
    return [replace(settings, arm=name) for settings, name in found.items()]


def _trainer(common: Settings, config: Any) -> Settings:
    """What SFT and GRPO have in common. Where the recipe says to checkpoint, Unsloth has what it
    saves wait in the host's memory (``use_gradient_checkpointing="unsloth"``)."""
    unsloth = common.backend == "unsloth"
    half = bool(config.bf16 or config.fp16)
    return replace(
        common,
        rows=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        checkpointing=config.gradient_checkpointing,
        offload=unsloth and config.gradient_checkpointing,
        autocast=half and common.bits == 32,
        optim=str(getattr(config.optim, "value", config.optim)),
    )


def _sft(recipe: Recipe, common: Settings, lengths: Lengths) -> Settings:
    config = sft_config(recipe, Path("unused"))
    most = config.max_length or math.inf
    both = most if config.packing and config.max_length else min(lengths.both, most)
    gold = min(lengths.gold, both)
    found = _trainer(common, config)
    loss = {"chunked_nll": "chunked"}.get(config.loss_type, "full")
    return replace(
        found,
        stage="sft",
        prompt=both - gold,
        completion=gold,
        offload=found.offload or config.activation_offloading,
        loss="liger" if config.use_liger_kernel else loss,
    )


def _grpo(recipe: Recipe, common: Settings, lengths: Lengths) -> Settings:
    config = grpo_config(recipe, Path("unused"), 2 * lengths.gold)
    beside = config.use_vllm and config.vllm_mode == "colocate"
    if beside and not common.gpu:
        raise UserError("vLLM takes a share of the GPU; --gpu says how large that is")
    return replace(
        _trainer(common, config),
        stage="grpo",
        completion=config.max_completion_length,
        loss="liger" if config.use_liger_kernel else "full",
        generated=0 if config.use_vllm else config.generation_batch_size,
        group=config.num_generations,
        beta=config.beta,
        vllm=config.vllm_gpu_memory_utilization if beside else 0.0,
        sleeps=bool(config.vllm_enable_sleep_mode),
    )


def _sampling(recipe: Recipe, common: Settings, lengths: Lengths) -> Settings:
    asking = recipe.eval
    prompts = max(1, asking.rows // asking.samples)
    return replace(
        common,
        backend="trl",  # both backends' models are sampled by pipeline.model.decode
        stage="sampling",
        prompt=lengths.prompt + asking.shots * lengths.both,
        completion=asking.max_tokens or 2 * lengths.gold,
        rows=prompts * asking.samples,
        prompts=prompts,
    )


# --- what is said ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything that ``make plan`` says. ``sizes_from`` says where the model's are known
    from."""

    recipe: Recipe
    sizes_from: str
    shape: ModelShape
    lengths: Lengths
    gpu: float | None
    estimates: dict[str, list[Estimate]]

    def fits(self, found: Estimate) -> bool | None:
        return None if self.gpu is None else found.peak.total <= self.gpu * GIB

    def advice(self, found: Estimate) -> tuple[list[Step], Estimate]:
        return advise(self.shape, found.settings, int((self.gpu or math.inf) * GIB))


def _config(model: str) -> tuple[Any, str]:
    """A model's config and where it is from: where the hub is not to be had, from our own table of
    well-known models."""
    try:
        return read_config(model), "its config.json"
    except UserError as error:
        if is_local(model):
            raise
        with suppress(UserError):
            return config_of(model), "pipeline.memory.shapes, the hub not being at hand"
        raise error from None


def kinds_of(recipe: Recipe) -> list[str]:
    """What the arms of a recipe may be trained by."""
    if recipe.fast_inference:
        return ["unsloth"]
    arms = [name for name, arm in recipe.all_arms.items() if arm.section]
    named = {recipe.for_arm(name).backend for name in arms} or {recipe.backend}
    return [kind for kind in BOTH if named & {"auto", kind}]


def plan_of(
    recipe: Recipe,
    gpu: float | None = None,
    prompt_tokens: int | None = None,
    gold_tokens: int | None = None,
) -> Plan:
    """The plan of a recipe, by everything that may train it. No weights are read. Weights that are
    quantised in the model's own folder are so in training too.

    Raises:
        UserError: when the recipe is not sound, or its model's config is not to be had.
    """
    check_settings(recipe)
    config, source = _config(recipe.model)
    if recipe.bits is None and (quantised := getattr(config, "quantization_config", None)):
        held = quantised if isinstance(quantised, dict) else quantised.to_dict()
        bits = 4 if held.get("load_in_4bit") else 8 if held.get("load_in_8bit") else None
        recipe = replace(recipe, bits=bits)
    network = skeleton(config)
    shape = shape_of(config, network, recipe.model)
    lora = adapters_of(recipe, network)
    lengths = lengths_of(recipe, prompt_tokens, gold_tokens)
    estimates = {
        kind: [
            estimate(shape, settings)
            for settings in settings_of(recipe, kind, lengths, lora, gpu or 0.0)
        ]
        for kind in kinds_of(recipe)
    }
    return Plan(recipe, source, shape, lengths, gpu, estimates)


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _table(kind: str, plan: Plan) -> Table:
    """Parts down, stages across, each stage at its peak."""
    found = plan.estimates[kind]
    title = {"trl": "TRL", "unsloth": "Unsloth"}[kind]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(f"{title}: GiB at the peak", no_wrap=True)
    for one in found:
        table.add_column(one.settings.arm, justify="right")
    peaks = [{**one.peak.parts, **one.peak.overhead} for one in found]
    for part in PARTS:
        if not any(parts.get(part) for parts in peaks):
            continue
        table.add_row(part, *(_gib(parts[part]) if parts.get(part) else "" for parts in peaks))
    table.add_section()
    table.add_row("together", *(_gib(one.peak.total) for one in found), style="bold")
    if plan.gpu is not None:
        words = {True: "yes", False: "NO"}
        table.add_row(
            f"fits {plan.gpu:g} GiB", *(words[bool(plan.fits(one))] for one in found), style="bold"
        )
    table.add_row("peaks while", *(one.peak.name for one in found))
    return table


def _advice(kind: str, plan: Plan, found: Estimate) -> Iterable[str]:
    """What to change in one stage that does not fit."""
    steps, after = plan.advice(found)
    settings = found.settings
    yield f"\n{settings.arm} with {kind} needs {_gib(found.peak.total)} GiB. In this order:"
    for number, step in enumerate(steps, 1):
        yield f"  {number}. {step.change} saves {_gib(step.saves)} GiB"
    if plan.fits(after):
        yield f"  Then it needs {_gib(after.peak.total)} GiB and fits."
    else:
        yield (
            f'  Even then it needs {_gib(after.peak.total)} GiB at "{after.peak.name}": take a '
            "smaller model or a larger GPU."
        )


def print_plan(plan: Plan, console: Console) -> None:
    """Print tables and advice."""
    shape, recipe = plan.shape, plan.recipe
    settings = next(iter(plan.estimates.values()))[0].settings
    how = (
        f"full fine-tuning, {recipe.dtype}"
        if settings.full
        else f"LoRA r = {settings.rank}, {trained(shape, settings):,} parameters trained"
    )
    said = [
        f"{recipe.model}: {shape.parameters:,} parameters, {shape.layers} layers; {how}; weights "
        f"of {settings.bits} bits. Sizes are from {plan.sizes_from}.",
        f"Prompts up to {plan.lengths.prompt:,} tokens, gold answers up to {plan.lengths.gold:,} "
        f"({plan.lengths.source}).",
    ]
    for line in said:
        console.print(line, markup=False, soft_wrap=True)
    for kind, found in plan.estimates.items():
        console.print()
        console.print(_table(kind, plan), markup=False)
        for one in found:
            if plan.fits(one) is False:
                for line in _advice(kind, plan, one):
                    console.print(line, markup=False, soft_wrap=True)
    if plan.gpu is None:
        console.print("\nGPU=24 says whether it fits a GPU of 24 GiB, and what to change.")
    console.print(
        f"\nAn estimate; assumed are {_gib(CONTEXT)} GiB for the CUDA context and "
        f"{FRAGMENTATION:.0%} for fragmentation. "
        "torch.cuda.max_memory_allocated counts neither.",
        markup=False,
        soft_wrap=True,
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for machines; sizes in bytes, every moment of every stage."""
    rows = []
    for kind, found in plan.estimates.items():
        for one in found:
            steps, after = plan.advice(one) if plan.fits(one) is False else ([], one)
            settings = asdict(one.settings)
            settings["trained"] = trained(plan.shape, one.settings)
            rows.append(
                {
                    "arm": one.settings.arm,
                    "stage": one.settings.stage,
                    "backend": kind,
                    "settings": settings,
                    "phases": [
                        {
                            "name": phase.name,
                            "parts": phase.parts,
                            "overhead": phase.overhead,
                            "allocated": phase.allocated,
                            "total": phase.total,
                        }
                        for phase in one.phases
                    ],
                    "peak": one.peak.name,
                    "allocated": one.allocated,
                    "total": one.peak.total,
                    "fits": plan.fits(one),
                    "changes": [asdict(step) for step in steps],
                    "total_after": after.peak.total,
                }
            )
    return {
        "model": plan.recipe.model,
        "sizes_from": plan.sizes_from,
        "dtype": plan.recipe.dtype,
        "gpu_gib": plan.gpu,
        "shape": asdict(plan.shape),
        "lengths": asdict(plan.lengths),
        "stages": rows,
    }


def _gpu_here() -> float | None:
    """GiB of this machine's GPU, if it has one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GIB


def positive(kind: type) -> Callable[[str], Any]:
    """For argparse: a finite number above 0, an int or a float."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
        return value

    return read


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=positive(float), help="GiB of the GPU (default: this one's)")
    parser.add_argument("--prompt-tokens", type=positive(int), help="instead of counting them")
    parser.add_argument("--gold-tokens", type=positive(int), help="instead of counting them")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, in bytes")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    quiet()
    plan = plan_of(
        recipe, arguments.gpu or _gpu_here(), arguments.prompt_tokens, arguments.gold_tokens
    )
    if arguments.json:
        print(json.dumps(to_json(plan), indent=2))
    else:
        print_plan(plan, plain_console())


if __name__ == "__main__":
    run_main(main)
