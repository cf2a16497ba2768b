"""Which families of language models go the whole way, from ``make data`` to an answer?

``python -m tests.architectures [FAMILY …]`` makes a tiny random model of each, trains it by SFT and
by GRPO, whole and by LoRA on all linear layers, merges it, draws answers from it, and prints a
table.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import make
from data.common.errors import UserError
from data.recipe import Recipe
from eval.answers.sampling import sample_arm
from pipeline import grpo, sft
from pipeline.check import check_texts
from pipeline.train.loading import check_model
from pipeline.train.settings import check_settings
from tests.tiny import FAMILIES, LORA, save_model, write_recipe

#: How a model is trained: its ``lora`` section.
WAYS: dict[str, Any] = {"whole": None, "LoRA": {**LORA, "target_modules": "all-linear"}}


def _stages(recipe: Recipe) -> dict[str, Callable[[], object]]:
    return {
        "check": lambda: (check_settings(recipe), check_model(recipe)),
        "data": lambda: (make.run(recipe, force=False), check_texts(recipe)),
        "sft": lambda: sft.run(recipe, force=False),
        "grpo": lambda: grpo.run(recipe, force=False),
        "sample": lambda: sample_arm(recipe, "grpo", force=False),
    }


def outcome(family: str, way: str, folder: Path) -> str:
    """``works``, or where and with which words it ends. Changes into an empty ``folder``."""
    stage = "model"
    with contextlib.chdir(folder):
        try:
            recipe = write_recipe(folder, save_model(folder / "base", family), lora=WAYS[way])
            for stage in (stages := _stages(recipe)):
                stages[stage]()
        except UserError as error:
            return f"refused in {stage}: {error}".replace(f"{folder}/", "")
        except Exception as error:  # of five libraries, and the reason for this script
            return f"FAILED in {stage}: {type(error).__name__}: {error}"
    return "works"


def main(families: list[str]) -> None:
    grpo.gate = lambda *_: None  # the audit of the reward asks no model
    print("| family | whole | by LoRA |\n|---|---|---|", flush=True)
    for family in families:
        cells = []
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                said = io.StringIO()
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    found = outcome(family, way, Path(folder))
            cells.append(textwrap.shorten(found, 200, placeholder=" …"))
        print(f"| {family} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(FAMILIES))
