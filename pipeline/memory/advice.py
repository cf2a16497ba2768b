"""What would save memory in a stage that does not fit, and how much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from pipeline.memory.arithmetic import ModelShape, Settings
from pipeline.memory.stages import estimate

#: A change that saves fewer bytes is not worth a line.
WORTH = 2**26


def savings(shape: ModelShape, s: Settings) -> Iterator[tuple[str, Settings, int]]:
    """Changes of the recipe, the settings after each, and the bytes that it saves by itself. First
    what costs only time, then precision, then what is trained, then the task itself."""
    before = estimate(shape, s).peak.total
    for words, changed in _changes(shape, s):
        saved = before - estimate(shape, changed).peak.total
        if saved >= WORTH:
            yield words, changed, saved


def _changes(shape: ModelShape, s: Settings) -> Iterator[tuple[str, Settings]]:
    training, half, shorter = s.stage != "sampling", s.generated // 2, 3 * s.completion // 4
    if training and not s.checkpointing:
        offload = s.offload or s.backend == "unsloth"
        changed = replace(s, checkpointing=True, offload=offload)
        yield f"{s.stage}.gradient_checkpointing: true", changed
    if training and s.rows % 2 == 0:
        changed = replace(s, rows=s.rows // 2, accumulation=2 * s.accumulation)
        times = f"gradient_accumulation_steps: {changed.accumulation}"
        yield f"{s.stage}.per_device_train_batch_size: {changed.rows}, {times}", changed
    if half and s.generated % 2 == 0 and half % math.lcm(s.rows, s.group) == 0:
        yield f"grpo.generation_batch_size: {half}", replace(s, generated=half)
    if s.prompts > 1:
        changed = replace(s, rows=s.rows // s.prompts, prompts=1)
        yield f"eval.rows: {changed.rows}", changed
    if s.vllm and not s.sleeps:
        yield "grpo.vllm_enable_sleep_mode: true", replace(s, sleeps=True)
    if training and "8bit" not in s.optim:
        yield f"{s.stage}.optim: adamw_8bit", replace(s, optim="adamw_8bit")
    if s.bits == 32:
        yield "dtype: bfloat16", replace(s, bits=16, autocast=False)
    if s.beta:
        yield "grpo.beta: 0", replace(s, beta=0.0)
    if training and s.full:
        changed = replace(s, adapters=shape.linears, rank=16)
        yield "lora: {r: 16, lora_alpha: 32, target_modules: all-linear}", changed
    if s.adapters and s.bits > 4:
        yield "bits: 4", replace(s, bits=4)
    if s.stage != "sft" and shorter >= s.gold:
        key = "grpo.max_completion_length" if training else "eval.max_tokens"
        yield f"{key}: {shorter}", replace(s, completion=shorter)
