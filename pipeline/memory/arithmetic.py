"""How much GPU memory training and sampling need, from a model's shape and the settings alone.

Pure arithmetic, no torch: ``pipeline.plan`` reads shape and settings from config and recipe. All
sizes are bytes. The formulas count what the installed trl, peft and transformers hold, read in
their sources; each says where. What no source tells is an assumption with a name of its own
(``CONTEXT``, ``FRAGMENTATION``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

GIB = 2**30
#: Every part, in the order in which they are shown.
PARTS = (
    "weights",
    "adapters",
    "optimizer states",
    "reference model",
    "vLLM",
    "gradients",
    "activations",
    "logits",
    "KV cache",
    "working space",
    "fragmentation",
    "CUDA context",
)
#: Those that stay for the whole training.
LASTING = PARTS[:5]
#: Assumed: CUDA's context, its kernels and those of Triton and bitsandbytes. PyTorch does not count
#: it (``torch.cuda.max_memory_allocated``), the GPU does.
CONTEXT = int(0.6 * GIB)
#: Assumed: share of what comes and goes that the caching allocator holds beyond it
#: (pytorch.org/docs/stable/notes/cuda.html, "Memory management").
FRAGMENTATION = 0.06
#: Bits a weight beside its own 4: NF4's constants, quantised a second time (QLoRA, arXiv
#: 2305.14314, section 3: 8/64 + 32/(64 x 256)).
DOUBLE_QUANTISED = 0.127
#: trl.trainer.sft_trainer: tokens whose logits ``chunked_nll`` holds at a time.
SFT_CHUNK = 256
#: unsloth_zoo.fused_losses.chunked_logprob: most bytes of a chunk of logits, bytes a logit, and the
#: rows that it takes at least.
UNSLOTH_CHUNK, UNSLOTH_LOGIT, UNSLOTH_ROWS = 2 * GIB, 8, 512
#: pipeline.model.decode: the cache grows by this many tokens.
ROOM = 64
#: Bytes of optimizer state for each byte of a parameter. Torch keeps AdamW's two moments in the
#: parameter's own dtype: 8 bytes in float32 (arXiv 1910.02054, section 3.1), 4 in bfloat16.
_STATES = {"sgd": 0.0, "adafactor": 0.01, "adagrad": 1.0, "rmsprop": 1.0}
#: Bytes of a state of 8 bits: one float32 constant for each block of 256 (arXiv 2110.02861;
#: bitsandbytes 0.44 on).
_EIGHT = 1 + 4 / 256
#: Bytes a parameter of the optimizers with states of their own.
_OWN_STATES = {
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit"), 2 * _EIGHT),
    "adamw_torch_4bit": 2 * (0.5 + 4 / 128),
    "ademamix": 12.0,
    "ademamix_8bit": 3 * _EIGHT,
    "lion_32bit": 4.0,
    "lion_8bit": _EIGHT,
    "rmsprop_bnb_8bit": _EIGHT,
}
#: Linear layers that read one and the same tensor, so that it is saved once for them.
_READERS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn"), "attention"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc"), "mlp"),
    **dict.fromkeys(("o_proj", "out_proj"), "attended"),
}


#: Bytes of an adapter's weight: peft raises half precision to float32
#: (peft.tuners.tuners_utils.cast_adapter_dtype), as Unsloth does, and ``pipeline.train.backend`` keeps it
#: so above quantised weights too.
ADAPTER_WIDTH = 4


@dataclass(frozen=True)
class Linear:
    """``count`` linear layers of one name and size."""

    name: str
    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True)
class ModelShape:
    """What a config says of a decoder.

    Attributes:
        parameters: all of them, tied ones once.
        linears: the linear layers but the head: what quantisation takes, and LoRA may.
        windows: for each layer with a KV cache its sliding window, or None.
        query, key, value: width of all heads together.
        heads: of the queries.
        mlp: width between the two halves of the feed-forward layer; of all active experts.
        gated: the feed-forward layer multiplies two projections.
        norms: widths of all norms of a layer together.
        float_norms: they keep what they normalised in float32 (Gemma).
        softcapped: the logits pass a tanh.
        state: bytes of linear attention's state a sequence, all layers together.
    """

    name: str
    parameters: int
    linears: tuple[Linear, ...]
    vocabulary: int
    hidden: int
    layers: int
    windows: tuple[int | None, ...]
    heads: int
    query: int
    key: int
    value: int
    mlp: int
    gated: bool
    norms: int
    tied: bool
    float_norms: bool = False
    softcapped: bool = False
    state: int = 0

    @property
    def quantisable(self) -> int:
        return sum(one.inputs * one.outputs * one.count for one in self.linears)

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden


@dataclass(frozen=True)
class Settings:
    """One stage as it would run.

    Attributes:
        arm: whose training this is, or ``eval``.
        stage: ``sft``, ``grpo`` or ``sampling``.
        backend: ``trl`` or ``unsloth``.
        bits: of the weights: 32, 16, 8, 4.
        prompt, completion: tokens of the longest ones.
        rows: sequences trained on, or answers sampled, at a time.
        adapters: the layers with LoRA; none for full fine-tuning.
        extra: parameters trained beside adapters (``modules_to_save``, biases).
        offload: saved activations, or the checkpoints instead of them, wait in the host's memory.
        autocast: ``bf16`` or ``fp16`` of the trainer, above float32 weights.
        loss: ``chunked``, ``full`` or ``liger``.
        generated, group: GRPO's answers generated at a time by transformers, and to each prompt.
        prompts: that sampling reads at a time.
        vllm, sleeps: vLLM's share of ``gpu`` (GiB) beside the trainer, and whether it lets go of it
            during training.
        gold: tokens of the longest gold answer; a limit on answers should not go below.
    """

    arm: str
    stage: str
    backend: str
    bits: int
    prompt: int
    completion: int
    rows: int
    adapters: tuple[Linear, ...] = ()
    rank: int = 0
    dropout: bool = False
    extra: int = 0
    accumulation: int = 1
    checkpointing: bool = False
    offload: bool = False
    autocast: bool = False
    optim: str = "adamw_torch_fused"
    loss: str = "chunked"
    generated: int = 0
    group: int = 1
    prompts: int = 1
    beta: float = 0.0
    vllm: float = 0.0
    sleeps: bool = False
    gpu: float = 0.0
    gold: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return not (self.adapters or self.extra)

    @property
    def kept(self) -> int:
        """Bytes of a weight that is not quantised."""
        return 4 if self.bits == 32 else 2

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 2 if self.autocast else self.kept


@dataclass(frozen=True)
class Phase:
    """One moment of a stage: bytes by part."""

    name: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` would say."""
        return sum(self.parts.values())

    @property
    def overhead(self) -> dict[str, int]:
        moving = sum(size for part, size in self.parts.items() if part not in LASTING)
        return {"fragmentation": int(FRAGMENTATION * moving), "CUDA context": CONTEXT}

    @property
    def total(self) -> int:
        return self.allocated + sum(self.overhead.values())


