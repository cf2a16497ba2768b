"""Loads a model for training, by either backend, with weights of 4, 16 or 32 bits and the same
LoRA adapter. Safetensors only, and no code that comes with a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of, require
from pipeline.model import processes
from pipeline.model.load import (
    check_model_folder,
    check_tokenizer,
    from_pretrained,
    load_model,
    loading,
    read_config,
)
from pipeline.model.skeleton import skeleton
from pipeline.train.settings import lora_config
from pipeline.train.training import Training

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.recipe import Recipe

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

#: Arguments of a LoraConfig that Unsloth takes too.
UNSLOTH_LORA = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "layers_to_transform",
    "layers_pattern", "use_rslora", "modules_to_save", "init_lora_weights",
)  # fmt: skip


def load_for_training(training: Training, length: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the model that a training starts from: by its backend, of its bits, below a LoRA adapter
    if the recipe has one. PEFT's wrapper then has the model's own interface.

    Args:
        length: tokens that a prompt with its answer may have, which Unsloth asks for.

    Raises:
        UserError: see ``load_model``; when the backend cannot attach the adapter to this model, or
            would attach another one; and when it cannot quantise here.
    """
    recipe, unsloth = training.recipe, training.backend.is_unsloth
    load = _load_with_unsloth if unsloth else _load_with_trl
    network, tokenizer = load(training, length)
    # Where Unsloth cannot quantise, it goes on with whole weights.
    require(
        not (recipe.quantised and all(w.is_floating_point() for w in network.parameters())),
        f"{training.source}: {training.backend.name} cannot load {training.start} in "
        f"{recipe.bits} bits here; BACKEND=trl",
    )
    adapter = lora_config(recipe.lora, training.source)
    attach = _attach_with_unsloth if unsloth else _attach_with_trl
    trained = network if adapter is None else _adapted(network, adapter, training, attach)
    if unsloth and not any(training.arguments.get(key) for key in ("bf16", "fp16")):
        # Its trainers would turn bfloat16 autocast on where neither is asked for.
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
    require(
        any(weight.requires_grad for weight in trained.parameters()),
        f"{training.source}: {training.start} has no trainable weights; look at lora:",
    )
    return trained, tokenizer


def hold_adapters_whole(trainer: Any, quantised: bool) -> Any:
    """``trainer`` with adapters of quantised weights in float32. TRL makes them bfloat16, in which
    small steps are lost: at a learning rate of 2e-5, 46 % of their numbers have not moved in 10."""
    if quantised:
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return trainer


def check_model(recipe: Recipe) -> None:
    """Raise UserError where a recipe's model cannot be trained, or has not the layers that ``lora``
    names. Needs its config alone."""
    network = skeleton(read_config(recipe.model), recipe.model)
    if adapter := lora_config(recipe.lora, str(recipe.path)):
        adapter.init_lora_weights = False  # some kinds compute them from weights
        training = Training(recipe, "", "", recipe.model)
        _adapted(network, adapter, training, _attach_with_trl)


def _adapted(
    network: PreTrainedModel,
    adapter: LoraConfig,
    training: Training,
    attach: Callable[[PreTrainedModel, LoraConfig, Training], PeftModel],
) -> PeftModel:
    """The model with a fresh adapter."""
    _check_layers(network, adapter, training)
    try:
        adapted = attach(network, adapter, training)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{training.source}: lora does not fit {training.start}: {reason_of(error)}; name "
            "other layers in lora.target_modules, leave some out by lora.exclude_modules, or train "
            "every weight (lora: null)"
        ) from None
    _check_embedding(network, training.source)
    return adapted


