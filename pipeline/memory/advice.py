"""What to change in a recipe where it needs too much memory, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.memory.arithmetic import ModelShape, Settings, reference_bytes
from pipeline.memory.stages import Estimate, estimate

#: A change that saves less is not worth a line.
WORTH = 2**26


@dataclass(frozen=True)
class Step:
    """One change of the recipe, and the bytes that it saves after those before it."""

    change: str
    saves: int


def changes(shape: ModelShape, s: Settings) -> Iterator[tuple[str, Settings]]:
    """What may be changed: the words of the recipe, and the settings after it. First what costs
    only time, then precision, then what is trained, then the task itself."""
    if s.stage == "sampling":
        if s.prompts > 1:
            rows = s.prompts // 2 * (s.rows // s.prompts)
            words = f"eval.rows: {rows} (fewer answers at a time)"
            yield words, replace(s, rows=rows, prompts=s.prompts // 2)
    else:
        yield from _training_changes(shape, s)
    if s.bits == 32:
        yield "dtype: bfloat16", replace(s, bits=16, autocast=False)
    if reference_bytes(shape, s):
        yield "grpo.beta: 0 (no reference model)", replace(s, beta=0.0)
    if s.stage != "sampling" and s.full:
        words = "lora: {r: 16, lora_alpha: 32, target_modules: all-linear} (not every weight)"
        yield words, replace(s, adapters=shape.linears, rank=16)
    if not s.full and s.bits > 4:
        yield "bits: 4 (QLoRA; needs bitsandbytes)", replace(s, bits=4)
    if s.adapters and s.rank >= 16:
        yield f"lora.r: {s.rank // 2}", replace(s, rank=s.rank // 2)
    tokens = max(3 * s.completion // 4, s.gold)
    if s.stage != "sft" and tokens < s.completion:
        key = "grpo.max_completion_length" if s.stage == "grpo" else "eval.max_tokens"
        words = f"{key}: {tokens} (the longest gold answer has {s.gold} tokens)"
        yield words, replace(s, completion=tokens)


def _training_changes(shape: ModelShape, s: Settings) -> Iterator[tuple[str, Settings]]:
    """Of a training, what costs only time, or the precision of the optimizer."""
    if not s.checkpointing:
        words = f"{s.stage}.gradient_checkpointing: true (a step takes about a third longer)"
        offload = s.offload or s.backend == "unsloth"
        yield words, replace(s, checkpointing=True, offload=offload)
    if s.rows % 2 == 0:
        rows, times = s.rows // 2, 2 * s.accumulation
        words = (
            f"{s.stage}.per_device_train_batch_size: {rows}, gradient_accumulation_steps: {times} "
            "(the same step in smaller parts)"
        )
        yield words, replace(s, rows=rows, accumulation=times)
    half = s.generated // 2
    if half and s.generated % 2 == 0 and half % math.lcm(s.rows, s.group) == 0:
        words = f"grpo.generation_batch_size: {half} (fewer answers at a time)"
        yield words, replace(s, generated=half)
    if s.vllm and not s.sleeps:
        yield "grpo.vllm_enable_sleep_mode: true", replace(s, sleeps=True)
    if "8bit" not in s.optim and not s.optim.startswith("paged_"):
        yield f"{s.stage}.optim: adamw_8bit (needs bitsandbytes)", replace(s, optim="adamw_8bit")


def advise(shape: ModelShape, settings: Settings, budget: int) -> tuple[list[Step], Estimate]:
    """The changes until ``settings`` fit ``budget`` bytes or none helps any more, and the estimate
    after them: each time the first one that helps, since what saved nothing while another part
    peaked may do so later. One that is taken several times is one step."""
    steps: dict[str, Step] = {}
    now = estimate(shape, settings)
    while now.peak.total > budget:
        for words, changed in changes(shape, now.settings):
            after = estimate(shape, changed)
            saves = now.peak.total - after.peak.total
            if saves >= WORTH:
                key = words.partition(":")[0]
                before = steps[key].saves if key in steps else 0
                steps[key] = Step(words, before + saves)
                now = after
                break
        else:
            break
    return list(steps.values()), now