@dataclass(frozen=True)
class Estimate:
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


# --- what lasts ------------------------------------------------------------------------------


def weight_bytes(shape: ModelShape, bits: int) -> int:
    """The weights. bitsandbytes quantises the linear layers but the head: NF4 to 4 bits and its
    constants (QLoRA, arXiv 2305.14314), LLM.int8 to one byte and a float32 a row (arXiv
    2208.07339); embeddings, norms and head keep 16 bits."""
    if bits >= 16:
        return shape.parameters * bits // 8
    rest = 2 * (shape.parameters - shape.quantisable)
    if bits == 4:
        return rest + math.ceil(shape.quantisable * (4 + DOUBLE_QUANTISED) / 8)
    return rest + shape.quantisable + sum(4 * one.outputs * one.count for one in shape.linears)


def lora_parameters(adapters: Sequence[Linear], rank: int) -> int:
    """LoRA's A [rank, inputs] and B [outputs, rank] on each layer (arXiv 2106.09685, section 4)."""
    return sum(rank * (one.inputs + one.outputs) * one.count for one in adapters)


def trained(shape: ModelShape, s: Settings) -> int:
    """Parameters with gradients."""
    return shape.parameters if s.full else lora_parameters(s.adapters, s.rank) + s.extra


def trained_width(s: Settings) -> int:
    """Bytes of a trained parameter, and of its gradient."""
    return s.kept if s.full else ADAPTER_WIDTH