def _check_layers(network: PreTrainedModel, adapter: LoraConfig, training: Training) -> None:
    """Raise UserError where ``lora`` names a layer that the model does not have, which PEFT passes
    over as long as it has another one."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    modules = {f".{name}": module for name, module in network.named_modules()}
    linear = {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, Linear | Conv1D)}
    weights = [f".{name}" for name, weight in network.named_parameters() if weight.ndim == 3]
    experts = {name.rpartition(".")[2] for name in weights}
    for key, known, there, kind in (
        ("target_modules", modules, linear, "linear layers"),
        ("modules_to_save", modules, linear, "linear layers"),
        ("target_parameters", weights, experts, "parameters of experts"),
    ):
        names = getattr(adapter, key)
        for wanted in () if names is None or isinstance(names, str) else sorted(names):
            require(
                any(name.endswith(f".{wanted}") for name in known),
                f"{training.source}: lora.{key} has {wanted!r}, which {training.start} has not; "
                f"its {kind} are {', '.join(sorted(there)) or 'none'}",
            )


def _check_embedding(network: PreTrainedModel, source: str) -> None:
    """Raise UserError where there is an adapter on the embedding, or on a head that shares its
    weights: merging it into one changes the other, which was trained without."""
    from peft.tuners.lora import LoraLayer

    entry = network.get_input_embeddings()
    shared = getattr(entry, "base_layer", entry).weight
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            leaf = name.rpartition(".")[2]
            require(
                getattr(layer.get_base_layer(), "weight", None) is not shared,
                f"{source}: an adapter of {leaf} cannot be merged into a model whose embedding it "
                f"is; leave it out of lora.target_modules (lora.modules_to_save: [{leaf}] trains "
                "it whole)",
            )


def _load_with_trl(training: Training, _: int) -> Loaded:
    recipe = training.recipe
    if not recipe.quantised:
        return load_model(training.start, recipe.dtype)
    import torch
    from transformers import BitsAndBytesConfig

    # QLoRA's settings (arXiv 2305.14314), as Unsloth has them too.
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, recipe.dtype),
    )
    where = {"": processes.local()} if torch.cuda.is_available() else "cpu"
    network, tokenizer = from_pretrained(
        training.start, recipe.dtype, quantization_config=quantised, device_map=where
    )
    network.requires_grad_(False)
    for module in network.modules():
        # On a CPU bitsandbytes 0.50 repacks weights of 4 bits when first used in eval mode, and the
        # backward pass through what it packed is wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    return network, tokenizer


def _load_with_unsloth(training: Training, length: int) -> Loaded:
    import torch
    from transformers import AutoTokenizer
    from unsloth import FastLanguageModel

    recipe, model = training.recipe, training.start
    check_model_folder(model)
    share = recipe.grpo.get("vllm_gpu_memory_utilization")
    with loading(model):
        network, theirs = FastLanguageModel.from_pretrained(
            model_name=model,
            max_seq_length=length,
            dtype=getattr(torch, recipe.dtype),
            load_in_4bit=recipe.quantised,
            load_in_16bit=not recipe.quantised and recipe.dtype != "float32",
            full_finetuning=recipe.lora is None,
            trust_remote_code=False,
            use_gradient_checkpointing=_checkpointing_of_unsloth(training),
            fast_inference=bool(training.arguments.get("use_vllm")),
            max_lora_rank=(recipe.lora or {}).get("r", 64),
            **({} if share is None else {"gpu_memory_utilization": share}),
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


def _checkpointing_of_unsloth(training: Training) -> str | bool:
    return "unsloth" if training.arguments.get("gradient_checkpointing") else False


def _attach_with_trl(
    network: PreTrainedModel, adapter: LoraConfig, training: Training
) -> PeftModel:
    import torch
    from peft import get_peft_model

    torch.manual_seed(training.recipe.seed)  # of the adapter's first weights
    return get_peft_model(network, adapter)


def _attach_with_unsloth(
    network: PreTrainedModel, adapter: LoraConfig, training: Training
) -> PeftModel:
    from unsloth import FastLanguageModel

    foreign = sorted(set(training.recipe.lora or ()) - set(UNSLOTH_LORA))
    require(
        not foreign,
        f"{training.source}: the Unsloth backend takes no lora.{''.join(foreign[:1])}; "
        "backend: trl does",
    )
    targets = adapter.target_modules
    return FastLanguageModel.get_peft_model(
        network,
        **{key: getattr(adapter, key) for key in UNSLOTH_LORA if key != "target_modules"},
        target_modules=sorted(targets) if isinstance(targets, set) else targets,
        use_gradient_checkpointing=_checkpointing_of_unsloth(training),
        random_state=training.recipe.seed,
    )
