"""Stage ``make export``: a trained arm as a model folder for others, with its card.

Writes ``runs/<run>/export/<arm>`` (``--out``): the merged weights as they are evaluated, tokenizer,
chat template, ``generation_config.json`` with the decoding of the evaluation, and ``README.md``, a
model card made from the run's own files (``eval.show.card``). ``--adapter`` takes the LoRA adapter
alone instead (below ``export/<arm>-adapter``), ``--gguf`` adds a file for llama.cpp, ``--push``
sends the folder to the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import httpx
from huggingface_hub import HfApi

from data.common.errors import UserError, going_on, run_main
from data.common.files import (
    BEGUN,
    MANIFEST,
    Stage,
    finished,
    write_folder,
    write_json,
    write_text,
)
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import ADAPTER, BASE, Run, maker
from data.sections import EvalSection
from eval.show.card import card_text
from eval.show.lineage import evaluation, is_repository, lineage
from pipeline.model.decode import answer_limit
from pipeline.model.load import check_model_folder
from pipeline.train.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGE, CARD = "export", "README.md"
GGUF_TYPES = ("f16", "bf16", "q8_0", "q4_k_m", "q5_k_m", "q6_k")


def run(
    recipe: Recipe,
    arm: str,
    out: Path | None = None,
    adapter: bool = False,
    gguf: str | None = None,
    force: bool = False,
) -> Path:
    """Export a trained arm, unless that is done; returns its folder.

    It is written beside ``out`` and renamed, so an older export stays until the new one is whole.

    Raises:
        UserError: where there is nothing to export, or ``out`` holds something else.
    """
    run = recipe.run
    source = exported_folder(run, arm, adapter)
    out = out or run.export(f"{arm}-{ADAPTER}" if adapter else arm)
    check_out(run, out)
    if gguf:
        check_gguf()
    from transformers import AutoTokenizer  # after Unsloth, which patches it

    model = Path(run.model(arm))
    links = lineage(run, arm)
    result = evaluation(run, links)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    asking = result.asking if result else recipe.for_arm(arm).eval
    if asking.max_tokens is None:
        limit = answer_limit(tokenizer, read_split(run, "test"))
        asking = replace(asking, max_tokens=limit)
    file = f"{recipe.run_name}-{arm}.{gguf}.gguf" if gguf else ""
    text = card_text(run, recipe.data, links, result, asking, adapter, file)
    # The card names the weights by their hash, the recipe's decoding is not in it.
    digest = hashlib.sha256(text.encode()).hexdigest()
    settings = {"card": digest, "asking": asdict(asking), "adapter": adapter, "gguf": gguf}
    stage = Stage(out, STAGE, settings, [source] if adapter else [])
    if finished(out) and not (force or stage.is_done()):
        raise UserError(f"{out} holds an older export; FORCE=1 replaces it, OUT names another")
    if not stage.begin_unless_done(force):
        return out

    def fill(fresh: Path) -> None:
        shutil.copytree(source, fresh)
        if adapter and not links[-2].on_hub:
            _forget_base(fresh / ADAPTER_CONFIG)
        write_json(fresh / "generation_config.json", decoding(asking, model, tokenizer))
        write_text(fresh / CARD, text)
        if gguf:
            write_gguf(source, gguf, fresh / file)
        shutil.copy(out / BEGUN, fresh)  # killed before its manifest is there, it is an export yet

    write_folder(out, fill)
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    stage.finish(sorted(name for name in names if name != BEGUN))
    print(f"export: {out}; its card, {CARD}, names no licence: that is yours to add", flush=True)
    return out


def _forget_base(path: Path) -> None:
    """Take a local folder out of an adapter's config: it is of use to nobody, and private."""
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "base_model_name_or_path": None})


# --- what is exported, and where -----------------------------------------------------------------


def exported_folder(run: Run, arm: str, adapter: bool) -> Path:
    """The folder of an arm's merged weights, or of its LoRA adapter.

    Raises:
        UserError: when the arm has no weights of its own, they are not whole, or it has no adapter.
    """
    if arm == BASE or run.arms[arm].trainer == "none":
        raise UserError(
            f"there is nothing to export: {arm} has no weights of its own; name a trained arm "
            "(ARM=grpo), or train one (`make arms`)"
        )
    check_model_folder(Path(run.model(arm)))
    if not adapter:
        return Path(run.model(arm))
    folder = run.adapter(arm)
    lacking = [n for n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / n).is_file()]
    if lacking:
        raise UserError(
            f"{folder} lacks {' and '.join(lacking)}; without ADAPTER the whole model is exported, "
            f"and FORCE=1 with {maker(arm)} and a lora: section trains an adapter"
        )
    return folder


def check_out(run: Run, out: Path) -> None:
    """Raise UserError unless ``out`` is new, empty, or an export, and outside what the run's other
    stages made."""
    inside, whole = out.resolve(), run.folder.resolve()
    if inside.is_relative_to(whole) and not inside.is_relative_to(run.export("").resolve()):
        raise UserError(f"{out} belongs to the run itself; give OUT a folder elsewhere")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is a link or a file; give OUT a folder")
    marks = [
        mark.read_text(errors="replace") for mark in (out / MANIFEST, out / BEGUN) if mark.is_file()
    ]
    is_export = any(f'"stage": "{STAGE}"' in mark for mark in marks)
    if out.is_dir() and any(out.iterdir()) and not is_export:
        raise UserError(f"{out} holds something else already; give OUT another folder")


