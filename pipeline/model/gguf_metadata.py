"""What a GGUF file says of its model and transformers does not carry over: carried, or refused.

Without this a conversion succeeds and gives another model: turn marks in pieces, unscaled
positions, random tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGUFReader
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import generate_merges
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data.common.errors import brief, require

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

#: The tensor by which Llama 3.1 and later scale positions.
_LLAMA3 = "rope_freqs.weight"
#: The pieces that Llama 3 cuts a text into before it joins letters: numbers of three digits.
_LLAMA3_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Names in files of the tokenizers that cut a text so (llama.cpp's src/llama-vocab.cpp).
_LIKE_LLAMA3 = {
    "falcon-h1", "falcon3", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral",
}  # fmt: skip
#: Ends each refusal.
_WAY_OUT = "use the safetensors model that it was made from"
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
#: Keys below the architecture's name, and what configs call the same.
_NAMES = {
    "attention.key_length": ("head_dim",),
    "attention.key_length_swa": ("head_dim",),
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
#: Keys that say nothing, or only what the tensors' shapes and names say too.
_NEEDLESS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "pooling_type",
    "tensor_data_layout", "use_parallel_residual", "vocab_size",
}  # fmt: skip
#: Types of a token in the file: it is never part of a text, or given whole by whoever made it.
_CONTROL, _USER_DEFINED = 3, 4
#: Names of the tokens that begin, end and pad, here and in the file.
_ENDS = {
    "bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown",
}  # fmt: skip
#: Layers of those models whose attention is scaled by the width of a head as the residual has it,
#: which llama.cpp knows and the file does not say.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


def metadata(file: Path) -> tuple[dict[str, Any], Collection[str]]:
    """What a file says by key, without the lists of strings that nothing here needs, and the names
    of its tensors."""
    said, tensors = read_gguf_metadata(str(file), ("tokenizer.ggml.tokens",))
    return said, tensors


def carry_config(
    said: Mapping[str, Any], tensors: Collection[str], config: PretrainedConfig, file: Path
) -> None:
    """Have the config say what the file says.

    Args:
        said: the file's metadata.
        tensors: the names of its tensors.
        config: as transformers made it, to be changed.
        file: it, for messages and tensors.

    Raises:
        UserError: when the file says what the config cannot.
    """
    name = said["general.architecture"]
    below = {k.removeprefix(f"{name}."): v for k, v in said.items() if k.startswith(f"{name}.")}
    mapped: Any = GGUF_CONFIG_MAPPING.get(name) or GGUF_CONFIG_MAPPING.get(config.model_type)
    for key, value in below.items():
        if key.startswith("rope."):
            continue
        has = config.to_dict()
        names = [(mapped or {}).get(key), *_NAMES.get(key, ())]
        ours = next((one for one in names if one in has), None)
        if key == "attention.causal":
            fits = bool(value)
        elif key == "attention.value_length":
            fits = value == below.get("attention.key_length", value)
        elif key == "attention.sliding_window" and not 0 < value < below.get(
            "context_length", math.inf
        ):
            fits = True  # of no effect
        elif key == "attention.sliding_window_pattern":
            fits = _windows(value, below["block_count"]) == has.get("layer_types")
        elif key == "attention.key_length" and "head_dim" not in has:
            config.head_dim, fits = value, True  # read where it is there; else shapes do not fit
        elif key in _NAMES and ours:
            if not _same(has[ours], value):
                setattr(config, ours, value)
            fits = ours != "sliding_window" or "sliding_attention" in (
                has.get("layer_types") or ["sliding_attention"]
            )
        else:
            fits = not value or mapped is None or key in mapped or key in _NEEDLESS
        require(
            fits,
            f"{file.name} says {name}.{key}: {brief(value)}, which transformers does not take over "
            f"for this architecture, so that the model would be another; {_WAY_OUT}",
        )
    if _SCALED_BY_WIDTH.get(name, -1) == below.get("block_count"):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    rope = {k.removeprefix("rope."): v for k, v in below.items() if k.startswith("rope.")}
    _carry_rope(rope, tensors, config, file, f"{file.name} says {name}.rope.")


def _windows(pattern: Any, layers: int) -> list[str]:
    """The kinds of layers by the file's pattern: every how manieth is full, or which slide."""
    if isinstance(pattern, int):
        pattern = [(layer + 1) % pattern for layer in range(layers)]
    return ["sliding_attention" if slides else "full_attention" for slides in pattern]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _carry_rope(
    rope: Mapping[str, Any],
    tensors: Collection[str],
    config: PretrainedConfig,
    file: Path,
    where: str,
) -> None:
    """Have the config turn positions as the file does: base, share of a head, scaling."""
    every = getattr(config, "rope_parameters", None)
    if not every:
        require(not rope, f"{where}*, and this architecture has no positions to turn; {_WAY_OUT}")
        return
    full = every.get("full_attention", every)
    for key, ours in {
        "freq_base": full, "freq_base_swa": every.get("sliding_attention", {})
    }.items():  # fmt: skip
        if key in rope and not _same(ours.get("rope_theta"), rope[key]):
            ours["rope_theta"] = rope[key]
    if full["rope_type"] == "proportional":  # Gemma 4: transformers' own config has it all
        return
    head = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    turned = rope.get("dimension_count", int(head * full.get("partial_rotary_factor", 1)))
    if turned != int(head * full.get("partial_rotary_factor", 1)):
        known = "partial_rotary_factor" in full
        require(known, f"{where}dimension_count: {turned}, not {head}, a whole head; {_WAY_OUT}")
        full["partial_rotary_factor"] = turned / head
    _carry_scaling(rope, full, where)
    long = next((one for one in tensors if one.startswith("rope_factors_")), None)
    require(not long, f"{where}scaling by a tensor, {long}, which is not taken over; {_WAY_OUT}")
    if _LLAMA3 in tensors:
        read = GGUFReader(file).tensors
        factors = next(one.data for one in read if one.name == _LLAMA3)
        if not np.allclose(factors, 1):
            _carry_llama3(factors, full, config, where)


