"""What does a step cost on this GPU, and is ``make plan`` right? (``make gpu-check``)

Needs an NVIDIA GPU and no network: models of the real architectures (``pipeline.memory.shapes``) are made
here with random weights and trained for a few steps as the recipes of these models say, by both
backends, with weights of 4 and 16 bits, by SFT and GRPO. Each cell is a process of its own, since
Unsloth patches its process and memory must start empty. Random weights hardly ever end an answer,
so GRPO's answers are all as long as the recipe allows: the worst case for memory and time.

Writes ``runs/gpu-check/gpu_check.json`` and ``.md``; finished cells are kept and not redone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, going_on, run_main
from data.common.files import write_json, write_text
from data.recipe import BITS, RUNS, Recipe, load_recipe
from data.sections import ARMS
from pipeline.backends import BOTH, STAGES
from pipeline.memory.arithmetic import GIB, Estimate, ModelShape, estimate
from pipeline.memory.shapes import SHAPES, config_of
from pipeline.model.lengths import sizes
from pipeline.model.load import load_model, quiet
from pipeline.plan import (
    Lengths,
    adapters_of,
    drawn_rows,
    positive,
    settings_of,
    shape_of,
    skeleton,
)
from pipeline.train import backend
from pipeline.train.settings import check_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

RUN = "gpu-check"
RECIPES = Path(__file__).parent / "recipes"
DEFAULT_SHAPES = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b")
#: Of nothing real, for tests without a GPU; it needs --recipe.
TINY = "tiny"
#: Steps before those that are measured: kernels are compiled and caches filled in them.
WARM = {"sft": 2, "grpo": 1}
#: How far the plan may be off.
AIM = 0.15
#: Problems drawn from each tier; the longest are trained on, so that every batch is about as long
#: as the longest text, which is what the plan counts; and how often these are repeated.
_DRAWN, _LONGEST, _REPEATED = 24, 16, 8
#: Cached random values are repeated; a prime, so that no two rows of a weight are the same.
_POOL = 16_777_213
#: Share of a cell's time after which it takes no further step.
_ENOUGH = 0.85
_PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "triton"),
    *("unsloth", "unsloth_zoo"),
)
#: Qwen's form of a conversation.
_TEMPLATE = (
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_ERROR = re.compile(r"^(error: |[\w.]*(Error|Exception|Exit|Interrupt): )")


@dataclass(frozen=True)
class Cell:
    """One measurement: a model's shape, what trains it, bits of its weights, and the stage."""

    shape: str
    stage: str
    bits: int
    backend: str

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.stage}-{self.bits}bit-{self.backend}"

    @property
    def path(self) -> Path:
        return RUNS / RUN / "cells" / f"{self.name}.json"


@dataclass(frozen=True)
class Terms:
    """How cells are measured.

    Attributes:
        recipe: of every shape; None for each shape's own.
        steps: that are measured, after those of ``WARM``.
        tokens: of GRPO's answers, instead of the recipe's.
        merge: save the adapter of an SFT cell, merge it, and load the result.
        device: ``cuda``, or ``cpu`` for tests.
    """

    recipe: Path | None = None
    steps: int = 3
    tokens: int | None = None
    merge: bool = False
    device: str = "cuda"

    def recipe_of(self, cell: Cell) -> Recipe:
        """The recipe that users run, for a few steps of this cell.

        Raises:
            UserError: when the recipe is not sound.
        """
        path = self.recipe or RECIPES / f"{cell.shape}.yaml"
        model = str(model_folder(cell.shape))
        recipe = load_recipe(path, model, RUN, cell.backend, cell.bits)
        short = {
            "max_steps": WARM[cell.stage] + self.steps,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        longest = {"max_completion_length": self.tokens} if self.tokens else {}
        return replace(
            recipe,
            arms=dict(ARMS),
            sft={**recipe.sft, **short},
            grpo={**recipe.grpo, **short, **longest},
        )


def model_folder(shape: str) -> Path:
    return RUNS / RUN / "models" / shape


# --- models with random weights --------------------------------------------------------------


def config_for(shape: str) -> PreTrainedConfig:
    """The config of a shape; that of ``TINY`` is Qwen's on a small scale."""
    if shape != TINY:
        return config_of(shape)
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=4096,
    )  # fmt: skip