def decoding(
    asking: EvalSection, model: Path, tokenizer: PreTrainedTokenizerBase
) -> Mapping[str, object]:
    """The content of ``generation_config.json``: the decoding of the evaluation, in transformers'
    words. Of the model's own settings only the tokens are kept: the evaluation used no others."""
    files = [model / name for name in ("generation_config.json", "config.json")]
    own = json.loads(next(file for file in files if file.is_file()).read_text(encoding="utf-8"))
    ends = own.get("eos_token_id")
    padding = tokenizer.pad_token_id
    drawn = {"temperature": asking.temperature, "top_p": asking.top_p}
    return {
        "do_sample": asking.temperature > 0,
        # transformers would keep the 50 likeliest tokens
        **({**drawn, "top_k": 0} if asking.temperature > 0 else {}),
        "max_new_tokens": asking.max_tokens,
        "bos_token_id": own.get("bos_token_id"),
        "eos_token_id": sorted(
            {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        ),
        "pad_token_id": tokenizer.eos_token_id if padding is None else padding,
    }


# --- GGUF ----------------------------------------------------------------------------------------


_BY_HAND = "export without it and let llama.cpp convert the folder (convert_hf_to_gguf.py)"


def check_gguf() -> None:
    """Raise UserError unless Unsloth can write GGUF here; imports it, before what it patches."""
    import torch

    if find_spec("unsloth") is None or not torch.cuda.is_available():
        raise UserError(f"GGUF needs Unsloth on a CUDA GPU; {_BY_HAND}")
    import unsloth  # noqa: F401


def write_gguf(model: Path, kind: str, path: Path) -> None:
    """Have Unsloth convert a model folder to one GGUF file. It takes llama.cpp from
    ``UNSLOTH_LLAMA_CPP_PATH`` or ``~/.unsloth/llama.cpp``, or fetches it.

    Raises:
        UserError: with Unsloth's reason, when it cannot.
    """
    from unsloth import FastLanguageModel

    with TemporaryDirectory(dir=path.parent) as folder:
        try:
            network, tokenizer = FastLanguageModel.from_pretrained(str(model), load_in_4bit=False)
            made = network.save_pretrained_gguf(
                f"{folder}/gguf", tokenizer, quantization_method=kind
            )
        except RuntimeError as error:  # whatever llama.cpp lacks
            raise UserError(f"Unsloth wrote no GGUF ({_first_line(error)}); {_BY_HAND}") from None
        files = [Path(file) for file in made["gguf_files"]]
        shutil.move(next(f for f in files if f.name.lower().endswith(f"{kind}.gguf")), path)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


# --- the hub -------------------------------------------------------------------------------------


def push(folder: Path, repository: str, public: bool) -> None:
    """Send an export to the Hugging Face hub; its manifest, which names local paths, stays here.

    Raises:
        UserError: when the hub cannot be reached or refuses, or the repository is there already and
            public, though that was not asked for.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository).private:
            raise UserError(
                f"{repository} is a public repository already; PUBLIC=1 says that this is meant "
                f"({folder} is kept)"
            )
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"{folder.name}, exported by Slotwise",
            ignore_patterns=[MANIFEST, BEGUN],
        )
    except (OSError, httpx.HTTPError) as error:
        raise UserError(
            f"{repository} was not pushed ({_first_line(error)}); {folder} is kept, and "
            f"{going_on()} (is there a network, is `hf auth login` needed?)"
        ) from None
    print(f"export: pushed to https://huggingface.co/{repository}", flush=True)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="the arm to export (default: the last one that is trained)")
    parser.add_argument("--out", type=Path, help="its folder (default: runs/<run>/export/<arm>)")
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapter alone")
    parser.add_argument("--gguf", choices=GGUF_TYPES, help="add a file for llama.cpp")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send the folder to the hub")
    parser.add_argument("--public", action="store_true", help="make the repository a public one")
    arguments = parser.parse_args()
    recipe, repository = recipe_from(arguments), arguments.push
    if arguments.adapter and arguments.gguf:
        raise UserError("GGUF converts a whole model; leave ADAPTER out")
    if repository is not None and not ("/" in repository and is_repository(repository)):
        raise UserError(f"PUSH must be owner/name on the hub, not {repository!r}")
    if arguments.public and repository is None:
        raise UserError("PUBLIC=1 needs PUSH=owner/name, a repository to be public")
    arm = recipe.run.chosen(arguments.arm)
    out, adapter, gguf = arguments.out, arguments.adapter, arguments.gguf
    folder = run(recipe, arm, out, adapter, gguf, arguments.force)
    if repository is not None:
        push(folder, repository, arguments.public)


if __name__ == "__main__":
    run_main(main)
