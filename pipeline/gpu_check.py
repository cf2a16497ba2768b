"""What does a step of your recipe cost on this machine, and is ``make plan`` right about it?

A dry run: every training of the recipe takes a few real steps on its longest problems, with its own
model, backend and settings, in a process of its own, since memory must start empty and Unsloth
patches its process. Answers in GRPO are as long as the recipe allows.

With ``--random`` the weights are random ones in the model's shape, and nothing is downloaded.

Memory is what ``torch.cuda.max_memory_allocated`` counts. Without a GPU it is the weights and what
torch's profiler sees allocated beside them, which slows the steps down.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.console import plain_console, plain_table
from data.common.errors import UserError, require, run_main
from data.recipe import Recipe, recipe_arguments, recipe_from
from pipeline import grpo, sft
from pipeline.corpus.tokens import build_tokenizer
from pipeline.memory.arithmetic import GIB, estimate
from pipeline.model.load import quiet, write_model
from pipeline.model.processes import run_apart
from pipeline.model.skeleton import config_of
from pipeline.plan import counts, longest_counts, longest_rows, plan_of
from pipeline.train.loading import load_for_training
from pipeline.train.training import Training
from pipeline.train.vllm import with_vllm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

#: Steps, the first of which fills caches and compiles kernels and is not measured; different
#: problems, and how often they are repeated, so that every batch is full.
DRY_STEPS, DRY_PROBLEMS, REPEATED = 3, 4, 256


@dataclass(frozen=True)
class Measured:
    """What a training took: by which backend, seconds a step, tokens of prompts and answers a
    second, bytes at the peak."""

    backend: str
    seconds: float
    tokens: float
    peak: int


def measure_training(recipe: Recipe, section: str) -> Measured:
    """Take a few steps of ``sft`` or ``grpo`` in this process.

    Raises:
        UserError: when backend or model are not available, or a loss is not a number.
    """
    training = Training(recipe, section, section, recipe.model)
    backend = training.start_backend()  # before anything else imports what Unsloth patches
    recipe = with_vllm(recipe, backend.is_unsloth)
    quiet()
    rows = longest_rows(recipe)
    texts = longest_counts(counts(rows, recipe.model)[0])
    recipe = shortened(recipe, texts.gold)
    length = recipe.max_seq_length or texts.both + recipe.grpo["max_completion_length"]
    training = replace(training, recipe=recipe)
    model, tokenizer = load_for_training(training, length)
    trainer_for = {"sft": sft, "grpo": grpo}[section].trainer_for
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        repeated = rows[:DRY_PROBLEMS] * REPEATED
        trainer = trainer_for(training, repeated, model, tokenizer, Path(folder))
        if section == "grpo":
            pay_unlike(trainer)
        trainer.add_callback(_clock(ends))
        peak = peak_of(trainer.train, trainer.model, getattr(trainer, "ref_model", None))
    logged = [row for row in trainer.state.log_history if "loss" in row]
    losses = [row["loss"] for row in logged]
    require(all(map(math.isfinite, losses)), f"the training is broken: its losses are {losses}")
    seconds, read = ends[-1] - ends[0], logged[-1]["num_tokens"] - logged[0]["num_tokens"]
    return Measured(backend.name, seconds / (len(ends) - 1), read / seconds, peak)


def shortened(recipe: Recipe, gold: int) -> Recipe:
    """The recipe for a few steps, in which answers are as long as it allows: twice the longest
    ``gold`` answer where it does not say."""
    short = {"max_steps": DRY_STEPS, "logging_steps": 1, "save_strategy": "no"}
    limit = recipe.grpo.get("max_completion_length") or 2 * gold
    vllm = recipe.grpo.get("use_vllm")
    given = recipe.grpo.get("generation_kwargs") or {}
    longest = {
        "max_completion_length": limit,
        "generation_kwargs": {**given, "min_tokens" if vllm else "min_new_tokens": limit},
    }
    return replace(recipe, sft={**recipe.sft, **short}, grpo={**recipe.grpo, **short, **longest})


def pay_unlike(trainer: Any) -> None:
    """Have a GRPO trainer pay every other answer: of a group that is paid alike no gradient would
    be computed, and what a model that has learnt nothing writes is paid alike."""

    def pay(completions: Sequence[object], **more: object) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    trainer.reward_funcs[:] = [pay] * len(trainer.reward_funcs)


def _clock(ends: list[float]) -> TrainerCallback:
    """Notes when each step ended; its loss is logged, which waits for the GPU."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_log(self, *_: object, **more: Any) -> None:
            ends.extend([time.monotonic()] if "loss" in more["logs"] else [])

    return Clock()


