"""The two backends, Unsloth and plain TRL, behind one small interface: weights to be trained, from
``pipeline.model.load`` or from Unsloth's own loader, and where they are written. Safetensors only.

Unsloth saves memory, but patches other libraries in passing; TRL is the stable fallback. Both load
weights of 4, 8 or 16 bits (or 32), attach the same LoRA, train with TRL's trainers and are saved in
the same way. Unsloth must be imported before what it patches, so ``start`` comes before anything
that imports transformers, peft or TRL.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of
from data.recipe import Recipe
from pipeline.model import processes
from pipeline.model.load import (
    check_dtype,
    check_model_folder,
    check_tokenizer,
    explained,
    from_pretrained,
    is_local,
    load_model,
    write_model,
)
from pipeline.train.settings import checkpointing, lora_config

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Arguments of a LoraConfig that Unsloth takes too.
UNSLOTH_LORA = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "layers_to_transform",
    "layers_pattern",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
)
#: A change of which more than this is lost in rounding is none; the rest is of weights near 0.
_ALL = 0.99
#: Arguments of a LoraConfig whose adapter cannot be merged into the layers it was trained on.
_NOT_MERGED = ("lora_bias", "trainable_token_indices", "layer_replication")
# On a CPU it speaks of a kernel that it goes without, whenever peft is imported.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

#: What Unsloth patches where it is imported first.
_PATCHED = ("transformers", "peft", "trl")


@dataclass(frozen=True)
class Choice:
    """The backend that trains, ``unsloth`` or ``trl``, and why."""

    name: str
    why: str


#: Unsloth counts its users over the network at every load, and gives up where that is slow.
_QUIET = {"UNSLOTH_DISABLE_STATISTICS": "1"}
#: Chosen once in a process: what Unsloth has patched stays so.
_chosen: dict[str, Choice] = {}


def choose(wanted: str) -> Choice:
    """The backend for ``auto``, ``unsloth`` or ``trl``; Unsloth, if chosen, is imported.

    ``auto`` takes Unsloth where there are CUDA and Unsloth. Where it cannot be imported, or cannot
    patch what is installed, TRL takes its place.

    Raises:
        UserError: when Unsloth is asked for by name and cannot be had.
    """
    if wanted not in _chosen:
        _chosen[wanted] = _choose(wanted)
        names = {choice.name for choice in _chosen.values()}
        assert len(names) == 1, f"{names}: one process trains with one backend"
    return _chosen[wanted]


def _choose(wanted: str) -> Choice:
    import torch

    if wanted == "trl":
        return Choice("trl", "as asked for")
    if wanted == "auto" and not torch.cuda.is_available():
        return Choice("trl", "there is no CUDA GPU")
    if processes.count() > 1:
        # Unsloth documents DDP for SFT; its GRPO is reported to hang there, and neither is tried.
        if wanted == "auto":
            return Choice("trl", f"there are {processes.count()} processes")
        raise UserError(
            f"backend: unsloth trains in one process here, not in {processes.count()}; BACKEND=trl "
            "(--backend trl) does in several"
        )
    if find_spec("unsloth") is None:
        if wanted == "auto":
            return Choice("trl", "Unsloth is not installed")
        raise UserError("backend: unsloth is not installed; `make setup` does that, or BACKEND=trl")
    # What fails half-way has patched half, so a process that can do without it lets another try.
    reason = (_try_unsloth() if wanted == "auto" else None) or _import_unsloth()
    if reason is None:
        return Choice("unsloth", "as asked for" if wanted == "unsloth" else "there is a CUDA GPU")
    if wanted == "auto":
        return Choice("trl", f"Unsloth cannot be used here: {reason}")
    raise UserError(f"backend: unsloth cannot be used here: {reason}; BACKEND=trl goes without")


def _try_unsloth() -> str | None:
    """Import Unsloth in a process of its own; why not, in a line, where that fails."""
    trial = "import sys; from pipeline.train import backend; sys.exit(backend._import_unsloth())"
    environment = {**_QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", trial], capture_output=True, text=True, env=environment
    )
    if not done.returncode:
        return None
    return (done.stderr.strip().splitlines() or [f"its import ends with {done.returncode}"])[-1]


def _import_unsloth() -> str | None:
    """Import Unsloth; why not, in a line, where that fails."""
    late = [name for name in _PATCHED if name in sys.modules]
    if "unsloth" not in sys.modules and late:
        return f"{', '.join(late)} had been imported before it"
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # whatever a library that patches five others may run into
        return f"{type(error).__name__}: {reason_of(error)}"
    return None


def start(recipe: Recipe) -> Choice:
    """Choose the backend that trains a recipe or arm, and import it.

    Raises:
        UserError: see ``choose`` and ``check_installed``.
    """
    check_installed(recipe)
    processes.prepare_devices()
    choice = choose(recipe.backend)
    if recipe.fast_inference and choice.name != "unsloth":
        raise UserError(
            f"{recipe.path}: fast_inference is Unsloth's, and the backend is {choice.name} "
            f"({choice.why}); take grpo.use_vllm with it, or neither"
        )
    return choice


def check_installed(recipe: Recipe) -> None:
    """Raise UserError where a recipe asks for an option that is not installed on this machine, or
    that works on a GPU only."""
    import torch

    if recipe.quantised and processes.cuts_weights():
        raise UserError(
            f"{recipe.path}: weights of {recipe.bits} bits are not cut up among processes; "
            "pipeline/accelerate/ddp.yaml or zero2.yaml leaves them whole, or bits: 16"
        )
    gpu = torch.cuda.is_available()
    wants: list[tuple[str, str, bool]] = [
        ("fast_inference", "vllm", recipe.fast_inference),
        ("grpo.use_vllm", "vllm", bool(recipe.grpo.get("use_vllm"))),
        (f"bits: {recipe.bits}", "bitsandbytes", recipe.quantised),
    ]
    for section in ("sft", "grpo"):
        settings = getattr(recipe, section)
        optim = str(settings.get("optim", ""))
        eight = "8bit" in optim or "bnb" in optim or optim.startswith("paged")
        wants.append((f"{section}.optim: {optim}", "bitsandbytes", eight))
        kernel = bool(settings.get("use_liger_kernel"))
        wants.append((f"{section}.use_liger_kernel", "liger_kernel", kernel))
    for key, package, wanted in wants:
        if not wanted:
            continue
        if find_spec(package) is None:
            raise UserError(
                f"{recipe.path}: {key} needs {package}, which is not installed; "
                f"`.venv/bin/pip install {package.replace('_', '-')}`, or leave the key out"
            )
        if not gpu and not key.startswith("bits"):
            raise UserError(f"{recipe.path}: {key} needs a CUDA GPU; leave the key out without one")


def load_for_training(
    recipe: Recipe, stage: str, model: str, length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as the recipe trains it: by its backend, of its bits, below a LoRA adapter if
    the recipe has one.

    Args:
        stage: the recipe's section, ``sft`` or ``grpo``.
        length: tokens that a prompt with its answer may have, which Unsloth asks for.

    Raises:
        UserError: see ``load``; when the backend cannot attach the adapter to this model, or would
            attach another one; and when it cannot quantise here.
    """
    adapter = lora_config(recipe)
    recomputed = checkpointing(recipe, stage)
    if choose(recipe.backend).name == "unsloth":
        network, tokenizer = _load_with_unsloth(recipe, model, length, recomputed)
    else:
        network, tokenizer = _load_with_trl(recipe, model)
    # Where it cannot quantise, Unsloth goes on with whole weights.
    if recipe.quantised and all(each.is_floating_point() for each in network.parameters()):
        raise UserError(
            f"{recipe.path}: {choose(recipe.backend).name} cannot load {model} in {recipe.bits} "
            f"bits on this machine; {'BITS=4 or ' if recipe.bits == 8 else ''}BACKEND=trl"
        )
    if adapter is not None:
        _check_names(network, adapter, recipe, model)
        attach = _attach_with_unsloth if _is_unsloth(recipe) else _attach_with_trl
        try:
            adapted = attach(network, adapter, recipe, recomputed)
        except (ValueError, TypeError, NotImplementedError) as error:
            reason = reason_of(error)
            raise UserError(f"{recipe.path}: lora does not fit {model}: {reason}") from None
        _check_ends(adapted, recipe)
        network = adapted
    if _is_unsloth(recipe) and not any(getattr(recipe, stage).get(k) for k in ("bf16", "fp16")):
        # Its trainers would turn bfloat16 autocast on where neither is asked for.
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UserError(f"{recipe.path}: {model} has no trainable weights; look at lora:")
    return network, tokenizer