def _carry_scaling(rope: Mapping[str, Any], full: dict[str, Any], where: str) -> None:
    """Scaling as the metadata has it, by llama.cpp's defaults."""
    kind = rope.get("scaling.type", "linear")
    factor = rope.get("scaling.factor", rope.get("scale_linear", 1)) or 1
    other = {k: v for k, v in rope.items() if k.startswith("scaling.") and v not in (0, 1)}
    for key in ("type", "factor", "original_context_length", "finetuned"):
        other.pop(f"scaling.{key}", None)
    if kind == "none" or (factor == 1 and not other) or full["rope_type"] == kind:
        return
    length = rope.get("scaling.original_context_length")
    fits = kind == "linear" or (kind == "yarn" and length)
    lost = next(iter(other), "" if fits else "scaling.type")
    require(
        not lost, f"{where}{lost}: {brief(rope.get(lost))}, which is not taken over; {_WAY_OUT}"
    )
    full |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        full["original_max_position_embeddings"] = length


def _carry_llama3(factors: Any, full: dict[str, Any], config: PretrainedConfig, where: str) -> None:
    """Scaling as Llama 3 has it, of which the file keeps only what divides each frequency: the
    published settings where they give these very divisors, else refused."""
    unscaled = np.asarray(full["rope_theta"] ** (-np.arange(len(factors)) / len(factors)))
    before = dict(full)
    full |= {
        "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    plain = before["rope_type"] == "default" and full is config.rope_parameters
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config)[0].numpy() if plain else np.zeros(0)
    require(
        scaled.shape == unscaled.shape and np.allclose(scaled * factors, unscaled, rtol=1e-3),
        f"{where}scaling by a tensor, {_LLAMA3}, whose values are not those that Llama 3's "
        f"published settings give; {_WAY_OUT}",
    )


