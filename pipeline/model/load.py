"""A model and its tokenizer from a folder or the hub: loaded with plain transformers, or refused in
a sentence. Safetensors only, and no code that comes with a model.
"""

from __future__ import annotations

import errno
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, reason_of
from data.common.files import finished
from data.prompts import messages
from data.recipe import DTYPES
from data.sections import ARMS
from pipeline.model import processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def _way_out(folder: str | Path) -> str:
    """How to have a spoilt model again, as a sentence ends: nothing of one that is not ours."""
    arm = Path(folder).parent
    if not finished(arm):
        return ""
    return f"; FORCE=1 make {arm.name if arm.name in ARMS else 'arms'} trains it again"


def check_model_folder(folder: Path) -> None:
    """Raise UserError where a local model lacks what a Hugging Face model folder has."""
    way_out = _way_out(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist{way_out}")
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json{way_out}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model folder {folder} has no weights (*.safetensors){way_out}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(f"model folder {folder} has no tokenizer (tokenizer.json){way_out}")


def load_model(model: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder or the hub, on the GPU where there is one, with
    plain transformers: for sampling, and where nothing is quantised for training with TRL.

    Raises:
        UserError: when the folder is incomplete or corrupt, the hub cannot be reached or does not
            know the id, or model and tokenizer do not fit each other or this pipeline.
    """
    import torch

    network, tokenizer = from_pretrained(model, dtype)
    if not processes.cuts_weights():  # what cuts a model up moves its parts itself
        network.to(f"cuda:{processes.local()}" if torch.cuda.is_available() else "cpu")
    return network, tokenizer


def from_pretrained(
    model: str, dtype: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """``load_model`` before its weights are moved; ``options`` go to transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_dtype(dtype)
    if is_local(model):
        check_model_folder(Path(model))
    with explained(model):
        if is_local(model):
            _check_size(Path(model))
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        network, report = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, in a sentence
            output_loading_info=True,
            **options,
        )
    # Transformers would go on with random weights in their place.
    lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacking:
        raise UserError(
            f"the weights of {model} do not fit its config.json: {min(lacking)} and "
            f"{len(lacking) - 1} others are missing or of another shape{_way_out(model)}"
        )
    check_tokenizer(network, tokenizer, model)
    return network, tokenizer


def _check_size(folder: Path) -> None:
    """Raise UserError where a config asks for more weights than its files hold. Transformers would
    make up the others, and the system end this process where they take more memory than there is.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        return  # several weights in a number
    held, tensors = 0, 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no dict
                tensors += 1
                held += math.prod(file.get_slice(key).get_shape())
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None) or 0
    if layers <= tensors:
        # Without weights, and without a trace in the random state.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        ends = (network.get_input_embeddings(), network.get_output_embeddings())
        shared = max((end.weight.numel() for end in ends if end is not None), default=0)
        wanted = sum(weight.numel() for weight in network.parameters())
        if shared <= held and wanted <= held + shared:
            return
    asks = f"{layers:,} layers" if layers > tensors else f"{wanted:,} weights"
    raise UserError(
        f"the weights of {folder} do not fit its config.json: it asks for {asks}, and there are "
        f"{held:,} weights in {tensors:,} tensors{_way_out(folder) or '; copy both again'}"
    )


@contextmanager
def explained(model: str, file: str = "") -> Iterator[None]:
    """Turn what transformers raises for a model, or one ``file`` of it, that cannot be loaded into
    a UserError."""
    from huggingface_hub.utils import logging
    from safetensors import SafetensorError

    logging.set_verbosity_error()  # its retries
    try:
        if not is_local(model):
            _reach(model)
        yield
    except UserError:
        raise
    except SafetensorError as error:
        way_out = _way_out(model) or "; copy them again"
        raise UserError(f"the weights of {model} are corrupt ({error}){way_out}") from None
    except Exception as error:  # whatever transformers and tokenizers run into in a spoilt file
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = textwrap.shorten(str(error), 240, placeholder=" …") or type(error).__name__
        if is_local(model):
            what = f"{file} of {model}" if file else f"model folder {model}"
            raise UserError(f"{what} cannot be loaded: {reason}{_way_out(model)}") from None
        raise UserError(
            f"model {model!r} is neither a local folder nor to be had from the hub just now (is "
            f"the id right, is there a network, is `hf auth login` needed?): {reason}"
        ) from None


def _reach(model: str) -> None:
    """Raise at once where a model of the hub is neither on this machine nor to be had: each of its
    files would be tried for half a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(model, "config.json"), str):
        HfApi().model_info(model, timeout=30)


def check_template(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Raise UserError where a tokenizer cannot render or read a conversation, or leaves out what is
    said in it."""
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {model} has no chat template; use an instruct model")
    asked, answered = "Plan the day.", "Nothing fits."
    try:
        question = tokenizer.apply_chat_template(
            messages(asked), tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(messages(asked, answered), tokenize=False)
        tokenizer(whole, add_special_tokens=False)
    except Exception as error:  # a template is a programme, and may run into anything
        raise UserError(
            f"the chat template of {model} cannot render a conversation, or its tokenizer not read "
            f"it ({reason_of(error)}); copy them again, or use another model"
        ) from None
    if asked not in question or asked not in whole or answered not in whole:
        raise UserError(
            f"the chat template of {model} leaves out what the user or the assistant says; copy it "
            "again, or use another model"
        )


def check_tokenizer(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: str
) -> None:
    """Raise UserError where a tokenizer does not fit its model or this pipeline; give it a padding
    token where it has none."""
    check_template(tokenizer, model)
    # Ids may have gaps, so there may be a greater one than there are tokens.
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if size > network.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer of {model} has {size} tokens, its model only "
            f"{network.get_input_embeddings().num_embeddings}: they do not belong together"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {model} has no token that ends an answer; set eos_token in its "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write a model folder that ``load_model`` and any Hugging Face tool can read; with ``weights``
    in place of its own where it has only a part of them."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
