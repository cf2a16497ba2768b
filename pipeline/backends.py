"""``make backends``: do Unsloth and plain TRL train the same thing?

Each backend builds the recipe's SFT and GRPO trainers in a process of its own, since Unsloth
patches the libraries of its process. Compared are the settings that the trainers really hold, the
log-probabilities of gold answers before the first step, and what the first step at the full
learning rate changes, from one seed, the same data and the same first LoRA weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, require, run_main
from data.common.files import write_json
from data.recipe import recipe_arguments, recipe_from
from data.sections import ARMS
from pipeline.arms import MODULES
from pipeline.model.decode import render
from pipeline.model.lengths import count_lengths, longest, uses
from pipeline.model.load import quiet
from pipeline.model.processes import run_apart
from pipeline.model.score import encode, log_probabilities
from pipeline.train.held import settings_held
from pipeline.train.loading import load_for_training
from pipeline.train.training import Training

#: The backends that there are; a recipe's ``auto`` takes one of them.
BOTH = ("trl", "unsloth")
STAGES = ("sft", "grpo")
#: Gold answers whose log-probabilities are compared.
COMPARED = 8
#: Largest difference of a log-probability, and of the first update relative to its norm, that
#: rounding explains, by the dtype of computation. Adam's first step is nearly the sign of each
#: gradient, so a gradient near 0 that rounds to the other side counts in full.
TOLERANCES = {"float32": (1e-4, 0.02), "bfloat16": (0.15, 0.5), "float16": (0.05, 0.3)}
#: Settings that may differ, and why the training is the same all the same.
EXPLAINED = {
    "trainer": "Unsloth puts its own subclass in place of TRL's",
    "max_length": "Unsloth sets it to the length that no text exceeds, so nothing is cut",
    "model": "Unsloth puts its own subclass in place of the model's",
    "attention": "Unsloth has its own attention kernels",
    "use_cache": "of the config; Unsloth switches it while generating",
    "dataloader_pin_memory": "Unsloth turns it off without a GPU, where it does nothing",
    "output_dir": "each has a folder of its own",
    "logging_dir": "each has a folder of its own",
    "run_name": "named after the folder",
    "generation.max_length": "max_new_tokens is what limits an answer",
    "generation.use_cache": "a KV cache changes the speed of sampling, not its distribution",
}


def measure_backend(training: Training, length: int, folder: Path) -> None:
    """Build a training's trainer, take one step, and write ``<section>.json`` and the update."""
    from safetensors.torch import save_file

    # The first step at the full learning rate, and of few rows: it is to be compared, not to teach.
    first = {"max_steps": 1, "warmup_steps": 0, "logging_steps": 1, "save_strategy": "no"}
    section = training.section
    changes: dict[str, Any] = {section: {**training.arguments, **first}}
    training = replace(training, recipe=replace(training.recipe, **changes))
    rows = training.rows()
    model, tokenizer = load_for_training(training, length)
    model.eval()
    golds = [
        encode(tokenizer, render(tokenizer, row["prompt"]), row["gold"], stopped=False)
        for row in rows[:COMPARED]
    ]
    scores = log_probabilities(model, golds)
    trainer = MODULES[section].trainer_for(training, rows, model, tokenizer, folder / section)
    trainer.rollout_func = None  # both draw by the library's own way
    weights = {k: w for k, w in trainer.model.named_parameters() if w.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    trainer.train()
    update = {
        name: (weight.detach() - before[name]).float().cpu().contiguous()
        for name, weight in weights.items()
    }
    save_file(update, folder / f"{section}.safetensors")
    log = next(row for row in trainer.state.log_history if "grad_norm" in row)
    measured = {
        "held": settings_held(trainer),
        "logprobs": scores,
        "grad_norm": float(log["grad_norm"]),
    }
    write_json(folder / f"{section}.json", measured)


class Difference(NamedTuple):
    """Something that the backends hold differently; ``why`` is empty where nothing explains it."""

    stage: str
    what: str
    trl: str
    unsloth: str
    why: str


def settings_apart(
    stage: str, one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[Difference]:
    """The settings that differ. Arguments that only one of the classes has are not compared: the
    other's trainer does not read them."""
    pairs = {key: (one.get(key), other.get(key)) for key in {*one, *other} - {"args"}}
    shared = one["args"].keys() & other["args"].keys()
    pairs |= {f"args.{key}": (one["args"][key], other["args"][key]) for key in shared}
    for key, values in sorted(pairs.items()):
        if values[0] != values[1]:
            mine, its = (textwrap.shorten(str(value), 30, placeholder="…") for value in values)
            why = EXPLAINED.get(key.removeprefix("args."), "")
            yield Difference(stage, key, mine, its, why)


def numbers_apart(stage: str, dtype: str, one: Path, other: Path) -> Iterator[Difference]:
    """How far log-probabilities, first update and its gradient are apart in two folders that
    ``measure_backend`` wrote; explained where that is rounding.

    Raises:
        UserError: when there is nothing to compare: other weights, or no update at all.
    """
    import torch
    from safetensors.torch import load_file

    measured = [json.loads((folder / f"{stage}.json").read_text()) for folder in (one, other)]
    steps = [load_file(folder / f"{stage}.safetensors") for folder in (one, other)]
    require(steps[0].keys() == steps[1].keys(), f"{stage}: the backends train different weights")
    scores = [torch.tensor([*chain.from_iterable(each["logprobs"])]) for each in measured]
    updates = [torch.cat([step[name].flatten() for name in sorted(step)]) for step in steps]
    norm = float(updates[0].norm())
    require(
        norm,
        f"{stage}: the first step changes nothing, so there is nothing to compare; give it a "
        "learning rate, and in GRPO a base and a batch with some right answers and some wrong",
    )
    norms = [each["grad_norm"] for each in measured]
    allowed, share = TOLERANCES[dtype]
    for what, off, most in (
        ("log-probability at step 0", float((scores[0] - scores[1]).abs().max()), allowed),
        ("first update", float((updates[0] - updates[1]).norm()) / norm, share),
        ("norm of the first gradient", abs(norms[0] / max(norms[1], 1e-12) - 1), share),
    ):
        why = f"rounding, up to {most:g}" if off <= most else ""
        yield Difference(stage, what, "", f"{off:.2g} apart", why)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0].partition(": ")[2])
    parser.add_argument(
        "--only", type=Path, metavar="FOLDER", help="measure one backend, into a folder"
    )
    arguments = parser.parse_args()
    # A recipe may call its arms as it likes; compared are SFT and GRPO from its base.
    recipe = replace(recipe_from(arguments), arms=dict(ARMS))
    if arguments.only:
        trainings = [Training(recipe, stage, stage, recipe.model) for stage in STAGES]
        trainings[0].start_backend()
        quiet()
        length = recipe.max_seq_length or longest(uses(recipe), count_lengths(recipe.run))
        arguments.only.mkdir(parents=True)
        for training in trainings:
            measure_backend(training, length, arguments.only)
        return
    found: list[Difference] = []
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, name) for name in BOTH]
        for name, place in zip(BOTH, folders, strict=True):
            only = "--backend", name, "--only", str(place)
            try:
                run_apart("-m", "pipeline.backends", *sys.argv[1:], *only)
            except UserError as error:
                raise UserError(f"{name} cannot train the recipe: {error}") from None
        for stage in STAGES:
            one, other = (json.loads((each / f"{stage}.json").read_text()) for each in folders)
            found += settings_apart(stage, one["held"], other["held"])
            found += numbers_apart(stage, recipe.dtype, *folders)
    table = Table("stage", "what differs", *BOTH, "explained by", box=box.SIMPLE_HEAD)
    for each in found:
        table.add_row(*each[:-1], each.why or "NOTHING")
    plain_console().print(table)
    wrong = "; ".join(f"{each.stage}: {each.what}" for each in found if not each.why)
    require(not wrong, f"the backends differ without an explanation in {wrong}")
    print("The backends train the same thing.")


if __name__ == "__main__":
    run_main(main)
