"""Stage ``make export``: a trained arm as a model folder for others, with its card.

Writes ``runs/<run>/export/<arm>`` (``--out``): the merged weights as they are evaluated, tokenizer,
chat template, ``generation_config.json`` with the decoding of the evaluation, and ``README.md``, a
model card made from the run's own files (``eval.show.card``). ``--adapter`` takes the LoRA adapter alone
instead (below ``export/<arm>-adapter``), ``--gguf`` adds a file for llama.cpp, ``--push`` sends the
folder to the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from data.common.errors import UserError, going_on, run_main
from data.common.files import (
    BEGUN,
    MANIFEST,
    Stage,
    finished,
    sha256,
    stage_facts,
    write_folder,
    write_json,
    write_text,
)
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import ADAPTER, maker
from data.sections import EvalSection
from eval.day.ask import chosen_arm
from eval.show.card import Evaluation, card, evaluation, lineage, on_hub
from pipeline.model.load import check_model_folder
from pipeline.train.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER, CARD = "export", "README.md"
#: GGUF types by what llama.cpp needs for them: its converter alone, or its quantiser too.
CONVERTED, QUANTISED = ("f16", "bf16", "q8_0"), ("q4_k_m", "q5_k_m", "q6_k")


def check_arm(recipe: Recipe, arm: str) -> None:
    """Raise UserError where the recipe does not train such an arm, or its weights are not whole."""
    if arm == "base":
        raise UserError(
            f"there is nothing to export: base is {recipe.model} as it was given; name a trained "
            "arm (ARM=grpo), or train one (`make arms`)"
        )
    found = recipe.all_arms[arm]
    if found.trainer == "none":
        raise UserError(
            f"there is nothing to export: {arm} is {found.start} asked in another way, without "
            "weights of its own"
        )
    check_model_folder(Path(recipe.run.model(arm)))


def adapter_folder(recipe: Recipe, arm: str) -> Path:
    """Where an arm's LoRA adapter is.

    Raises:
        UserError: when it was trained without one, or by a version that kept none.
    """
    folder = recipe.run.adapter(arm)
    lacking = [n for n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / n).is_file()]
    if not lacking:
        return folder
    if not stage_facts(folder.parent)["settings"].get("lora"):
        raise UserError(
            f"{arm} has no adapter, since it was trained in full, without LoRA; without ADAPTER "
            "the whole model is exported"
        )
    raise UserError(
        f"{folder} lacks {' and '.join(lacking)}; without ADAPTER the whole model is exported,"
        f" and FORCE=1 with {maker(arm)} trains the adapter again"
    )


def decoding_of(
    recipe: Recipe, arm: str, found: Evaluation | str, tokenizer: PreTrainedTokenizerBase
) -> EvalSection:
    """How the arm was asked; where it was not, how its recipe would ask it."""
    if isinstance(found, Evaluation):
        return found.asking
    from pipeline.model.decode import answer_limit

    asking = recipe.for_arm(arm).eval
    limit = asking.max_tokens or answer_limit(tokenizer, read_split(recipe.run, "test"))
    return replace(asking, max_tokens=limit)


def write_decoding(
    folder: Path, asking: EvalSection, model: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write ``generation_config.json``: what ``pipeline.model.decode`` does, in transformers' words.

    The model's own settings for sampling are not taken over: the evaluation used none of them.
    """
    from transformers import AutoConfig, GenerationConfig

    kept = GenerationConfig.from_model_config(
        AutoConfig.from_pretrained(model, trust_remote_code=False)
    )
    if (model / "generation_config.json").is_file():
        kept = GenerationConfig.from_pretrained(model)
    ends = kept.eos_token_id if isinstance(kept.eos_token_id, list) else [kept.eos_token_id]
    ends = sorted({tokenizer.eos_token_id, *ends} - {None})
    drawn = {
        "temperature": asking.temperature,
        "top_p": asking.top_p,
        "top_k": 0,  # transformers would keep the 50 likeliest tokens
    }
    GenerationConfig(
        do_sample=asking.temperature > 0,
        max_new_tokens=asking.max_tokens,
        bos_token_id=kept.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.eos_token_id
        if tokenizer.pad_token_id is None
        else tokenizer.pad_token_id,
        **(drawn if asking.temperature > 0 else {}),
    ).save_pretrained(folder)


