"""Loading and saving models: the one place that reads and writes weights. Safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")


def quiet() -> None:
    """Keep the libraries' progress bars and hints off the terminal; ours say what is going on."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def is_local(model: str) -> bool:
    """Whether a model is named by a folder, which exists or looks like one, not by a hub id."""
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def check_dtype(dtype: str) -> None:
    """Raise UserError where a recipe's dtype is none of ours."""
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


def check_model_folder(folder: Path) -> None:
    """Raise UserError where a local model lacks what a Hugging Face model folder has."""
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model folder {folder} has no weights (*.safetensors)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(f"model folder {folder} has no tokenizer (tokenizer.json)")


def load(model: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder or the hub, on the GPU where there is one.

    Raises:
        UserError: when the folder is incomplete or corrupt, the hub cannot be reached or does not
            know the id, or model and tokenizer do not fit each other or this pipeline.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_dtype(dtype)
    if is_local(model):
        check_model_folder(Path(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network, report = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, in a sentence
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise UserError(f"the weights of {model} are corrupt ({error}); copy them again") from None
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        if is_local(model):
            raise UserError(f"model folder {model} cannot be loaded: {reason}") from None
        raise UserError(
            f"model {model!r} is neither a local folder nor to be had from the hub just now (is "
            f"the id right, is there a network, is `hf auth login` needed?): {reason}"
        ) from None
    # Transformers would go on with random weights in their place.
    lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacking:
        raise UserError(
            f"the weights of {model} do not fit its config.json: {min(lacking)} and "
            f"{len(lacking) - 1} others are missing or of another shape"
        )
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {model} has no chat template; use an instruct model")
    if len(tokenizer) > network.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer of {model} has {len(tokenizer)} tokens, its model only "
            f"{network.get_input_embeddings().num_embeddings}: they do not belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    return network, tokenizer


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its LoRA adapter, if any, added into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model folder that ``load`` and any Hugging Face tool can read, LoRA merged."""
    merged(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