def _is_unsloth(recipe: Recipe) -> bool:
    return choose(recipe.backend).name == "unsloth"


def _check_names(network: PreTrainedModel, adapter: LoraConfig, recipe: Recipe, model: str) -> None:
    """Raise UserError where ``lora`` names a layer that the model does not have, which PEFT passes
    over as long as it has another one, or asks for what cannot be merged."""
    from torch.nn import Linear

    for key in _NOT_MERGED:
        if getattr(adapter, key):
            raise UserError(f"{recipe.path}: lora.{key} cannot be merged into a model; drop it")
    modules = {f".{name}": module for name, module in network.named_modules()}
    for key in ("target_modules", "modules_to_save"):
        names = getattr(adapter, key)
        for wanted in () if names is None or isinstance(names, str) else sorted(names):
            if not any(name.endswith(f".{wanted}") for name in modules):
                layers = {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, Linear)}
                raise UserError(
                    f"{recipe.path}: lora.{key} has {wanted!r}, which {model} has not; its "
                    f"linear layers are {', '.join(sorted(layers))}"
                )


def _check_ends(adapted: PreTrainedModel, recipe: Recipe) -> None:
    """Raise UserError where there is an adapter on the embedding, or on a head that shares its
    weights: merging it into one changes the other, which was trained without."""
    from peft.tuners.lora import LoraLayer

    inner = adapted.get_base_model()
    entry, head = (
        getattr(end, "base_layer", end)
        for end in (inner.get_input_embeddings(), inner.get_output_embeddings())
    )
    tied = head is not None and head.weight is entry.weight
    for name, layer in inner.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if layer.get_base_layer() is entry or (tied and layer.get_base_layer() is head):
            leaf = name.rpartition(".")[2]
            raise UserError(
                f"{recipe.path}: an adapter of {leaf} cannot be merged into a model whose "
                f"embedding it is; leave it out of lora.target_modules (lora.modules_to_save: "
                f"[{leaf}] trains it whole)"
            )


