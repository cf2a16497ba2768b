"""A model and its tokenizer from a folder or the hub: loaded with plain transformers, or refused in
a sentence. Safetensors only, and no code that comes with a model.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import textwrap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.utils import logging as retries
from safetensors import SafetensorError, safe_open

from data.common.errors import UserError, reason_of, require
from data.common.files import finished
from data.prompts import messages
from data.run import given, maker
from pipeline.model import processes
from pipeline.model.decode import render, stop_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

#: The chat template of a base model that has none: turns in plain text, as in R1-Zero (arXiv
#: 2501.12948), and the token that ends a text after an answer.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
#: Put before a template that writes today's date, which would ask another prompt tomorrow: the day
#: that Llama 3.2's writes where it cannot ask for one.
_ONE_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
#: Ends of the names that quantised copies of a model go by.
_QUANTISED = re.compile(
    r"(-unsloth)?-bnb-4bit$|-(awq|gptq|fp8|int[48]|w[48]a16|4bit|8bit)([-.].*)?$", re.IGNORECASE
)
# Whenever peft is imported on a CPU, it speaks of a kernel that it goes without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quiet() -> None:
    """Keep the libraries' progress bars and hints off the terminal; ours say what is going on."""
    import datasets
    from transformers.utils import logging as hints

    datasets.disable_progress_bars()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of rollout_func, which is pinned
    hints.set_verbosity_error()
    hints.disable_progress_bar()


# --- folders and hub ids ---------------------------------------------------------------------


def is_local(model: str) -> bool:
    """Whether a model is named by a folder, which exists or looks like one, not by a hub id."""
    path = Path(model)
    return path.exists() or path.suffix == ".gguf" or model[:1] in "./~" or model.count("/") > 1


#: Parts of a Hugging Face model folder; each is there if one of its files is.
_HAS = {
    "config.json": ("config.json",),
    "weights (*.safetensors)": ("*.safetensors",),
    "tokenizer (tokenizer.json)": ("tokenizer.json", "tokenizer_config.json"),
}


