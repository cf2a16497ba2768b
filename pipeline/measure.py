"""Is the plan right? Its peaks beside those of real trainers, on a small model of random weights.

``python -m pipeline.measure`` trains and samples for a step or two in every combination of
precision, LoRA and checkpointing and prints how far ``make plan`` is off: on a GPU by CUDA's own
count (``torch.cuda.max_memory_allocated``), else by the profiler's record of each allocation.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from data.common.console import plain_console
from data.common.errors import run_main
from data.recipe import Recipe, load_recipe
from pipeline.memory.arithmetic import estimate
from pipeline.model.load import quiet
from pipeline.plan import Lengths, adapters_of, settings_of, shape_of, skeleton

HERE = Path(__file__).parent
#: Large enough that activations outweigh what no formula counts, small enough for a CPU. Words are
#: few: without a GPU, GRPO's logits go through a fallback (trl.trainer.utils.selective_log_softmax)
#: that holds more than the fused kernel, which the plan counts.
SIZES = dict(
    vocab_size=1200,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    eos_token_id=None,
)
PROMPT, GOLD, ROWS = 48, 64, 8
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One way to train (``sft``, ``grpo``) or to sample (``sampling``)."""

    stage: str
    dtype: str
    lora: bool = False
    checkpointing: bool = False

    @property
    def recipe(self) -> Recipe:
        """A recipe that says so."""
        common = {
            "per_device_train_batch_size": ROWS,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": self.checkpointing,
            "max_steps": 2,
            "save_strategy": "no",
        }
        recipe = load_recipe(HERE / "recipes" / "tiny.yaml", backend="trl")
        return replace(
            recipe,
            dtype=self.dtype,
            lora={"r": 16, "target_modules": "all"} if self.lora else None,
            sft=common,
            grpo={**common, "num_generations": 4, "max_completion_length": GOLD},
            eval=replace(recipe.eval, samples=16, rows=64, max_tokens=GOLD),
        )


def cases() -> Iterator[Case]:
    """Every combination."""
    for stage, dtype in product(("sft", "grpo"), ("float32", "bfloat16")):
        for lora, checkpointing in product((False, True), repeat=2):
            yield Case(stage, dtype, lora, checkpointing)
    for dtype in ("float32", "bfloat16"):
        yield Case("sampling", dtype)


def _config() -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model("qwen2", **SIZES)


def planned(case: Case) -> int:
    """Bytes that ``make plan`` expects to be allocated at the peak."""
    network = skeleton(_config())
    shape = shape_of(_config(), network)
    lengths = Lengths(PROMPT, GOLD, PROMPT + GOLD, "given")
    found = settings_of(case.recipe, "trl", lengths, adapters_of(case.recipe, network))
    settings = next(one for one in found if one.stage == case.stage)
    return estimate(shape, settings).allocated


def measured(case: Case) -> int:
    """Bytes that are."""
    work = {"sft": _sft, "grpo": _grpo, "sampling": _sampling}[case.stage]
    # The trainers' own words are of no interest here.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        return allocated(lambda: work(case, Path(folder)))


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` held at once, on the GPU if there is one."""
    import torch

    if not torch.cuda.is_available():
        return _allocated_here(work)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def _allocated_here(work: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = []
    nodes = list(record.profiler.kineto_results.experimental_event_tree())
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
        else:  # what was there before is no part of it
            now -= live.pop(place, 0)
        most = max(most, now)
    return most


# --- real work -------------------------------------------------------------------------------


def _network(case: Case) -> Any:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from pipeline.train.settings import lora_config

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(_config(), dtype=getattr(torch, case.dtype))
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    adapter = lora_config(case.recipe) if case.stage != "sampling" else None
    return network if adapter is None else get_peft_model(network, adapter)


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(HERE / "embedded")


def _prompts(count: int) -> list[str]:
    """Of ``PROMPT`` tokens, a time and a space being one each; every second prompt is shorter, so
    that there is a mask."""
    return ["08:15 " * (PROMPT // 2 - i % 2) for i in range(count)]


def _sft(case: Case, folder: Path) -> None:
    from datasets import Dataset
    from trl import SFTTrainer

    from pipeline.train.settings import sft_config

    rng = random.Random(0)
    rows = []
    for i in range(4 * ROWS):
        length = PROMPT + GOLD - i % 2
        ids = [rng.randrange(5, 1000) for _ in range(length)]
        mask = [0] * PROMPT + [1] * (length - PROMPT)
        rows.append({"input_ids": ids, "completion_mask": mask})
    SFTTrainer(
        model=_network(case),
        args=sft_config(case.recipe, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
    ).train()


def _grpo(case: Case, folder: Path) -> None:
    from datasets import Dataset
    from trl import GRPOTrainer

    from pipeline.train.settings import grpo_config

    rng = random.Random(0)
    recipe = case.recipe
    config = grpo_config(recipe, folder)
    config.reward_weights = None
    GRPOTrainer(
        model=_network(case),
        args=config,
        reward_funcs=lambda completions, **_: [rng.random() for _ in completions],
        train_dataset=Dataset.from_list([{"prompt": text} for text in _prompts(4 * ROWS)]),
        processing_class=_tokenizer(),
    ).train()


def _sampling(case: Case, folder: Path) -> None:
    from pipeline.model.decode import Decoding, sample_batch

    network, asking = _network(case), case.recipe.eval
    network.eval()
    network.generation_config.eos_token_id = None
    prompts = _prompts(asking.rows // asking.samples)
    decoding = Decoding(max_tokens=GOLD)
    sample_batch(network, _tokenizer(), prompts, asking.samples, decoding, range(len(prompts)))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    quiet()
    table = Table(title="MiB allocated at the peak")
    for column in ("stage", "dtype", "trained", "checkpointing", "planned", "measured", "off"):
        table.add_column(column, justify="right" if column in ("planned", "measured") else "left")
    most = 0.0
    for case in cases():
        expected, real = planned(case), measured(case)
        off = expected / real - 1
        most = max(most, abs(off))
        trained = "" if case.stage == "sampling" else "LoRA" if case.lora else "all weights"
        row = (case.stage, case.dtype, trained, "yes" if case.checkpointing else "")
        table.add_row(*row, f"{expected / MIB:.1f}", f"{real / MIB:.1f}", f"{off:+.1%}")
        print(*row, f"{off:+.1%}", flush=True)
    plain_console().print(table)
    print(f"make plan is off by at most {most:.1%}")


if __name__ == "__main__":
    run_main(main)