def _load_with_trl(recipe: Recipe, model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not recipe.quantised:
        return load_model(model, recipe.dtype)
    import torch
    from transformers import BitsAndBytesConfig

    # QLoRA's settings (arXiv 2305.14314), as Unsloth has them too.
    quantised = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, recipe.dtype),
        )
        if recipe.bits == 4
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    where = {"": processes.local()} if torch.cuda.is_available() else "cpu"
    network, tokenizer = from_pretrained(
        model, recipe.dtype, quantization_config=quantised, device_map=where
    )
    for weight in network.parameters():
        weight.requires_grad = False
    for module in network.modules():
        # On a CPU bitsandbytes 0.50 repacks weights of 4 bits when first used in eval mode, and the
        # backward pass through what it packed is wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return network, tokenizer


def _load_with_unsloth(
    recipe: Recipe, model: str, length: int, recomputed: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoTokenizer
    from unsloth import FastLanguageModel

    check_dtype(recipe.dtype)
    if is_local(model):
        check_model_folder(Path(model))
    with explained(model):
        network, theirs = FastLanguageModel.from_pretrained(
            model_name=model,
            max_seq_length=length,
            dtype=getattr(torch, recipe.dtype),
            load_in_4bit=recipe.bits == 4,
            load_in_8bit=recipe.bits == 8,
            load_in_16bit=not recipe.quantised and recipe.dtype != "float32",
            full_finetuning=recipe.lora is None,
            trust_remote_code=False,
            use_gradient_checkpointing="unsloth" if recomputed else False,
            fast_inference=recipe.fast_inference,
            max_lora_rank=(recipe.lora or {}).get("r", 64),
            **_share_of_vllm(recipe),
            random_state=recipe.seed,
            offload_embedding=False,  # or memory would depend on what is free
            use_exact_model_name=True,  # not a copy of its own, quantised or mended
        )
        # Its own pads on the other side and has another limit; the model is saved with this one.
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    # Its GRPO masks padding by its id, so the end of a turn must not be the same token.
    its = theirs.pad_token
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id) and its in tokenizer.get_vocab():
        tokenizer.pad_token = its
    check_tokenizer(network, tokenizer, model)
    return network, tokenizer


def _share_of_vllm(recipe: Recipe) -> dict[str, float]:
    """The share of the GPU that TRL's config gives to vLLM, as Unsloth calls it, where given."""
    share = recipe.grpo.get("vllm_gpu_memory_utilization")
    return {} if share is None else {"gpu_memory_utilization": share}


