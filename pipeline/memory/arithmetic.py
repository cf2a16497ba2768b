"""How many bytes training and sampling hold at their peak: a simple estimate, without torch.

Weights, optimizer states and what else lasts are held all the time; gradients, activations, logits
and the KV cache come and go, so a stage peaks in one of a few moments. The formulas count what
plain trl, peft and transformers hold. Unsloth holds less of what comes and goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

GIB = 2**30
#: Assumed: CUDA's context and its kernels, which PyTorch does not count, and the share that its
#: caching allocator holds beyond what is used.
CONTEXT, FRAGMENTATION = int(0.6 * GIB), 0.05
#: Kinds of memory as they are shown: those that last, then those that come and go.
PARTS = (
    "weights", "adapters", "optimizer states", "reference model",
    "gradients", "activations", "logits", "KV cache", "working space",
)  # fmt: skip
#: Bits of a weight in NF4 with its constants (QLoRA, arXiv 2305.14314, section 3).
NF4 = 4.127
#: Bytes of an adapter's weight: peft keeps it in float32 above half precision.
ADAPTER_WIDTH = 4
#: Tokens whose logits trl's SFT holds at a time (``loss_type: chunked_nll``).
SFT_CHUNK = 256
#: ``pipeline.train.prompt_once`` takes so many answers through the model together, and computes
#: logits of so many words of the vocabulary, for so many tokens, at a time.
ROWS, WORDS, TOKENS = 16, 8192, 2048


@dataclass(frozen=True)
class ModelShape:
    """What a config says of a decoder.

    Attributes:
        parameters: all of them, tied ones once.
        quantisable: parameters of the linear layers but the head.
        query, key: width of all heads together; values are as wide as keys, and a model without
            them has a key of 0. On average where layers differ, like ``mlp``.
        mlp: width between the two halves of the feed-forward layer.
    """

    parameters: int
    quantisable: int
    vocabulary: int
    hidden: int
    layers: int
    query: int
    key: int
    mlp: int


@dataclass(frozen=True)
class Settings:
    """One stage as it would run.

    Attributes:
        stage: ``sft``, ``grpo`` or ``sampling``.
        bits: of the weights: 32, 16, 4.
        prompt, completion: tokens of the longest ones.
        rows: sequences trained on at a time.
        read, drawn: prompts read, and answers drawn, at a time.
        group: answers to a prompt, which are drawn together.
        iterations: how often an answer is trained on.
        lora: parameters of adapters; 0 where every weight is trained.
        chunked: logits are made of a few tokens at a time.
        usual: tokens of an answer, on average in the longest of a hundred batches, where a prompt
            is read once for its group and no padding is; 0 where texts are read whole.
        vllm: the share of the GPU that vLLM takes beside the trainer, not counted here.
        rounds: steps of a training, or batches of sampling; ``times``, how many arms do it.
        arm: whose training this is, or ``eval``.
    """

    stage: str
    prompt: int
    completion: int
    bits: int = 16
    rows: int = 0
    read: int = 0
    drawn: int = 0
    group: int = 1
    iterations: int = 1
    lora: int = 0
    accumulation: int = 1
    checkpointing: bool = False
    optim: str = "adamw_torch_fused"
    chunked: bool = False
    beta: float = 0.0
    usual: int = 0
    vllm: float = 0.0
    rounds: int = 0
    times: int = 1
    arm: str = ""

    @property
    def length(self) -> int:
        """Tokens of a prompt with its answer."""
        return self.prompt + self.completion

    @property
    def shares(self) -> bool:
        """Whether a prompt is read once for its group in training."""
        return self.usual > 0 and not (self.checkpointing or self.chunked)

    @property
    def trained(self) -> int:
        """Tokens trained on at a time."""
        if self.shares:
            return self.rows * self.usual + math.ceil(self.rows / self.group) * self.prompt
        return self.rows * self.length

    @property
    def width(self) -> int:
        """Bytes of an activation, and of a weight that is not quantised."""
        return 4 if self.bits == 32 else 2


@dataclass(frozen=True)
class Peak:
    """A stage at the moment of its peak: bytes by part, those of ``PARTS`` that there are."""

    settings: Settings
    moment: str
    parts: Mapping[str, int]

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` would say."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """What the GPU holds."""
        return int(self.allocated * (1 + FRAGMENTATION)) + CONTEXT


def estimate(shape: ModelShape, s: Settings) -> Peak:
    """The peak of one stage."""
    moments = (
        Peak(s, name, {part: parts[part] for part in PARTS if parts.get(part)})
        for name, parts in _moments(shape, s)
    )
    return max(moments, key=lambda one: one.total)


def _moments(shape: ModelShape, s: Settings) -> Iterator[tuple[str, dict[str, int]]]:
    """Every moment in which memory may peak: bytes by part."""
    lasting = {"weights": weight_bytes(shape, s.bits)}
    # A gradient is as large as its parameter.
    gradients = s.lora * ADAPTER_WIDTH if s.lora else shape.parameters * s.width
    if s.rows:
        lasting["adapters"] = s.lora * ADAPTER_WIDTH
        lasting["optimizer states"] = optimizer_bytes(s.optim, gradients)
        lasting["reference model"] = gradients if s.beta else 0
    if s.drawn:
        read, tokens = s.read * s.prompt, s.drawn * s.length
        held = {
            "KV cache": kv_bytes(shape, s, read),
            "working space": working_bytes(shape, s, read),
        }
        yield "reading prompts", {**lasting, **held}
        # transformers repeats one layer's keys and values for every head of the queries.
        repeated = 2 * tokens * shape.query * s.width if 0 < shape.key < shape.query else 0
        logits = s.drawn * shape.vocabulary * (s.width + 12)
        held = {"KV cache": kv_bytes(shape, s, tokens), "working space": repeated, "logits": logits}
        yield "drawing answers", {**lasting, **held}
    if s.rows:
        tokens, layer = s.trained, layer_bytes(shape, s)
        saved, again = shape.layers * layer, 0
        if s.checkpointing:  # each layer's input, and in turn one layer that is made again
            saved, again = shape.layers * tokens * shape.hidden * s.width, layer
        held = {"gradients": gradients, "activations": saved, "logits": logit_bytes(shape, s)}
        yield "loss", {**lasting, **held}
        held = {"gradients": gradients, "activations": saved + again}
        at_once = min(s.rows, ROWS) * s.usual if s.shares else tokens
        yield "backward", {**lasting, **held, "working space": working_bytes(shape, s, at_once)}


def weight_bytes(shape: ModelShape, bits: int) -> int:
    """The weights. bitsandbytes quantises linear layers but the head; the rest keeps 16 bits."""
    if bits >= 16:
        return shape.parameters * bits // 8
    rest = 2 * (shape.parameters - shape.quantisable)
    return rest + int(shape.quantisable * NF4 / 8)


def optimizer_bytes(optim: str, parameters: int) -> int:
    """Adam's two moments of so many bytes of parameters, of 8 bits about a quarter. Paged ones may
    leave the GPU."""
    if optim.startswith(("paged", "sgd", "adafactor")):
        return 0
    return parameters // 2 if "8bit" in optim else 2 * parameters


def kv_bytes(shape: ModelShape, s: Settings, tokens: int) -> int:
    """The KV cache: keys and values of every token in each layer (arXiv 2211.05102, section 3)."""
    return tokens * shape.layers * 2 * shape.key * s.width


def layer_bytes(shape: ModelShape, s: Settings) -> int:
    """What autograd saves of one layer for the backward pass (after arXiv 2205.05198, section 4.1).

    Bytes a token, for numbers of b bytes, RMSNorm in float32, SDPA with a mask, and SwiGLU::

        norms         8 hidden, 4 (query + key), as if these had norms as well
        attention     4 b query (keys and values repeated for every query), b length (mask)
        feed-forward  3 b mlp
        all trained   b (4 hidden + query + key + mlp) more
        or adapters   a copy in float32 of the input of each, here on all seven linear layers
        shared prompt 2 b (2 key + query) more of each prompt's token, for every answer
    """
    b, length = s.width, s.prompt + s.usual if s.shares else s.length
    each = 8 * shape.hidden + 4 * (shape.query + shape.key)
    each += b * (4 * shape.query + length + 3 * shape.mlp)
    if s.lora:
        each += ADAPTER_WIDTH * (5 * shape.hidden + shape.query + shape.mlp)
    else:
        each += b * (4 * shape.hidden + shape.query + shape.key + shape.mlp)
    again = 2 * b * (2 * shape.key + shape.query) * s.rows * s.prompt if s.shares else 0
    return s.trained * each + again


def working_bytes(shape: ModelShape, s: Settings, tokens: int) -> int:
    """What one layer holds for a moment: the two factors of the feed-forward layer and their
    product, or their gradients, and two tensors of the hidden width."""
    return tokens * (3 * shape.mlp + 2 * shape.hidden) * s.width


def logit_bytes(shape: ModelShape, s: Settings) -> int:
    """Logits and what the loss makes of them: in SFT four numbers of float32 each; in trl's GRPO
    the logits of every completion token and their gradient, or a part of them where prompts are
    shared: in two numbers of float32, and in three for every word that there is."""
    if s.shares:
        tokens = min(TOKENS, min(s.rows, ROWS) * s.usual)
        return tokens * (8 * WORDS + 12 * min(WORDS, shape.vocabulary))
    tokens = s.rows * (s.completion + 1 if s.stage == "grpo" else s.length)
    tokens = min(SFT_CHUNK, tokens) if s.chunked else tokens
    each = 2 * s.width if s.stage == "grpo" and not s.chunked else 16
    return tokens * shape.vocabulary * each


# --- what to change --------------------------------------------------------------------------


def changes(shape: ModelShape, s: Settings) -> Iterator[tuple[str, Settings]]:
    """Changes of the recipe that save memory, each on top of those before, and the settings after
    it. Those that cost only time come first."""

    def saves(new: Settings) -> bool:
        return estimate(shape, new).total < estimate(shape, s).total

    if s.rows and saves(new := replace(s, checkpointing=True)):
        s = new
        yield f"{s.stage}.gradient_checkpointing: true", s
    if s.rows and saves(new := replace(s, rows=1, accumulation=s.rows * s.accumulation)):
        s = new
        times = f"gradient_accumulation_steps: {s.accumulation}"
        yield f"{s.stage}.per_device_train_batch_size: 1, {times}", s
    if s.drawn > s.group:
        key = "grpo.generation_batch_size" if s.rows else "eval.rows"
        s = replace(s, read=math.ceil(s.read * s.group / s.drawn), drawn=s.group)
        yield f"{key}: {s.drawn}", s
    if s.rows and not s.lora:  # one of rank 16 has about a hundredth of the weights
        s = replace(s, lora=shape.parameters // 100)
        yield "lora: {r: 16, lora_alpha: 32, target_modules: all}", s
    if s.rows and s.bits > 4:
        yield "bits: 4", replace(s, bits=4)