def peak_of(work: Callable[[], object], *models: PreTrainedModel | None) -> int:
    """The most bytes that torch held during some work, the weights of its ``models`` included."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    weights = (weight for model in models if model for weight in model.parameters())
    before = sum(weight.numel() * weight.element_size() for weight in weights)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    nodes = list(record.profiler.kineto_results.experimental_event_tree())
    events = []
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        if node.tag.name == "Allocation":
            fields = node.extra_fields
            events.append((node.start_time_ns, fields.ptr, fields.alloc_size))
    live: dict[int, int] = {}
    now = most = 0
    for _, place, size in sorted(events, key=lambda event: event[0]):
        if size > 0:
            live[place] = size
            now += size
        else:  # what was there before does not count here
            now -= live.pop(place, 0)
        most = max(most, now)
    return before + most


def write_random_model(model: str, dtype: str, folder: Path) -> None:
    """Write a model in another one's shape, with random weights and our tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = AutoModelForCausalLM.from_config(config_of(model), dtype=getattr(torch, dtype))
    write_model(network, build_tokenizer(), folder)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="ARM", help="measure this arm here, and print it as JSON")
    parser.add_argument(
        "--random", action="store_true", help="random weights in the model's shape, no download"
    )
    arguments = parser.parse_args()
    recipe = recipe_from(arguments, begins=True)
    if arguments.only:
        section = recipe.all_arms[arguments.only].section
        print(json.dumps(asdict(measure_training(recipe.for_arm(arguments.only), section or ""))))
    elif arguments.random:
        quiet()
        with tempfile.TemporaryDirectory() as folder:
            write_random_model(recipe.model, recipe.dtype, Path(folder))
            measure_all(replace(recipe, model=folder), "--model", folder)
    else:
        quiet()
        measure_all(recipe)


def measure_all(recipe: Recipe, *more: str) -> None:
    """Measure every training of a recipe, each in a process of its own, and print a table.

    Args:
        more: further flags of these processes.

    Raises:
        UserError: naming the trainings that failed, after the table of the others.
    """
    plan = plan_of(recipe)
    planned = {}
    for s in (one.settings for one in plan.stages if one.settings.rows):
        longest = replace(s, usual=s.completion if s.usual else 0)
        planned[s.arm] = estimate(plan.shape, longest).allocated
    table = plain_table(
        "training", "backend", "seconds a step", "tokens/s", "peak GiB", "planned GiB", "off"
    )
    failed = []
    for arm, expected in planned.items():
        print(f"measuring {arm} …", flush=True)
        try:
            said = run_apart("-m", "pipeline.gpu_check", *sys.argv[1:], *more, "--only", arm)
        except UserError as error:
            failed.append(f"{arm}: {error}")
            continue
        one = Measured(**json.loads(said.splitlines()[-1]))
        off = f"{expected / one.peak - 1:+.1%}"
        gib = (f"{size / GIB:.3f}" for size in (one.peak, expected))
        table.add_row(arm, one.backend, f"{one.seconds:.2f}", f"{one.tokens:.0f}", *gib, off)
    console = plain_console()
    console.print(table, markup=False)
    console.print("Answers in GRPO are as long as the recipe allows.", markup=False)
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    run_main(main)