def _attach_with_trl(
    network: PreTrainedModel, adapter: LoraConfig, recipe: Recipe, recomputed: bool
) -> PreTrainedModel:
    import torch
    from peft import get_peft_model

    torch.manual_seed(recipe.seed)  # of the adapter's first weights
    return get_peft_model(network, adapter)


def _attach_with_unsloth(
    network: PreTrainedModel, adapter: LoraConfig, recipe: Recipe, recomputed: bool
) -> PreTrainedModel:
    from unsloth import FastLanguageModel

    foreign = sorted(set(recipe.lora or {}) - set(UNSLOTH_LORA))
    if foreign:
        raise UserError(
            f"{recipe.path}: the Unsloth backend takes no lora.{foreign[0]}; backend: trl does"
        )
    targets = adapter.target_modules
    return FastLanguageModel.get_peft_model(
        network,
        **{key: getattr(adapter, key) for key in UNSLOTH_LORA if key != "target_modules"},
        target_modules=sorted(targets) if isinstance(targets, set) else targets,
        use_gradient_checkpointing="unsloth" if recomputed else False,
        random_state=recipe.seed,
    )


def hold_adapters_whole(recipe: Recipe, trainer: Any) -> Any:
    """``trainer``, with adapters of quantised weights in float32. TRL makes them bfloat16, in which
    small steps are lost: at a learning rate of 2e-5, 46 % of their numbers have not moved in 10."""
    if recipe.quantised:
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return trainer


def save_adapter(
    model: PreTrainedModel, folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """Write the LoRA adapter of a model that was trained, in PEFT's layout; not the copy that TRL
    may hold beside it as the reference of its KL. ``weights``: see ``write_model``."""
    model.save_pretrained(folder, selected_adapters=["default"], state_dict=weights)


def _change(layer: Any) -> Any:
    """What merging adds to the weights of a layer with an adapter, before it is rounded."""
    variant = layer.lora_variant.get("default")  # such as DoRA
    if variant is None:
        return layer.get_delta_weight("default").detach()
    weight = layer.get_base_layer().weight.detach()
    return variant.merge_safe(layer, "default", weight).detach() - weight


def merge(model: str, adapter: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """Write ``model`` with an adapter added into its weights of ``dtype``, whatever bits it was
    trained above, and check that what is written is base + adapter and not the base.

    Returns:
        ``{modules, change, rounding}``: how many layers have an adapter, the norm of its change
        over the norm of their weights, and the norm of what rounding to ``dtype`` made of the
        change over the change's; the latter two over up to 64 rows of each layer.

    Raises:
        UserError: when (all but) all of the change is lost in rounding.
        AssertionError: when the merged model is not base + adapter.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    network, tokenizer = from_pretrained(model, dtype)
    adapted = PeftModel.from_pretrained(network, str(adapter))
    before, wanted = {}, {}
    for name, layer in adapted.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), torch.nn.Linear):
            rows = layer.get_base_layer().weight.detach()[:64].double()
            before[name], wanted[name] = rows, _change(layer)[:64].double()
    assert before, f"{adapter} is the adapter of no layer of {model}"
    done = adapted.merge_and_unload()
    exact = torch.finfo(getattr(torch, dtype)).eps
    sizes = torch.zeros(3, dtype=torch.float64)
    for name, rows in before.items():
        change = wanted[name]
        made = done.get_submodule(name).weight.detach()[:64].double() - rows
        allowed = 4 * exact * (rows.abs() + change.abs()) + 1e-9
        off = (made - change).abs()
        assert bool((off <= allowed).all()), f"{name} is not base + adapter after merging"
        parts = (rows, change, made - change)
        sizes += torch.stack([part.square().sum() for part in parts])
    of_base, of_change, of_loss = sizes.sqrt().tolist()
    lost = of_loss / of_change if of_change else 0.0
    if lost > _ALL:
        raise UserError(
            f"merging {adapter} into {model} changes nothing: {lost:.0%} of it is lost in rounding "
            f"to {dtype}; train longer, at a higher learning rate, or with dtype: float32"
        )
    write_model(done, tokenizer, folder)
    return {
        "modules": len(before),
        "change": of_change / of_base,
        "rounding": lost,
    }