def tokenizer_for(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer that splits our texts about as Qwen's does: by Qwen's own rule, every digit by
    itself, and each word one token; its ids are a prefix of every shape's vocabulary.

    The embedded base's own would not do: AutoTokenizer gives a ``qwen2`` model Qwen's rule of
    splitting whatever its tokenizer.json says, and lengths would not be those of a real model.
    """
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, 4096, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def make_model(shape: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model of random bfloat16 weights as a user's would be, in safetensors, unless it is
    there; the tokenizer anew in any case. It is made on the CPU, in as much memory as its file."""
    import torch

    folder = model_folder(shape)
    if not folder.exists():
        config = config_for(shape)
        config.dtype = torch.bfloat16
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        network = skeleton(config).to(torch.bfloat16).to_empty(device="cpu")
        network.tie_weights()
        torch.manual_seed(0)
        pool = (0.02 * torch.randn(_POOL)).to(torch.bfloat16)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.dim() == 1:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                for part in weight.view(-1).split(_POOL):
                    part.copy_(pool[: len(part)])
        fresh = folder.with_name(f"{shape}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        network.save_pretrained(fresh, max_shard_size="4GB")
        fresh.rename(folder)
    tokenizer.save_pretrained(folder)


# --- what is trained on, and what it should need ---------------------------------------------


def rows_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Training rows of the recipe's tiers, the same on every machine, the longest first."""
    tiers = {name: use.tier for name, use in recipe.tier_uses.items() if not use.source}
    rows = drawn_rows(recipe, RUN, tiers, _DRAWN)
    if not rows:
        raise UserError(f"{recipe.path}: all its tiers are imported; gpu-check draws its problems")
    return sorted(rows, key=lambda row: (-len(row["prompt"]) - len(row["gold"]), row["id"]))


class Texts:
    """The rows of a recipe, with the tokenizer made for them."""

    def __init__(self, recipe: Recipe) -> None:
        self.drawn = rows_of(recipe)
        self.rows = self.drawn[:_LONGEST]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return tokenizer_for([text for row in self.drawn for text in (row["prompt"], row["gold"])])

    @cached_property
    def lengths(self) -> Lengths:
        pairs = [(row["prompt"], row["gold"]) for row in self.rows]
        longest = (max(column) for column in zip(*sizes(self.tokenizer, pairs), strict=True))
        return Lengths(*longest, source=f"longest of {len(pairs)} problems drawn from the tiers")


class Planner:
    """What ``make plan`` says of cells; every skeleton is made once."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._shapes: dict[str, tuple[ModelShape, Any]] = {}
        self.texts: dict[str, Texts] = {}

    def size(self, shape: str) -> int:
        """Bytes of the model on disk."""
        return 2 * self._shapes[shape][0].parameters

    def estimate(self, cell: Cell) -> Estimate:
        """Memory of a cell, as planned.

        Raises:
            UserError: when recipe or shape are not sound.
        """
        recipe = self._terms.recipe_of(cell)
        check_settings(recipe)
        if cell.shape not in self._shapes:
            config = config_for(cell.shape)
            network = skeleton(config)
            shape = shape_of(config, network, cell.shape)
            self._shapes[cell.shape] = shape, adapters_of(recipe, network)
            self.texts[cell.shape] = Texts(recipe)
        shape, lora = self._shapes[cell.shape]
        found = settings_of(recipe, cell.backend, self.texts[cell.shape].lengths, lora)
        return estimate(shape, next(one for one in found if one.stage == cell.stage))


# --- one cell, in a process of its own -------------------------------------------------------


def measure(cell: Cell, terms: Terms, seconds: float) -> dict[str, Any]:
    """Train one cell for a few steps, within ``seconds``.

    Returns:
        The times of its steps, tokens of prompts and answers a second, bytes of GPU memory at the
        peak of the training as PyTorch counts them (allocated, reserved, and while the model was
        loaded), the first loss, and what it ran on.

    Raises:
        UserError: when the backend cannot be had, or the loss is not a number.
    """
    started = time.monotonic()
    recipe = terms.recipe_of(cell)
    choice = backend.start(recipe)  # before anything else imports what Unsloth patches
    import torch
    from transformers import PrinterCallback, TrainerCallback

    from pipeline.arms import TRAINERS

    quiet()
    rows = Texts(recipe).rows * _REPEATED
    length = recipe.max_seq_length or config_for(cell.shape).max_position_embeddings
    model, tokenizer = backend.load_for_training(recipe, cell.stage, recipe.model, length)
    gpu = torch.cuda.is_available()
    loading = torch.cuda.max_memory_allocated() if gpu else None
    ends: list[float] = []

    class Clock(TrainerCallback):
        """When each step ended, the first one being the beginning of the training."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.on_step_end(args, state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            ends.append(time.monotonic())
            last = ends[-1] - ends[max(len(ends) - 2, 0)]
            late = ends[-1] + last - started > _ENOUGH * seconds
            if late and len(ends) > WARM[cell.stage] + 1:
                control.should_training_stop = True

    with tempfile.TemporaryDirectory() as folder:
        trainer = TRAINERS[cell.stage].trainer_for(recipe, rows, model, tokenizer, Path(folder))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        found = {
            "steps": [after - before for before, after in pairwise(ends)][WARM[cell.stage] :],
            "peak": torch.cuda.max_memory_allocated() if gpu else None,
            "reserved": torch.cuda.max_memory_reserved() if gpu else None,
            "loading": loading,
            "rss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            **_signals(trainer.state.log_history, cell.stage),
            "backend": asdict(choice),
            "gpu": torch.cuda.get_device_name() if gpu else None,
            "gpu_bytes": torch.cuda.get_device_properties(0).total_memory if gpu else None,
            "cuda": torch.version.cuda,
        }
        spent = statistics.median(found["steps"])
        found |= {"seconds": spent, "tokens_a_second": found["tokens_a_step"] / spent}
        if terms.merge and cell.stage == "sft":
            del model
            found["merge"] = _merged(recipe, trainer, Path(folder))
    return found


def _signals(log: list[dict[str, Any]], stage: str) -> dict[str, Any]:
    """Of a trainer's log: the first loss, and tokens of prompts and answers that a step trains on.

    Raises:
        UserError: when loss or gradient are no numbers. The trainer logs such a loss as 0.
    """
    steps = [row for row in log if "grad_norm" in row]
    for row in steps:
        sound = math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        if not sound or (stage == "sft" and row["loss"] <= 0):
            raise UserError(
                f"the training is broken: step {row['step']} has a loss of {row['loss']} and a "
                f"gradient of norm {row['grad_norm']}"
            )
    seen = [row["num_tokens"] for row in steps]
    counts = [after - before for before, after in pairwise([0, *seen])]
    return {"loss": steps[0]["loss"], "tokens_a_step": statistics.mean(counts[WARM[stage] :])}


def _merged(recipe: Recipe, trainer: Any, folder: Path) -> dict[str, Any]:
    """Save the adapter, merge it into the base, load the result: what follows every training."""
    begun = time.monotonic()
    backend.save_adapter(trainer.model, folder / "adapter")
    made = backend.merge(recipe.model, folder / "adapter", recipe.dtype, folder / "model")
    load_model(str(folder / "model"), recipe.dtype)
    return {**made, "seconds": time.monotonic() - begun}


# --- all cells -------------------------------------------------------------------------------


def facts_here() -> dict[str, Any]:
    """What a measurement depends on beside its settings: versions, and the GPU with its driver.
    torch is not asked, since a process that did would take memory on the GPU."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
        found["gpu"] = done.stdout.splitlines()[0].strip() if done.stdout.strip() else None
    return found


def key_of(cell: Cell, terms: Terms, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a kept result has to agree with to be taken."""
    recipe = terms.recipe_of(cell)
    used = {key: getattr(recipe, key) for key in (cell.stage, "lora", "dtype", "max_seq_length")}
    key = {
        "cell": asdict(cell),
        "recipe": {**used, "seed": recipe.seed, "tiers": recipe.data.tiers},
        "terms": {"merge": terms.merge, "device": terms.device},
        "facts": dict(facts),
    }
    return json.loads(json.dumps(key, default=str))


def kept(cell: Cell, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of an earlier call, where it is of the same settings and machine."""
    try:
        found = json.loads(cell.path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


class TooLongError(Exception):
    """A cell did not end within its time."""


def run_cell(cell: Cell, terms: Terms, seconds: float) -> dict[str, Any]:
    """Measure a cell in a process of its own; what it says goes to its log.

    Returns:
        What ``measure`` returned, or ``{failed}``, the reason in a line.

    Raises:
        TooLongError: when it took longer than ``seconds``.
    """
    part, log = cell.path.with_suffix(".part"), cell.path.with_suffix(".log")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pipeline.gpu_check", "--only", cell.name),
        *("--shapes", cell.shape, "--steps", str(terms.steps), "--seconds", str(seconds)),
        *("--device", terms.device, *(["--merge"] if terms.merge else [])),
        *(["--recipe", str(terms.recipe)] if terms.recipe else []),
        *(["--tokens", str(terms.tokens)] if terms.tokens else []),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if terms.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TooLongError from None
        finally:  # Unsloth compiles in children of its own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        found: dict[str, Any] = json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
        return found
    return {"failed": reason_in(log.read_text(encoding="utf-8", errors="replace"), code)}


def reason_in(log: str, code: int) -> str:
    """Why a process failed, in a line, from the last error that it wrote."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; too little memory of the host, perhaps"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    found = (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")
    if "out of memory" in found.lower():
        return "out of memory"
    return textwrap.shorten(found, 200, placeholder=" …")


def run(
    cells: Sequence[Cell],
    terms: Terms,
    planner: Planner,
    limit: float,
    budget: float = math.inf,
    keep: bool = False,
    redo: Sequence[str] = (),
) -> tuple[dict[Cell, dict[str, Any]], list[Cell]]:
    """Measure every cell that has no result yet, shape by shape; each shape's model is made before
    its first cell and deleted after its last, unless ``keep``.

    Args:
        limit: seconds of a cell.
        budget: seconds of all; no cell begins after them. A cell that they cut off is left for the
            next call, unless it was the first of this one.
        redo: which results are not taken though they are there, of ``measured`` and ``failed``.

    Returns:
        The results, and the cells without one.
    """
    started, facts = time.monotonic(), facts_here()
    keys = {cell: key_of(cell, terms, facts) for cell in cells}
    results: dict[Cell, dict[str, Any]] = {}
    for cell in cells:
        found = kept(cell, keys[cell])
        if found and ("failed" if "failed" in found else "measured") not in redo:
            results[cell] = found
    todo = [cell for cell in cells if cell not in results]
    check_disk(todo, planner)
    left = list(todo)
    for cell in todo:
        if time.monotonic() - started >= budget:
            break
        make_model(cell.shape, planner.texts[cell.shape].tokenizer)
        over = budget - (time.monotonic() - started)
        print(f"{cell.name}: ", end="", flush=True)
        try:
            found = run_cell(cell, terms, max(min(limit, over), 1.0))
        except TooLongError:
            if over < limit and cell != todo[0]:
                print("no time left")
                break
            found = {"failed": f"no result within {min(limit, over) / 60:.1f} minutes"}
        estimated = planner.estimate(cell)
        found["planned"] = estimated.allocated
        found["planned_total"] = estimated.peak.total
        found["lengths"] = asdict(planner.texts[cell.shape].lengths)
        results[cell] = {"key": keys[cell], **found}
        write_json(cell.path, results[cell])
        left.remove(cell)
        print(said(found), flush=True)
        if not keep and all(other.shape != cell.shape for other in left):
            shutil.rmtree(model_folder(cell.shape), ignore_errors=True)
    return results, left


def check_disk(cells: Sequence[Cell], planner: Planner) -> None:
    """Say what room the models take, which are there one at a time; UserError where it is not."""
    shapes = dict.fromkeys(cell.shape for cell in cells)
    needed = {s: planner.size(s) for s in shapes if not model_folder(s).exists()}
    if not needed:
        return
    RUNS.mkdir(parents=True, exist_ok=True)
    most = max(needed, key=needed.__getitem__)
    free = shutil.disk_usage(RUNS).free
    print(
        f"models with random weights: up to {needed[most] / 1e9:.1f} GB in {RUNS / RUN / 'models'}"
        f" ({most}), of {free / 1e9:.0f} GB free"
    )
    if needed[most] > 0.95 * free:
        raise UserError(
            f"{RUNS} has room for {free / 1e9:.1f} GB, {most} takes {needed[most] / 1e9:.1f}; make "
            "room, or name smaller shapes with --shapes"
        )


# --- what is said ----------------------------------------------------------------------------

COLUMNS = ("model", "training", "bits", "backend", "s/step", "tokens/s", "peak", "reserved",
           "planned", "off")  # fmt: skip


def off(found: Mapping[str, Any]) -> float | None:
    """How far the plan is above (or below, negative) what PyTorch counted, as a share of that."""
    return found["planned"] / found["peak"] - 1 if found.get("peak") else None


def said(found: Mapping[str, Any]) -> str:
    """A result in a line."""
    if "failed" in found:
        return str(found["failed"])
    words = f"{found['seconds']:.2f} s a step, {found['tokens_a_second']:,.0f} tokens a second"
    if (share := off(found)) is not None:
        words += f", {found['peak'] / GIB:.2f} GiB ({share:+.0%} planned)"
    return words


def line_of(cell: Cell, found: Mapping[str, Any], planned: int) -> list[str]:
    """A row of the table; sizes in GiB. The reason of a failure stands at its end."""
    start = [cell.shape, cell.stage.upper(), str(cell.bits), cell.backend]
    size = f"{planned / GIB:.2f}"
    if "seconds" not in found:
        return [*start, "–", "–", "–", "–", size, found.get("failed", "not yet measured")]
    share = off(found)
    memory = [f"{found[k] / GIB:.2f}" if found[k] else "–" for k in ("peak", "reserved")]
    return [
        *start,
        f"{found['seconds']:.2f}",
        f"{found['tokens_a_second']:,.0f}",
        *memory,
        size,
        "–" if share is None else f"{share:+.0%}",
    ]


def machine_of(results: Mapping[Cell, Mapping[str, Any]]) -> str:
    """What the results were measured on: a GPU and its memory, and versions."""
    measured = [found for found in results.values() if "seconds" in found]
    gpus = {
        f"{found['gpu']} ({found['gpu_bytes'] / GIB:.0f} GiB)"
        if found["gpu"]
        else "a CPU, for a test: memory is not measured"
        for found in measured
    }
    facts = next((found["key"]["facts"] for found in results.values()), {})
    cuda = {found["cuda"] for found in measured if found["cuda"]}
    versions = [f"{name} {facts[name]}" for name in ("python", *_PACKAGES) if name in facts]
    versions += [f"CUDA {number}" for number in sorted(cuda)]
    return f"Measured on {', '.join(sorted(gpus)) or 'nothing yet'}; {', '.join(versions)}."


def notes(results: Mapping[Cell, Mapping[str, Any]], terms: Terms) -> Iterator[str]:
    """Sentences below the table."""
    lengths = next((found["lengths"] for found in results.values()), None)
    if lengths:
        yield (
            f"Seconds are the median of up to {terms.steps} steps after "
            f"{WARM['sft']} (SFT) or {WARM['grpo']} (GRPO) of warm-up, as the models' recipes set "
            "them; tokens are those of prompts and answers that a step trains on. Memory is in "
            "GiB: what torch.cuda.max_memory_allocated and max_memory_reserved count during the "
            "training, and what make plan expects of the former. Weights are random, and answers "
            "in GRPO as long as is allowed: the worst case. Prompts have up to "
            f"{lengths['prompt']} tokens, gold answers {lengths['gold']}."
        )
    shares = [share for found in results.values() if (share := off(found)) is not None]
    if shares:
        good = sum(abs(share) <= AIM for share in shares)
        worst = max(shares, key=abs)
        yield (
            f"The plan is within {AIM:.0%} of the memory measured in {good} of {len(shares)} "
            f"cells; the farthest is off by {worst:+.0%}."
        )


def report(
    cells: Sequence[Cell],
    results: Mapping[Cell, Mapping[str, Any]],
    planned: Mapping[Cell, int],
    terms: Terms,
) -> None:
    """Print the table, and write it as JSON and Markdown."""
    lines = [line_of(cell, results.get(cell, {}), planned[cell]) for cell in cells]
    console = plain_console(120)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(COLUMNS):
        numeric = i >= COLUMNS.index("s/step")
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=i < len(COLUMNS) - 1
        )
    for line in lines:
        table.add_row(*line)
    console.print()
    console.print(table, markup=False)
    if not results:
        return
    sentences = [machine_of(results), *notes(results, terms)]
    for sentence in sentences:
        console.print(sentence, markup=False)
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * 4}{'---:|' * (len(COLUMNS) - 4)}"]
    body = [f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines]
    folder = RUNS / RUN
    write_text(folder / "gpu_check.md", "\n".join([*head, *body, "", *sentences, ""]))
    write_json(
        folder / "gpu_check.json",
        [
            {"cell": asdict(cell), "name": cell.name, "off": off(results[cell]), **results[cell]}
            for cell in cells
            if cell in results
        ],
    )
    console.print(f"{folder / 'gpu_check.md'} and .json", markup=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0].partition(" (")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several = dict(nargs="+", metavar="NAME")
    parser.add_argument(
        "--shapes", choices=(*SHAPES, TINY), default=DEFAULT_SHAPES, help="of models", **several
    )
    parser.add_argument("--backends", choices=BOTH, default=BOTH, help="what trains", **several)
    parser.add_argument("--stages", choices=STAGES, default=STAGES, help="trainings", **several)
    parser.add_argument(
        "--bits", type=int, choices=BITS, default=(4, 16), help="of the weights", nargs="+"
    )
    parser.add_argument("--recipe", type=Path, help="YAML file, instead of each shape's own")
    parser.add_argument("--steps", type=positive(int), default=3, help="measured, after warm-up")
    parser.add_argument(
        "--tokens", type=positive(int), help="of GRPO's answers, instead of the recipe's"
    )
    parser.add_argument(
        "--merge", action="store_true", help="merge, save and load again after SFT, too"
    )
    parser.add_argument("--limit", type=positive(float), default=20, help="minutes of a cell")
    parser.add_argument(
        "--minutes", type=positive(float), help="of all; what is left is for the next call"
    )
    parser.add_argument("--keep", action="store_true", help="keep the models")
    parser.add_argument("--retry", action="store_true", help="redo the cells that failed")
    parser.add_argument("--force", action="store_true", help="redo every cell")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu for tests")
    parser.add_argument("--only", help="the cell that this process measures; set by the check")
    parser.add_argument("--seconds", type=float, default=math.inf, help="that this cell has")
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    terms = Terms(given.recipe, given.steps, given.tokens, given.merge, given.device)
    cells = [Cell(*one) for one in product(given.shapes, given.stages, given.bits, given.backends)]
    if given.only:
        every = product(given.shapes, STAGES, BITS, BOTH)
        cell = next(one for one in (Cell(*each) for each in every) if one.name == given.only)
        write_json(cell.path.with_suffix(".part"), measure(cell, terms, given.seconds))
        return
    quiet()
    planner = Planner(terms)
    planned = {cell: planner.estimate(cell).allocated for cell in cells}
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        report(cells, {}, planned, terms)
        raise UserError(
            f"torch {torch.__version__} sees no CUDA GPU here, so nothing was measured; recipes, "
            "shapes and the plan of every cell above are sound"
        )
    redo = ("measured", "failed") if given.force else ("failed",) if given.retry else ()
    minutes = given.minutes or math.inf
    results, left = run(cells, terms, planner, 60 * given.limit, 60 * minutes, given.keep, redo)
    report(cells, results, planned, terms)
    if left:
        print(f"{len(left)} of {len(cells)} cells are left; {going_on()}")
    expected = ("out of memory", "no result within")
    broken = [
        cell.path.with_suffix(".log").name
        for cell, found in results.items()
        if "failed" in found and not found["failed"].startswith(expected)
    ]
    if broken:
        raise UserError(
            f"{len(broken)} of {len(cells)} cells failed; {RUNS / RUN / 'cells'} says why in "
            f"{', '.join(broken)}; --retry redoes them"
        )


if __name__ == "__main__":
    run_main(main)