def carry_tokens(said: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Have the tokenizer take each token that the file calls control or user-defined whole, at its
    own id, know none beside the file's, and begin, end and pad as the file does.

    Raises:
        UserError: when a token would have another id, or no chat template holds by default.
    """
    names = said["tokenizer.ggml.tokens"]
    backend: Any = tokenizer
    before = json.loads(backend.backend_tokenizer.to_str())
    added = {one["id"]: one for one in before["added_tokens"] if one["id"] < len(names)}
    for id_, kind in enumerate(said.get("tokenizer.ggml.token_type", [])):
        special = kind == _CONTROL
        if kind in (_CONTROL, _USER_DEFINED) and added.get(id_, {}).get("special", -1) < special:
            # Gemma's spaces have another name in the vocabulary, that of the text as it is read.
            name = tokenizer.convert_ids_to_tokens(id_)
            require(
                tokenizer.convert_tokens_to_ids(name) == id_,
                f"{file.name} has the token {brief(names[id_])} twice, so that its ids cannot be "
                f"kept; {_WAY_OUT}",
            )
            flags = {"single_word": False, "lstrip": False, "rstrip": False}
            flags |= {"normalized": name != names[id_], "special": special}
            added[id_] = {"id": id_, "content": name, **flags}
    described = before | {"added_tokens": [added[id_] for id_ in sorted(added)]}
    described |= _cut_as_the_family(said, before["model"])
    if described != before:
        backend._tokenizer = Tokenizer.from_str(json.dumps(described))
    known = tokenizer.get_vocab()
    for ours, theirs in _ENDS.items():
        end = said.get(f"tokenizer.ggml.{theirs}_token_id", len(names))
        if end < len(names):
            setattr(tokenizer, ours, tokenizer.convert_ids_to_tokens(end))
        elif getattr(tokenizer, ours) not in known:
            setattr(tokenizer, ours, None)  # of the family, not of this file
    for key in ("add_bos_token", "add_eos_token"):
        adds = said.get(f"tokenizer.ggml.{key}")
        if adds is not None and adds != getattr(tokenizer, key, adds):
            setattr(tokenizer, key, adds)
    variants = [key for key in said if key.startswith("tokenizer.chat_template.")]
    require(
        not variants or "tokenizer.chat_template" in said,
        f"{file.name} has chat templates by name ({', '.join(variants)}) and none that holds by "
        f"default; {_WAY_OUT}",
    )


def _cut_as_the_family(said: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer whose ``model`` transformers does not make as the family has it."""
    if model["type"] == "Unigram" and said.get("tokenizer.ggml.model") == "llama":
        # Gemma's, whose scores are the order of merges, without which it would read back letters.
        names = said["tokenizer.ggml.tokens"]
        types = said.get("tokenizer.ggml.token_type", [1] * len(names))
        scores = dict(model["vocab"])
        vocab = {name: id_ for id_, name in enumerate(scores)}
        marks = {name for name, kind in zip(scores, types, strict=False) if kind != 1}
        return {"model": {
            "type": "BPE", "vocab": vocab, "merges": generate_merges(vocab, scores, marks),
            "unk_token": model["vocab"][model["unk_id"]][0], "fuse_unk": True,
            "byte_fallback": True,
        }}  # fmt: skip
    if said.get("tokenizer.ggml.pre") in _LIKE_LLAMA3:  # transformers takes GPT-2's pieces
        pieces = [
            {"type": "Split", "pattern": {"Regex": _LLAMA3_PIECES}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ]  # fmt: skip
        return {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pieces},
            "model": {**model, "ignore_merges": True},
        }
    return {}


def check_tensors(
    said: Mapping[str, Any],
    tensors: Collection[str],
    model: PreTrainedModel,
    report: Mapping[str, Any],
    file: Path,
) -> None:
    """Raise UserError where the model lacks tensors, which would be random, or has no place for
    some of the file's."""
    missing = report["missing_keys"]
    require(
        not missing,
        f"{file.name} lacks {len(missing)} of the model's tensors, such as "
        f"{min(missing, default='')}, which would be random; give a file that is whole, not a part "
        f"of one, or {_WAY_OUT}",
    )
    name = said["general.architecture"]
    left: Any = report["unexpected_keys"]
    if not is_gguf_arch_supported(name):  # read by transformers' older reader, which is silent
        processor = TENSOR_PROCESSORS.get(name, TensorProcessor)(config=model.config.to_dict())
        taken = get_gguf_hf_weights_map(model, processor)
        taken |= dict.fromkeys(("output.weight", _LLAMA3))
        left = [one for one in tensors if not {one, one.removesuffix(".weight")} & taken.keys()]
    require(
        not left,
        f"{file.name} has {len(left)} tensors that have no place in the model as transformers "
        f"builds it, such as {min(left, default='')}; {_WAY_OUT}",
    )
