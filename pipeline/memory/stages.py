"""Will it fit: what SFT, GRPO and sampling hold at every moment at which memory may peak.

What no source tells is an assumption with a name of its own (``CONTEXT``, ``FRAGMENTATION``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.memory.arithmetic import (
    GIB,
    ModelShape,
    Settings,
    final_norm_bytes,
    kv_bytes,
    layer_bytes,
    logit_bytes,
    optimizer_bytes,
    reference_bytes,
    saved_bytes,
    trained,
    weight_bytes,
    working_bytes,
)

#: The parts that stay for the whole training, and the others, in the order in which they are shown.
LASTING = ("weights", "adapters", "optimizer states", "reference model", "vLLM")
MOVING = ("gradients", "activations", "logits", "KV cache", "working space")
#: Assumed: CUDA's context, its kernels and those of Triton and bitsandbytes. PyTorch does not count
#: it (``torch.cuda.max_memory_allocated``), the GPU does.
CONTEXT = int(0.6 * GIB)
#: Assumed: share of what comes and goes that the caching allocator holds beyond it
#: (pytorch.org/docs/stable/notes/cuda.html, "Memory management").
FRAGMENTATION = 0.06
#: pipeline.model.sampler: the cache grows by this many tokens.
ROOM = 64
PARTS = (*LASTING, *MOVING, "fragmentation", "CUDA context")


@dataclass(frozen=True)
class Phase:
    """One moment of a stage: bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` would say."""
        return sum(self.parts.values())

    @property
    def overhead(self) -> dict[str, int]:
        moving = sum(self.parts.get(part, 0) for part in MOVING)
        return {"fragmentation": int(FRAGMENTATION * moving), "CUDA context": CONTEXT}

    @property
    def total(self) -> int:
        return self.allocated + sum(self.overhead.values())


@dataclass(frozen=True)
class StageMemory:
    """All moments of one stage in which memory may peak."""

    settings: Settings
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def allocated(self) -> int:
        """The most that ``torch.cuda.max_memory_allocated`` would say."""
        return max(phase.allocated for phase in self.phases)


def estimate(shape: ModelShape, settings: Settings) -> StageMemory:
    """Peak memory of one stage, by part, at every moment where it may peak."""
    moments = _sampling if settings.stage == "sampling" else _training
    return StageMemory(settings, tuple(moments(shape, settings)))


def _training(shape: ModelShape, s: Settings) -> Iterator[Phase]:
    count, width = trained(shape, s), s.trained_width
    lasting = {
        "weights": weight_bytes(shape, s.bits),
        "adapters": 0 if s.full else count * width,
        "optimizer states": optimizer_bytes(s.optim, count, width),
        "reference model": reference_bytes(shape, s),
    }
    share = int(s.vllm * s.gpu * GIB)
    if s.backend == "unsloth":  # trainer and vLLM have one copy of the weights
        share = max(share - lasting["weights"], 0)
    if share:
        yield _phase("vLLM generating", lasting, vllm=share)
        lasting["vLLM"] = 0 if s.sleeps else share
    if s.generated:
        yield from _generating(shape, s, lasting)
    gradients = count * width
    # The head's gradient and one more that is added to it, chunk by chunk or from accumulation.
    chunked = s.loss == "chunked" or s.accumulation > 1
    head = shape.embedding * width * (1 + chunked) if s.full else 0
    saved, layer = saved_bytes(shape, s), layer_bytes(shape, s)
    kept = gradients if s.accumulation > 1 else 0
    yield _phase(
        "loss",
        lasting,
        gradients=kept + head,
        activations=saved + final_norm_bytes(shape, s),
        logits=logit_bytes(shape, s),
    )
    again = layer if s.checkpointing or s.offload else 0
    working = working_bytes(shape, s, s.tokens)
    held = {"gradients": kept or head, "activations": saved + again, "working": working}
    yield _phase("backward, last layer", lasting, **held)
    # Activations are freed as gradients come; the embedding's is made whole before it is added.
    whole = gradients + (shape.embedding * width if s.full else 0)
    yield _phase(
        "backward, first layer", lasting, gradients=whole, activations=layer, working=working
    )
    # ``adamw_torch`` updates all tensors at once and needs their size again (torch.optim, foreach);
    # the fused one, which is the default on a GPU, and bitsandbytes' need nothing.
    again = gradients if s.optim == "adamw_torch" else 0
    yield _phase("optimizer step", lasting, gradients=gradients, working=again)


def _phase(name: str, lasting: Mapping[str, int], **moving: int) -> Phase:
    """A phase, its parts by name or by the first word of it; those of no bytes are left out."""
    names = {"vllm": "vLLM", "cache": "KV cache", "working": "working space"}
    parts = {**lasting, **{names.get(key, key): size for key, size in moving.items()}}
    return Phase(name, {part: size for part, size in parts.items() if size})


def _generating(shape: ModelShape, s: Settings, lasting: Mapping[str, int]) -> Iterator[Phase]:
    """``generate`` of a whole generation batch: trl gives it every prompt ``num_generations`` times
    and reads all of them at once."""
    rows, b = s.generated, s.width
    yield _phase(
        "reading prompts",
        lasting,
        cache=kv_bytes(shape, rows, s.prompt, b),
        logits=_drawing(shape, rows, b, 3),
        working=_reading(shape, s, rows, s.prompt),
    )
    yield from _decoding(shape, s, lasting, rows, 3, s.length)


def _sampling(shape: ModelShape, s: Settings) -> Iterator[Phase]:
    """``pipeline.model.decode.sample_batch``: each prompt is read once, then the cache is
    repeated."""
    weights = {"weights": weight_bytes(shape, s.bits)}
    cache = kv_bytes(shape, s.prompts, s.prompt, s.width)
    reading = _reading(shape, s, s.prompts, s.prompt)
    yield _phase("reading prompts", weights, cache=cache, working=reading)
    held = s.prompt + ROOM * math.ceil(s.completion / ROOM)
    yield from _decoding(shape, s, weights, s.rows, 4, held)


def _reading(shape: ModelShape, s: Settings, rows: int, tokens: int) -> int:
    """A forward pass over prompts: one layer's tensors and the mask, of booleans and of numbers."""
    mask = rows * tokens**2 * (1 + s.width)
    return working_bytes(shape, s, rows * tokens, wide=3) + 4 * rows * tokens * shape.hidden + mask


def _drawing(shape: ModelShape, rows: int, width: int, copies: int) -> int:
    """The logits of one token and ``copies`` in float32: the cast, by temperature, softmax, and for
    ``pipeline.model.sampler`` the cumulative sum."""
    return rows * shape.vocabulary * (width + 4 * copies)


def _decoding(
    shape: ModelShape, s: Settings, lasting: Mapping[str, int], rows: int, copies: int, held: int
) -> Iterator[Phase]:
    """A step at the full length, the cache with room for ``held`` tokens: first attention, which
    repeats one layer's keys and values for every head, or makes that layer's cache longer; then
    the draw."""
    cache = kv_bytes(shape, rows, held, s.width)
    repeated = 2 * rows * s.length * shape.query * s.width if shape.key < shape.query else 0
    working = max(cache // max(len(shape.windows), 1), repeated) + working_bytes(shape, s, rows)
    logits = rows * shape.vocabulary * s.width
    attending = {"cache": cache, "logits": logits, "working": working}
    yield _phase("attending to the whole text", lasting, **attending)
    drawing = _drawing(shape, rows, s.width, copies)
    yield _phase("drawing tokens", lasting, cache=cache, logits=drawing)