# --- the folder ----------------------------------------------------------------------------------


def check_out(recipe: Recipe, out: Path) -> None:
    """Raise UserError unless ``out`` is new, empty, or an export. A folder of the run itself is
    none: what is trained from its weights would no longer be what its manifest says."""
    inside, run = out.resolve(), recipe.run.folder.resolve()
    if inside.is_relative_to(run) and not inside.is_relative_to(run / FOLDER):
        raise UserError(f"{out} belongs to the run itself; give OUT a folder elsewhere")
    if out.is_symlink():
        raise UserError(f"{out} is a link; give OUT the folder itself")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give OUT a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise UserError(f"{out} holds something else already; give OUT another folder")


def _is_export(out: Path) -> bool:
    marks = (out / name for name in (MANIFEST, BEGUN))
    said = f'"stage": "{FOLDER}"'
    return any(mark.is_file() and said in mark.read_text(errors="replace") for mark in marks)


def _check_untouched(out: Path, stage: Stage) -> None:
    """Raise UserError where ``stage`` would write over what somebody changed in an export."""
    if not finished(out):
        return
    facts = stage_facts(out)
    if {key: facts.get(key) for key in stage.key} == stage.key:
        return
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    added = files - {*facts["outputs"], MANIFEST}
    edited = [CARD] if CARD in files and sha256(out / CARD) != facts["card"] else []
    if changed := [*edited, *sorted(added)]:
        raise UserError(
            f"{out} is out of date, and {changed[0]} in it is yours; FORCE=1 replaces the folder, "
            "OUT names another"
        )


def run(
    recipe: Recipe,
    arm: str,
    out: Path | None = None,
    adapter: bool = False,
    gguf: str | None = None,
    force: bool = False,
) -> Path:
    """Export a trained arm, unless that is up to date; returns its folder.

    It is written beside ``out`` and renamed, so an older export stays until the new one is whole;
    no other process may begin before it lies in its place with its manifest.

    Raises:
        UserError: where there is nothing to export, or ``out`` holds something else.
    """
    check_arm(recipe, arm)
    source = adapter_folder(recipe, arm) if adapter else Path(recipe.run.model(arm))
    out = out or recipe.run.folder / FOLDER / (f"{arm}-{ADAPTER}" if adapter else arm)
    check_out(recipe, out)
    if gguf:
        check_gguf(gguf, out)
    from transformers import AutoTokenizer

    links = lineage(recipe, arm)
    found = evaluation(recipe, links)
    tokenizer = AutoTokenizer.from_pretrained(recipe.run.model(arm), trust_remote_code=False)
    asking = decoding_of(recipe, arm, found, tokenizer)
    extra = f"{recipe.run_name}-{arm}.{gguf}.gguf" if gguf else None
    text = card(recipe, links, found, asking, adapter, extra)
    digest = hashlib.sha256(text.encode()).hexdigest()
    # The card names the weights by their hash, the recipe's decoding is not in it.
    settings = {"card": digest, "asking": asdict(asking), "adapter": adapter, "gguf": gguf}
    stage = Stage(out, FOLDER, settings, [source] if adapter else [])
    if not force:
        _check_untouched(out, stage)
    if not stage.begin_unless_done(force):
        return out

    def fill(fresh: Path) -> None:
        shutil.copytree(source, fresh)
        if adapter and not on_hub(links[-2].model):
            _forget_base(fresh / ADAPTER_CONFIG)
        write_decoding(fresh, asking, Path(recipe.run.model(arm)), tokenizer)
        write_text(fresh / CARD, text)
        if gguf:
            write_gguf(source, gguf, fresh / extra, out)
        shutil.copy(out / BEGUN, fresh)  # killed before its manifest is there, it is an export yet

    write_folder(out, fill)
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    stage.finish([n for n in names if n != BEGUN], card=sha256(out / CARD))
    print(f"export: {out}; its card, {CARD}, names no licence: that is yours to add", flush=True)
    return out


