"""How many bytes each thing takes that training and sampling hold on a GPU.

Pure arithmetic, no torch: ``pipeline.plan`` reads shape and settings from config and recipe, and
``pipeline.memory.stages`` adds up what is held at the same moment. The formulas count what the
installed trl, peft and transformers hold; each names the source that it was read from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GIB = 2**30
#: Bits a weight beside its own 4: NF4's constants, quantised a second time (QLoRA, arXiv
#: 2305.14314, section 3: 8/64 + 32/(64 x 256)).
DOUBLE_QUANTISED = 0.127
#: Bytes of an adapter's weight: peft raises half precision to float32
#: (peft.tuners.tuners_utils.cast_adapter_dtype), as Unsloth does, and ``pipeline.train.backend``
#: keeps it so above quantised weights.
ADAPTER_WIDTH = 4
#: trl.trainer.sft_trainer: tokens whose logits ``chunked_nll`` holds at a time.
SFT_CHUNK = 256
#: unsloth_zoo.fused_losses.chunked_logprob: most bytes of a chunk of logits, bytes a logit, and the
#: rows that it takes at least.
UNSLOTH_CHUNK, UNSLOTH_LOGIT, UNSLOTH_ROWS = 2 * GIB, 8, 512
#: Moments that an optimizer keeps of each parameter, by the beginning of its name; others keep
#: AdamW's two. Torch keeps them in the parameter's own dtype (arXiv 1910.02054, section 3.1).
_MOMENTS = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
#: Bytes of a moment of fewer bits, with a float32 constant for each block (arXiv 2110.02861;
#: bitsandbytes from 0.44 on; torchao).
_QUANTISED_MOMENT = {"8bit": 1 + 4 / 256, "4bit": 0.5 + 4 / 128}
#: Linear layers that read one and the same tensor, which is saved once for them.
_READERS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn"), "attention"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc"), "mlp"),
    **dict.fromkeys(("o_proj", "out_proj"), "attended"),
}


@dataclass(frozen=True)
class Linear:
    """``count`` linear layers of one name and size."""

    name: str
    inputs: int
    outputs: int
    count: int = 1


@dataclass(frozen=True)
class ModelShape:
    """What a config says of a decoder.

    Attributes:
        parameters: all of them, tied ones once.
        linears: the linear layers but the head: what quantisation takes, and LoRA may.
        windows: for each layer with a KV cache its sliding window, or None.
        query, key: width of all heads together; values are as wide as keys.
        heads: of the queries.
        mlp: width between the two halves of the feed-forward layer; of all active experts.
        gated: the feed-forward layer multiplies two projections.
        norms: widths of all norms of a layer together.
        float_norms: they keep what they normalised in float32 (Gemma).
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
    mlp: int
    gated: bool
    norms: int
    float_norms: bool = False

    @property
    def quantisable(self) -> int:
        """Parameters of the linear layers."""
        return sum(one.inputs * one.outputs * one.count for one in self.linears)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, or of the head."""
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
        """Tokens of a prompt with its answer."""
        return self.prompt + self.completion

    @property
    def tokens(self) -> int:
        """Tokens trained on at a time."""
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

    @property
    def trained_width(self) -> int:
        """Bytes of a trained parameter, and of its gradient."""
        return self.kept if self.full else ADAPTER_WIDTH


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


def optimizer_bytes(optim: str, parameters: int, width: int) -> int:
    """The optimizer's states between steps. Paged ones (``paged_…``) are evicted to the host's
    memory when the GPU runs out (arXiv 2305.14314, section 3), so they count nothing."""
    if optim.startswith("paged_"):
        return 0
    moments = next((count for name, count in _MOMENTS.items() if optim.startswith(name)), 2)
    each = next((size for bits, size in _QUANTISED_MOMENT.items() if bits in optim), width)
    return math.ceil(parameters * moments * each)


def reference_bytes(shape: ModelShape, s: Settings) -> int:
    """The reference model, where beta > 0. For full fine-tuning trl's GRPOTrainer loads it again by
    ``create_model_from_path``, in the dtype that ``pipeline.train.settings`` names, the model's. To
    an adapter that is there before the trainer trl adds a frozen copy, "ref", which peft keeps in
    float32 (grpo_trainer.py, ``model.add_adapter``); Unsloth takes that away and switches the
    adapter off instead."""
    if s.stage != "grpo" or not s.beta or (s.backend == "unsloth" and not s.full):
        return 0
    return s.trained_width * trained(shape, s)


def kv_bytes(shape: ModelShape, sequences: int, tokens: int, width: int) -> int:
    """The KV cache: for each layer keys and values of every token (2 x kv heads x head width; Pope
    et al. 2022, arXiv 2211.05102, section 3), of the window's last but one at most where attention
    slides (transformers.cache_utils.DynamicSlidingWindowLayer)."""
    held = sum(tokens if w is None else min(tokens, max(w - 1, 1)) for w in shape.windows)
    return sequences * held * 2 * shape.key * width


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
        attention = 2 * b * (shape.query + shape.key) + lse
        return tokens * (4 * b * shape.hidden + attention + 2 * b * shape.mlp)
    # Repeated to as many as there are queries.
    attention = 4 * b * shape.query + lse + b * s.length
    forward = b * shape.mlp * (3 if shape.gated else 1)
    norms = 4 * shape.norms
    if s.full:
        norms += shape.norms * (4 if shape.float_norms else b) + 2 * b * shape.hidden
        forward += b * shape.mlp
    return tokens * (norms + attention + forward) + _adapter_inputs(shape, s)


def _adapter_inputs(shape: ModelShape, s: Settings) -> int:
    """What the adapters of one layer save: their inputs, and the rank values between A and B."""
    own, a = s.width != ADAPTER_WIDTH and not s.autocast, ADAPTER_WIDTH
    held, seen = 0.0, {"attended"}
    for one in s.adapters:
        share = one.count / shape.layers
        reader = _READERS.get(one.name, one.name)
        if s.dropout:  # what it leaves of the input, and a mask of a byte each
            held += share * one.inputs * ((a if own else s.width) + 1)
        elif own or reader not in seen:
            held += share * one.inputs * (a if own else s.width)
        held += share * s.rank * a
        seen.add(reader)
    return math.ceil(s.tokens * held)


def saved_bytes(shape: ModelShape, s: Settings) -> int:
    """What the layers hold from the forward to the backward pass. With gradient checkpointing (Chen
    et al. 2016, arXiv 1604.06174) it is each layer's input; with offload (Unsloth's, or trl's
    ``activation_offloading``) that waits in the host's memory but for two buffers
    (unsloth_zoo.gradient_checkpointing). Autocast's casts of float32 weights live as long."""
    layers = min(2, shape.layers) if s.offload else shape.layers
    casts = 2 * shape.quantisable if s.autocast and s.bits == 32 else 0
    if s.checkpointing:
        return layers * s.tokens * shape.hidden * s.width + casts
    return layers * layer_bytes(shape, s) + casts


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
      ``convert_outputs_to_fp32``).
    - ``use_liger_kernel``: 2,048 tokens by 8,192 words (trl.trainer.utils).
    - Unsloth: rows of at most 2 GiB or an eighth of all, 8 bytes a logit (chunked_logprob).
    """
    words, b = shape.vocabulary, s.width
    if s.backend == "unsloth":
        scored = s.rows * s.completion if s.stage == "grpo" else s.tokens
        rows = max(UNSLOTH_ROWS, math.ceil(scored / 8))
        rows = min(rows, UNSLOTH_CHUNK // (words * UNSLOTH_LOGIT), scored)
        return max(rows, 2) * words * UNSLOTH_LOGIT
    if s.loss == "liger":
        return 4 * 4 * min(2048, s.tokens) * min(8192, words)
    if s.stage == "grpo":
        return s.rows * (s.completion + 1) * words * 2 * (4 if s.autocast else b)
    if s.loss == "chunked":
        return min(SFT_CHUNK, s.tokens) * words * 16
    return s.tokens * words * (b + 12)
