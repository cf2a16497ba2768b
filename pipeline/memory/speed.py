"""How long training and sampling take on a card, from its peak arithmetic and bandwidth.

A forward pass costs 2 operations a parameter and token, a backward pass 4, or 2 where only adapters
are trained (arXiv 2001.08361, section 2.1). Drawing a token reads all weights and the KV cache once
for all answers drawn together (arXiv 2211.05102, section 2). Attention is left out, as texts are
short.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.memory.arithmetic import ModelShape, Settings, kv_bytes, weight_bytes

#: Assumed: the share of peak arithmetic and of peak bandwidth that is reached, and seconds a layer
#: and token in which transformers launches kernels.
ARITHMETIC, BANDWIDTH, LAUNCH = 0.35, 0.6, 0.8e-3


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: GiB, dense operations a second of 16 bits, bytes a second."""

    gib: float
    operations: float
    bandwidth: float


#: By the name that ``GPU=`` takes; without blanks it is part of the name that CUDA gives.
CARDS = {
    "t4": Card(15, 65e12, 320e9),
    "l4": Card(22, 121e12, 300e9),
    "a10": Card(22, 125e12, 600e9),
    "rtx3090": Card(24, 71e12, 936e9),
    "rtx4090": Card(24, 165e12, 1008e9),
    "rtx5090": Card(32, 210e12, 1792e9),
    "l40s": Card(45, 362e12, 864e9),
    "a100": Card(80, 312e12, 2039e9),
    "h100": Card(80, 989e12, 3350e9),
    "h200": Card(140, 989e12, 4800e9),
}


def seconds(shape: ModelShape, s: Settings, card: Card) -> float:
    """Of all the rounds of a stage, with every text as long as the longest."""
    operations = card.operations * ARITHMETIC / (2 if s.bits == 32 else 1)
    a_pass = 2 * shape.parameters / operations  # seconds a token
    passes = (2 if s.lora else 3) + bool(s.checkpointing) + bool(s.beta)
    sequences = s.rows * s.accumulation
    training = sequences * s.length * passes * a_pass
    of_step = {"sampling": s.drawn, "grpo": sequences / s.iterations}
    answers = of_step.get(s.stage, 0)
    together = s.drawn or sequences  # vLLM draws all at once
    drawing = 0.0
    if answers:
        mean = together * (s.prompt + s.completion // 2)
        read = (weight_bytes(shape, s.bits) + kv_bytes(shape, s, mean)) / card.bandwidth / BANDWIDTH
        launched = 0 if s.vllm else shape.layers * LAUNCH
        token = max(read, together * a_pass) + launched
        drawing = answers / together * s.completion * token + answers * s.prompt * a_pass
    return s.times * s.rounds * (training + drawing)