def check_model_folder(model: str | Path, parts: Collection[str] = _HAS) -> None:
    """Raise UserError where a local model is missing, is something else than a model folder, or
    lacks one of these ``parts``; a hub id is not looked at."""
    if not is_local(str(model)):
        return
    folder, way_out = Path(model), _way_out(model)
    require(folder.exists(), f"model folder {folder} does not exist{way_out}")
    gguf = folder if folder.suffix == ".gguf" else next(folder.glob("*.gguf"), None)
    require(
        gguf is None or (folder / "config.json").is_file(),
        f"{gguf} is a model in GGUF, which is converted first; give it as MODEL= or as the "
        "recipe's model",
    )
    require(folder.is_dir(), f"{folder} is a file; a model is a folder with config.json")
    require(
        (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file(),
        f"{folder} holds a LoRA adapter without its model; merge it first (merge_and_unload of "
        "peft) and save the tokenizer with it",
    )
    for part in parts:
        there = any(any(folder.glob(name)) for name in _HAS[part])
        require(there, f"model folder {folder} has no {part}{way_out}")


def model_inputs(model: str) -> list[Path]:
    """A local model's folder as an input of a stage; a hub id is known by its name."""
    check_model_folder(model)
    return [Path(model)] if is_local(model) else []


def _way_out(folder: str | Path) -> str:
    """The end of a sentence on a spoilt model that says how to train it again, if it is this
    run's own."""
    arm = Path(folder).parent
    if given().get("model") == str(folder) or not finished(arm):
        return ""
    return f"; {maker(arm.name, 'FORCE=1')} trains it again"


@contextmanager
def loading(model: str, file: str = "") -> Iterator[None]:
    """Turn what transformers raises for a model, or one ``file`` of it, that cannot be loaded into
    a UserError."""
    retries.set_verbosity_error()
    try:
        if not is_local(model) and not isinstance(
            try_to_load_from_cache(model, "config.json"), str
        ):
            HfApi().model_info(model, timeout=30)  # or each file would be tried for half a minute
        yield
    except UserError:
        raise
    except SafetensorError as error:
        way_out = _way_out(model) or "; copy them again"
        raise UserError(f"the weights of {model} are corrupt ({error}){way_out}") from None
    except Exception as error:  # transformers and tokenizers may run into anything in a spoilt file
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = textwrap.shorten(str(error), 240, placeholder=" …") or type(error).__name__
        if is_local(model):
            what = f"{file} of {model}" if file else f"model folder {model}"
            raise UserError(f"{what} cannot be loaded: {reason}{_way_out(model)}") from None
        raise UserError(
            f"model {model!r} is neither a local folder nor available from the hub just now (is "
            f"the id right, is there a network, is `hf auth login` needed?): {reason}"
        ) from None


# --- loading and writing ---------------------------------------------------------------------


def read_config(model: str) -> PretrainedConfig:
    """A model's config, from its folder or the hub.

    Raises:
        UserError: when there is none, transformers does not know the architecture, or the weights
            are quantised already.
    """
    from transformers import AutoConfig

    check_model_folder(model, ["config.json"])
    with loading(model, "config.json"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    quantised = getattr(config, "quantization_config", None)
    kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    whole = model if is_local(model) else _QUANTISED.sub("", model)
    require(
        not quantised,
        f"the weights of {model} are quantised already ({kind}), so what training changes cannot "
        f"be merged into them; give the model that they were made from"
        f"{f', {whole} by its name' * (whole != model)}, and bits: 4 where that is too large",
    )
    return config


def read_tokenizer(model: str, offline: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer, from its folder or the hub; ``offline`` from this machine alone.

    Raises:
        UserError: when it is not available.
    """
    from transformers import AutoTokenizer

    check_model_folder(model, ["tokenizer (tokenizer.json)"])
    with loading(model, "tokenizer.json"):
        return AutoTokenizer.from_pretrained(
            model, local_files_only=offline, trust_remote_code=False
        )


def read_stops(model: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer, as ``load_model`` has them, without the weights.

    Raises:
        UserError: when the model's config is not available.
    """
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(model)
    except OSError:  # there is none
        own = GenerationConfig.from_model_config(read_config(model))
    return _stops_with_turn(own, tokenizer)


def load_model(model: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder or the hub, on the GPU where there is one.

    Raises:
        UserError: when the folder is incomplete or corrupt, the hub cannot be reached or does not
            know the id, or model and tokenizer do not fit each other or this pipeline.
    """
    import torch

    network, tokenizer = from_pretrained(model, dtype)
    if not processes.cuts_weights():  # else accelerate moves the parts itself
        device = f"cuda:{processes.local()}" if torch.cuda.is_available() else "cpu"
        torch.nn.Module.to(network, device)
    return network, tokenizer


def from_pretrained(
    model: str, dtype: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """``load_model`` before its weights are moved; ``options`` go to transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(model)
    with loading(model):
        if is_local(model):
            _check_size(Path(model))
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, in a sentence
            output_loading_info=True,
            **options,
        )
    network, report = loaded
    # Transformers would go on with random weights in their place.
    lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacking:
        raise UserError(
            f"the weights of {model} do not fit its config.json: {min(lacking)} and "
            f"{len(lacking) - 1} others are missing or of another shape{_way_out(model)}"
        )
    check_tokenizer(network, tokenizer, model)
    _keep_routers_quiet(network)
    return network, tokenizer


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a model folder that ``load_model`` and any Hugging Face tool can read; with ``weights``
    in place of its own where it has only a part of them."""
    _keep_routers_quiet(model)
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def _keep_routers_quiet(model: PreTrainedModel) -> None:
    """Have a mixture of experts return no logits of its routers unless asked: the loss that is made
    of them fails on the single tokens of sampling. TRL's SFT asks by the model's config."""
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = False


# --- checks ----------------------------------------------------------------------------------


def _check_size(folder: Path) -> None:
    """Raise UserError where a config asks for more layers than there are tensors: transformers
    would make all of them up, one by one."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) or 0
    tensors = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors += len(file.keys())
    require(
        layers <= tensors,
        f"the weights of {folder} do not fit its config.json: it asks for {layers:,} layers, and "
        f"there are {tensors:,} tensors{_way_out(folder) or '; copy both again'}",
    )


def check_template(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Give a tokenizer without a chat template the plain one, begun as it begins every text, and
    one that writes the date a fixed day. Raise UserError where it cannot render or read a
    conversation, or leaves out what is said in it."""
    template = tokenizer.chat_template
    asked, answered = "Plan the day.", "Nothing fits."
    try:
        if template is None:
            begins = tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]
            tokenizer.chat_template = "{{ bos_token }}" * begins + PLAIN_TEMPLATE
        elif "strftime_now" in template and not template.startswith(_ONE_DAY):
            tokenizer.chat_template = _ONE_DAY + template
        question = render(tokenizer, asked)
        whole = _conversation(tokenizer, asked, answered)
        tokenizer(whole, add_special_tokens=False)
    except Exception as error:  # a template is a programme, and may run into anything
        raise UserError(
            f"the chat template of {model} cannot render a conversation, or its tokenizer not read "
            f"it ({reason_of(error)}); copy them again, or use another model"
        ) from None
    require(
        asked in question and asked in whole and answered in whole,
        f"the chat template of {model} leaves out what the user or the assistant says; copy it "
        "again, or use another model",
    )


def _conversation(tokenizer: PreTrainedTokenizerBase, asked: str, answered: str) -> str:
    return str(tokenizer.apply_chat_template(messages(asked, answered), tokenize=False))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the chat template ends an answer; None where it is no special one."""
    answered = "Nothing fits."
    whole = _conversation(tokenizer, "Plan.", answered)
    after = tokenizer(whole.rpartition(answered)[2].lstrip(), add_special_tokens=False)
    first = next(iter(after["input_ids"]), None)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return first if first in special else None


def _stops_with_turn(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``stop_ids`` and the end of turn that the chat template writes."""
    end = end_of_turn(tokenizer)
    return sorted({*stop_ids(config, tokenizer), *([] if end is None else [end])})


def _end_with_turn(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let answers end where the template ends a turn. Base models end texts by another token,
    which no answer would ever reach."""
    end = end_of_turn(tokenizer)
    if end is None or end == tokenizer.eos_token_id:
        return
    network.generation_config.eos_token_id = _stops_with_turn(network.generation_config, tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, known: int, model: str) -> None:
    """Raise UserError where a tokenizer with a template has tokens that its model, which has
    ``known``, would be shown and does not know; give it a padding token that it does.

    Special ones that no conversation has are let be: Gemma 3's tokenizer has a mark of images that
    its models without images lack.
    """
    # Ids may have gaps, so there may be a greater one than there are tokens.
    beyond = {i for i in tokenizer.get_vocab().values() if i >= known}
    added = tokenizer.added_tokens_decoder
    spoken = tokenizer(_conversation(tokenizer, "Plan.", "Nothing."), add_special_tokens=False)
    shown = {*spoken["input_ids"], tokenizer.eos_token_id}
    require(
        all(i in added and added[i].special and i not in shown for i in beyond),
        f"the tokenizer of {model} has {max(len(tokenizer), 1 + max(beyond, default=0))} tokens, "
        f"its model only {known}: they do not belong together",
    )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in beyond:
        tokenizer.pad_token = tokenizer.eos_token


def check_tokenizer(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: str
) -> None:
    """Raise UserError where a tokenizer does not fit its model or this pipeline; give it a padding
    token where it has none, and the end that its template writes. Of the model's own way of
    sampling the tokens alone are kept: the recipe says the rest, and what transformers takes to be
    at odds could not be written again."""
    from transformers import GenerationConfig

    check_template(tokenizer, model)
    kept = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {key: getattr(network.generation_config, key) for key in kept}
    network.generation_config = GenerationConfig(**tokens)
    _end_with_turn(network, tokenizer)
    known = next(network.get_input_embeddings().parameters()).shape[0]
    check_vocabulary(tokenizer, known, model)
    require(
        tokenizer.eos_token_id is not None,
        f"the tokenizer of {model} has no token that ends an answer; set eos_token in its "
        "tokenizer_config.json",
    )