def optimizer_bytes(optim: str, parameters: int, width: int) -> int:
    """The optimizer's states between steps. Paged ones (``paged_…``) are evicted to the host's
    memory when the GPU runs out (arXiv 2305.14314, section 3), so they count nothing; what is in no
    table counts like AdamW."""
    if optim.startswith("paged_"):
        return 0
    if optim in _OWN_STATES:
        return math.ceil(parameters * _OWN_STATES[optim])
    return math.ceil(parameters * width * _STATES.get(optim, 2.0))


def reference_bytes(shape: ModelShape, s: Settings) -> int:
    """The reference model, where beta > 0. For full fine-tuning trl's GRPOTrainer loads it anew by
    ``create_model_from_path``, in the dtype that ``pipeline.train.settings`` names, the model's own. To
    an adapter that is there before the trainer trl adds a frozen copy, "ref", which peft keeps in
    float32 (grpo_trainer.py, ``model.add_adapter``); Unsloth takes that away and switches the
    adapter off instead."""
    if s.stage != "grpo" or not s.beta or (s.backend == "unsloth" and not s.full):
        return 0
    return (s.bits // 8 if s.full else 4) * trained(shape, s)


def kv_bytes(shape: ModelShape, sequences: int, tokens: int, width: int) -> int:
    """The KV cache: for each layer keys and values of every token (2 x kv heads x head width; Pope
    et al. 2022, arXiv 2211.05102, section 3), of the window's last but one at most where attention
    slides (transformers.cache_utils.DynamicSlidingWindowLayer)."""
    held = sum(tokens if w is None else min(tokens, max(w - 1, 1)) for w in shape.windows)
    return sequences * (held * (shape.key + shape.value) * width + shape.state)


# --- activations -----------------------------------------------------------------------------


def layer_bytes(shape: ModelShape, s: Settings) -> int:
    """What autograd saves of one layer for the backward pass, after the count of Korthikanti et
    al. 2022 (arXiv 2205.05198, section 4.1) but for today's layers, as transformers writes them:
    RMSNorm in float32, SDPA, which never stores the scores, SwiGLU.

    A token of a layer with all weights trained and activations of b bytes::

        norms        4 width (input in float32) + b width (normalised) + 2 b hidden (outputs)
        attention    b (query + keys + values + output) + 4 heads (log-sum-exp) + b length (mask)
        feed-forward 4 b mlp: gate, its activation, up, their product

    Keys and values are as wide as the query: with a mask transformers repeats them
    (integrations.sdpa_attention.use_gqa_in_sdpa), and SDPA turns it from booleans into numbers in
    every layer. With LoRA the normalised copy and the product are saved only for an adapter, which
    casts its input to its own dtype: in float32 above bfloat16 a copy for each adapter
    (peft.tuners.lora.layer.Linear.forward).

    Unsloth's kernels save less: the norm's input, one input for q, k and v, gate and up (kernels
    rms_layernorm, fast_lora), and attention without repeated keys.
    """
    b, tokens = s.width, s.tokens
    lse = 4 * shape.heads
    if s.backend == "unsloth" and not s.full:
        attention = b * (2 * shape.query + shape.key + shape.value) + lse
        return tokens * (4 * b * shape.hidden + attention + 2 * b * shape.mlp)
    repeated = 2 * shape.query if shape.key < shape.query else shape.key + shape.value
    attention = b * (2 * shape.query + repeated) + lse + b * s.length
    forward = b * shape.mlp * (3 if shape.gated else 1)
    norms = 4 * shape.norms
    if s.full:
        norms += shape.norms * (4 if shape.float_norms else b) + 2 * b * shape.hidden
        forward += b * shape.mlp
    return tokens * (norms + attention + forward) + _adapter_inputs(shape, s)


def _adapter_inputs(shape: ModelShape, s: Settings) -> int:
    """What the adapters of one layer save: their inputs, and the rank values between A and B."""
    own, a = s.width != ADAPTER_WIDTH and not s.autocast, ADAPTER_WIDTH
    found, seen = 0.0, {"attended"}
    for one in s.adapters:
        share = one.count / shape.layers
        reader = _READERS.get(one.name, one.name)
        if s.dropout:  # what it leaves of the input, and a mask of a byte each
            found += share * one.inputs * ((a if own else s.width) + 1)
        elif own or reader not in seen:
            found += share * one.inputs * (a if own else s.width)
        found += share * s.rank * a
        seen.add(reader)
    return math.ceil(s.tokens * found)


def saved_bytes(shape: ModelShape, s: Settings) -> int:
    """What the layers hold from the forward to the backward pass. With gradient checkpointing (Chen
    et al. 2016, arXiv 1604.06174) it is each layer's input; with offload (Unsloth's, or trl's
    ``activation_offloading``) that waits in the host's memory but for two buffers
    (unsloth_zoo.gradient_checkpointing)."""
    layers = min(2, shape.layers) if s.offload else shape.layers
    if s.checkpointing:
        return layers * s.tokens * shape.hidden * s.width
    return layers * layer_bytes(shape, s)


def final_norm_bytes(shape: ModelShape, s: Settings) -> int:
    """What the final norm saves, and the two copies of its output that a loss makes of it."""
    return s.tokens * shape.hidden * (4 + 2 * s.width)


def working_bytes(shape: ModelShape, s: Settings, tokens: int, wide: int = 2) -> int:
    """What a layer holds for a moment: two tensors of the hidden width and ``wide`` of the
    feed-forward layer's (gradients of two factors; in a forward pass the factors and their
    product), or that of an adapter in float32 beside it; and the largest layer made whole again
    where weights are quantised (bitsandbytes.functional.dequantize_4bit)."""
    b = s.width
    held = wide * b * shape.mlp
    if s.adapters and s.backend == "trl" and b < ADAPTER_WIDTH:
        held = max(held, (2 * b + 4) * shape.mlp)
    whole = max((one.inputs * one.outputs for one in shape.linears), default=0)
    return tokens * (held + 2 * b * shape.hidden) + (2 * whole if s.bits <= 8 else 0)


def logit_bytes(shape: ModelShape, s: Settings) -> int:
    """Logits and what the loss makes of them.

    - trl's SFT with ``chunked_nll``: 256 tokens at a time, projected again in the backward pass
      (sft_trainer._chunk): in float32 logits, log-softmax, its exponential, their product.
    - SFT with ``nll`` or ``dft``: of every token, the logits, a float32 copy, the log-softmax that
      cross entropy saves, and its gradient.
    - trl's GRPO: of every completion token, one more than there are
      (grpo_trainer._full_logits_logps); the fused kernel saves the logits and returns a gradient of
      their size (trl.kernels). Autocast makes both float32 (accelerate's
      ``convert_outputs_to_fp32``), a softcap keeps its tanh.
    - ``use_liger_kernel``: 2,048 tokens by 8,192 words (trl.trainer.utils).
    - Unsloth: rows of at most 2 GiB or an eighth of all, 8 bytes a logit (chunked_logprob).
    """
    words, b = shape.vocabulary, s.width
    if s.backend == "unsloth":
        rows = max(UNSLOTH_ROWS, math.ceil(_scored(s) / 8))
        rows = min(rows, UNSLOTH_CHUNK // (words * UNSLOTH_LOGIT), _scored(s))
        return max(rows, 2) * words * UNSLOTH_LOGIT
    if s.loss == "liger":
        return 4 * 4 * min(2048, s.tokens) * min(8192, words)
    if s.stage == "grpo":
        held = (3 if shape.softcapped else 2) * (4 if s.autocast else b)
        return s.rows * (s.completion + 1) * words * held
    if s.loss == "chunked":
        return min(SFT_CHUNK, s.tokens) * words * 16
    return s.tokens * words * (b + 12)


def _scored(s: Settings) -> int:
    """Tokens whose logits the loss needs."""
    return s.rows * s.completion if s.stage == "grpo" else s.tokens


# --- the stages ------------------------------------------------------------------------------


def estimate(shape: ModelShape, plan: Settings) -> Estimate:
    """Peak memory of one stage, by part, at every moment where it may peak."""
    if plan.stage == "sampling":
        return Estimate(plan, tuple(_sampling(shape, plan)))
    return Estimate(plan, tuple(_training(shape, plan)))


def _lasting(shape: ModelShape, s: Settings) -> dict[str, int]:
    """What a training holds from its second step on, whatever it does."""
    count, width = trained(shape, s), trained_width(s)
    parts = {
        "weights": weight_bytes(shape, s.bits),
        "adapters": 0 if s.full else count * width,
        "optimizer states": optimizer_bytes(s.optim, count, width),
        "reference model": reference_bytes(shape, s),
    }
    return {part: size for part, size in parts.items() if size}


def _training(shape: ModelShape, s: Settings) -> Iterator[Phase]:
    lasting = _lasting(shape, s)
    share = int(s.vllm * s.gpu * GIB)
    if s.backend == "unsloth":  # trainer and vLLM have one copy of the weights
        share = max(share - lasting["weights"], 0)
    if share:
        yield Phase("vLLM generating", {**lasting, "vLLM": share})
        if not s.sleeps:
            lasting["vLLM"] = share
    gradients = trained(shape, s) * trained_width(s)
    # The head's gradient and one more that is added to it, chunk by chunk or from accumulation.
    chunked = s.loss == "chunked" or s.accumulation > 1
    head = shape.embedding * trained_width(s) * (1 + chunked) if s.full else 0
    if s.generated:
        yield from _generating(shape, s, lasting)
    saved = saved_bytes(shape, s)
    if s.autocast and s.bits == 32:  # the weights' casts live as long as their graph
        saved += 2 * shape.quantisable
    kept = gradients if s.accumulation > 1 else 0
    yield Phase(
        "loss",
        {
            **lasting,
            "gradients": kept + head,
            "activations": saved + final_norm_bytes(shape, s),
            "logits": logit_bytes(shape, s),
        },
    )
    again = layer_bytes(shape, s) if s.checkpointing or s.offload else 0
    working = {"working space": working_bytes(shape, s, s.tokens)}
    yield Phase(
        "backward, last layer",
        {**lasting, "gradients": kept or head, "activations": saved + again, **working},
    )
    # Activations are freed as gradients come; the embedding's is made whole before it is added.
    first = layer_bytes(shape, s)
    embedding = shape.embedding * trained_width(s) if s.full else 0
    yield Phase(
        "backward, first layer",
        {**lasting, "gradients": gradients + embedding, "activations": first, **working},
    )
    yield Phase("optimizer step", {**lasting, "gradients": gradients, **_step(s, gradients)})


def _step(s: Settings, gradients: int) -> dict[str, int]:
    """``adamw_torch`` updates all tensors at once and needs their size again (torch.optim,
    foreach); the fused one, which is the default on a GPU, and bitsandbytes' need nothing."""
    return {"working space": gradients} if s.optim == "adamw_torch" else {}


def _generating(shape: ModelShape, s: Settings, lasting: dict[str, int]) -> Iterator[Phase]:
    """``generate`` of a whole generation batch: trl gives it every prompt ``num_generations`` times
    and reads all of them at once."""
    rows, b = s.generated, s.width
    yield Phase(
        "reading prompts",
        {
            **lasting,
            "KV cache": kv_bytes(shape, rows, s.prompt, b),
            "logits": _drawing(shape, rows, b, 3),
            "working space": _reading(shape, s, rows, s.prompt),
        },
    )
    for phase in _decoding(shape, s, rows, 3, s.length):
        yield Phase(phase.name, {**lasting, **phase.parts})


def _sampling(shape: ModelShape, s: Settings) -> Iterator[Phase]:
    """``pipeline.model.decode.sample_batch``: each prompt is read once, then the cache is repeated."""
    weights, b = {"weights": weight_bytes(shape, s.bits)}, s.width
    yield Phase(
        "reading prompts",
        {
            **weights,
            "KV cache": kv_bytes(shape, s.prompts, s.prompt, b),
            "working space": _reading(shape, s, s.prompts, s.prompt),
        },
    )
    held = s.prompt + ROOM * math.ceil(s.completion / ROOM)
    for phase in _decoding(shape, s, s.rows, 4, held):
        yield Phase(phase.name, {**weights, **phase.parts})


def _reading(shape: ModelShape, s: Settings, rows: int, tokens: int) -> int:
    """A forward pass over prompts: one layer's tensors and the mask, of booleans and of numbers."""
    mask = rows * tokens**2 * (1 + s.width)
    return working_bytes(shape, s, rows * tokens, wide=3) + 4 * rows * tokens * shape.hidden + mask


def _drawing(shape: ModelShape, rows: int, width: int, copies: int) -> int:
    """The logits of one token and ``copies`` in float32: the cast, by temperature, softmax, and for
    ``pipeline.model.decode`` the cumulative sum."""
    return rows * shape.vocabulary * (width + 4 * copies)


def _decoding(shape: ModelShape, s: Settings, rows: int, copies: int, held: int) -> Iterator[Phase]:
    """A step at the full length, the cache with room for ``held`` tokens: first attention, which
    repeats one layer's keys and values for every head, or makes that layer's cache longer; then
    the draw."""
    cache = kv_bytes(shape, rows, held, s.width)
    repeated = 2 * rows * s.length * shape.query * s.width if shape.key < shape.query else 0
    working = max(cache // max(len(shape.windows), 1), repeated)
    logits = rows * shape.vocabulary * s.width
    yield Phase(
        "attending to the whole text",
        {
            "KV cache": cache,
            "logits": logits,
            "working space": working + working_bytes(shape, s, rows),
        },
    )
    drawing = _drawing(shape, rows, s.width, copies)
    yield Phase("drawing tokens", {"KV cache": cache, "logits": drawing})


# --- what to change --------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One change of the recipe, and the bytes that it saves after those before it."""

    change: str
    saves: int


#: A change: its words and the settings after it, or None where it does not apply (any more).
Change = Callable[[ModelShape, Settings], "tuple[str, Settings] | None"]


def _checkpointing(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.stage == "sampling" or s.checkpointing:
        return None
    offload = s.offload or s.backend == "unsloth"
    words = f"{s.stage}.gradient_checkpointing: true (a step takes about a third longer)"
    return words, replace(s, checkpointing=True, offload=offload)


def _smaller_batch(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.stage == "sampling" or s.rows % 2:
        return None
    rows, times = s.rows // 2, 2 * s.accumulation
    words = (
        f"{s.stage}.per_device_train_batch_size: {rows}, gradient_accumulation_steps: {times} "
        "(the same step in smaller parts)"
    )
    return words, replace(s, rows=rows, accumulation=times)


def _smaller_generation(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    half = s.generated // 2
    unit = math.lcm(max(s.rows, 1), max(s.group, 1))
    if not half or s.generated % 2 or half % unit:
        return None
    return f"grpo.generation_batch_size: {half} (fewer answers at a time)", replace(
        s, generated=half
    )


def _fewer_rows(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.stage != "sampling" or s.prompts < 2:
        return None
    prompts = s.prompts // 2
    rows = prompts * (s.rows // s.prompts)
    return f"eval.rows: {rows} (fewer answers at a time)", replace(s, rows=rows, prompts=prompts)


def _eight_bit_states(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.stage == "sampling" or "8bit" in s.optim or s.optim.startswith("paged_"):
        return None
    return f"{s.stage}.optim: adamw_8bit (needs bitsandbytes)", replace(s, optim="adamw_8bit")


def _half_precision(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.bits != 32:
        return None
    return "dtype: bfloat16", replace(s, bits=16, autocast=False)


def _sleeping_vllm(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if not s.vllm or s.sleeps:
        return None
    return "grpo.vllm_enable_sleep_mode: true", replace(s, sleeps=True)


def _no_reference(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if not reference_bytes(shape, s):
        return None
    return "grpo.beta: 0 (no reference model)", replace(s, beta=0.0)


def _lora(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.stage == "sampling" or not s.full:
        return None
    words = "lora: {r: 16, lora_alpha: 32, target_modules: all-linear} (instead of every weight)"
    return words, replace(s, adapters=shape.linears, rank=16)


def _four_bits(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if s.stage == "sampling" or s.full or s.bits == 4:
        return None
    return "weights in 4 bits (QLoRA; needs bitsandbytes)", replace(s, bits=4)


def _lower_rank(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    if not s.adapters or s.rank < 16:
        return None
    return f"lora.r: {s.rank // 2}", replace(s, rank=s.rank // 2)


def _shorter(shape: ModelShape, s: Settings) -> tuple[str, Settings] | None:
    tokens = max(3 * s.completion // 4, s.gold)
    if s.stage == "sft" or tokens >= s.completion:
        return None
    key = "grpo.max_completion_length" if s.stage == "grpo" else "eval.max_tokens"
    words = f"{key}: {tokens} (the longest gold answer has {s.gold} tokens)"
    return words, replace(s, completion=tokens)


#: First what costs only time, then precision, then what is trained, then the task itself.
CHANGES: tuple[Change, ...] = (
    _checkpointing,
    _smaller_batch,
    _smaller_generation,
    _fewer_rows,
    _sleeping_vllm,
    _eight_bit_states,
    _half_precision,
    _no_reference,
    _lora,
    _four_bits,
    _lower_rank,
    _shorter,
)
#: A change that saves less than this is not worth a line.
_WORTH = 2**26


#: Those that one takes no further than needed, once others made room.
_RELAXED = (_smaller_batch, _smaller_generation, _fewer_rows, _eight_bit_states)


def advise(shape: ModelShape, settings: Settings, budget: int) -> tuple[list[Step], Estimate]:
    """The changes, in order, until ``settings`` fit ``budget`` bytes or none helps any more, and
    the estimate after them. After each one the list is begun anew: what saved nothing while another
    part peaked may do so now. What later ones made needless is taken back."""
    taken: dict[Change, int] = {}
    now = estimate(shape, settings)
    while now.peak.total > budget:
        for change in CHANGES:
            found = change(shape, now.settings)
            after = estimate(shape, found[1]) if found else now
            if now.peak.total - after.peak.total >= _WORTH:
                taken[change] = taken.get(change, 0) + 1
                now = after
                break
        else:
            break
    for change in _RELAXED if now.peak.total <= budget else ():
        while taken.get(change):
            fewer = {**taken, change: taken[change] - 1}
            if _changed(shape, settings, fewer)[1].peak.total > budget:
                break
            taken = fewer
    return _changed(shape, settings, taken)


def _changed(
    shape: ModelShape, settings: Settings, taken: dict[Change, int]
) -> tuple[list[Step], Estimate]:
    """The settings after changes, each taken so many times, in the order of ``CHANGES``, but those
    first that save something where they stand."""
    now, steps = estimate(shape, settings), []
    left = [change for change in CHANGES if taken.get(change)]
    while left:
        tried = []
        for change in left:
            words, after = "", now.settings
            for _ in range(taken[change]):
                if found := change(shape, after):
                    words, after = found
            if words:
                tried.append((change, words, estimate(shape, after)))
        if not tried:
            break
        worth = [one for one in tried if now.peak.total - one[2].peak.total >= _WORTH]
        change, words, after = (worth or tried)[0]
        steps.append(Step(words, now.peak.total - after.peak.total))
        now = after
        left.remove(change)
    return steps, now