def _forget_base(path: Path) -> None:
    """Take a local folder out of an adapter's config, where it is of use to nobody."""
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "base_model_name_or_path": None})


# --- GGUF ----------------------------------------------------------------------------------------


def _by_hand(kind: str, out: Path) -> str:
    """How llama.cpp alone makes the file."""
    said = f"`python convert_hf_to_gguf.py {shlex.quote(str(out))} --outtype "
    if kind in CONVERTED:
        return f"{said}{kind}`"
    return f"{said}bf16` and then `llama-quantize` to {kind}"


def check_gguf(kind: str, out: Path) -> None:
    """Raise UserError unless Unsloth can write GGUF here; imports it, before what it patches."""
    import torch

    lacking = [
        *(["Unsloth is not installed"] if find_spec("unsloth") is None else []),
        *([] if torch.cuda.is_available() else ["there is no CUDA GPU"]),
    ]
    if lacking:
        raise UserError(
            f"GGUF={kind} needs Unsloth on a CUDA GPU, and {' and '.join(lacking)}; export without "
            f"it and let llama.cpp convert the folder: {_by_hand(kind, out)}"
        )
    import unsloth  # noqa: F401


def write_gguf(model: Path, kind: str, path: Path, out: Path) -> None:
    """Have Unsloth convert a model folder to one GGUF file. It takes llama.cpp from
    ``UNSLOTH_LLAMA_CPP_PATH`` or ``~/.unsloth/llama.cpp``, or fetches it. ``out`` is what the
    export is called in the end.

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
        except RuntimeError as error:  # what it raises whatever llama.cpp lacks
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise UserError(
                f"Unsloth cannot write GGUF={kind} ({reason}); export without it and let llama.cpp "
                f"convert the folder: {_by_hand(kind, out)}"
            ) from None
        files = [Path(file) for file in made["gguf_files"]]
        shutil.move(next(f for f in files if f.name.lower().endswith(f"{kind}.gguf")), path)


# --- the hub -------------------------------------------------------------------------------------


def check_repository(repository: str) -> None:
    """Raise UserError unless this is the id of a repository with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(f"PUSH must be owner/name on the hub, not {repository!r}") from None
    if "/" not in repository:
        raise UserError(f"PUSH must be owner/name on the hub, not {repository!r}")


def push(folder: Path, repository: str, public: bool) -> None:
    """Send an export to the Hugging Face hub; its manifest, which names local paths, stays here.

    Raises:
        UserError: when the hub cannot be reached or refuses, or the repository is there already and
            public, though that was not asked for.
    """
    import httpx
    from huggingface_hub import HfApi

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
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"{repository} was not pushed ({reason}); {folder} is kept, and {going_on()} (is there "
            "a network, is `hf auth login` needed?)"
        ) from None
    print(f"export: pushed to https://huggingface.co/{repository}", flush=True)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="the arm to export (default: the last one that is trained)")
    parser.add_argument("--out", type=Path, help="its folder (default: runs/<run>/export/<arm>)")
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapter alone")
    kinds = (*CONVERTED, *QUANTISED)
    parser.add_argument("--gguf", choices=kinds, help="add a file for llama.cpp")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send the folder to the hub")
    parser.add_argument("--public", action="store_true", help="make the repository a public one")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    if arguments.adapter and arguments.gguf:
        raise UserError("GGUF converts a whole model; leave ADAPTER out")
    if arguments.push is not None:
        check_repository(arguments.push)
    elif arguments.public:
        raise UserError("PUBLIC=1 is of what PUSH=owner/name sends to the hub, and there is none")
    arm = chosen_arm(recipe, arguments.arm, model_given=False)
    out, adapter, gguf = arguments.out, arguments.adapter, arguments.gguf
    folder = run(recipe, arm, out, adapter, gguf, arguments.force)
    if arguments.push is not None:
        push(folder, arguments.push, arguments.public)


if __name__ == "__main__":
    run_main(main)
