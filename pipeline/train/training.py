"""Training: one arm of a recipe as the stage that trains it needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.common.errors import require
from data.common.fields import nearest
from data.recipe import Recipe
from data.rows import Row, read_split, retold
from data.run import goal
from data.sections import Arm
from pipeline.model import processes
from pipeline.model.load import model_inputs
from pipeline.train.backend import Backend, choose_backend, require_packages
from pipeline.train.settings import check_settings
from pipeline.train.vllm import with_vllm


@dataclass(frozen=True)
class Training:
    """One arm's training.

    Attributes:
        recipe: as it stands for the arm.
        section: of the recipe that configures TRL's trainer, ``sft`` or ``grpo``.
        start: folder or hub id of the model that it starts from.
    """

    recipe: Recipe
    arm: str
    section: str
    start: str

    @property
    def source(self) -> str:
        """The recipe, as messages name it."""
        return str(self.recipe.path)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The section: arguments of TRL's config class."""
        return getattr(self.recipe, self.section)

    @property
    def entry(self) -> Arm:
        """What the recipe says of the arm."""
        return self.recipe.all_arms[self.arm]

    @property
    def backend(self) -> Backend:
        return choose_backend(self.recipe.backend)

    def start_backend(self) -> Backend:
        """Import the backend, and make the devices ready.

        Raises:
            UserError: see ``choose_backend``; where a setting needs a package that is not
                installed, before a model is loaded for it; where quantised weights would be cut up.
        """
        require_packages(self.source, self._needs())
        require(
            not (self.recipe.quantised and processes.cuts_weights()),
            "quantised weights are not cut up among processes; pipeline/accelerate/ddp.yaml or "
            "zero2.yaml leaves them whole, or bits: 16",
        )
        processes.prepare_devices()
        return self.backend

    def _needs(self) -> Iterator[tuple[str, str]]:
        """Every key of this training that needs a package of its own, with the package."""
        optimizer = str(self.arguments.get("optim", ""))
        if self.recipe.quantised:
            yield f"bits: {self.recipe.bits}", "bitsandbytes"
        if self.arguments.get("use_vllm"):
            yield f"{self.section}.use_vllm", "vllm"
        if self.arguments.get("use_liger_kernel"):
            yield f"{self.section}.use_liger_kernel", "liger_kernel"
        if "8bit" in optimizer or "bnb" in optimizer or optimizer.startswith("paged"):
            yield f"{self.section}.optim: {optimizer}", "bitsandbytes"

    def rows(self) -> list[Row]:
        """The training problems of the arm."""
        rows, tiers = read_split(self.recipe.run, "train"), self.entry.tiers
        mine = [row for row in rows if not tiers or row["tier"] in tiers]
        return mine if self.entry.reasoned is None else retold(mine, self.recipe.data)

    def inputs(self) -> list[Path]:
        """The files that its result depends on."""
        return [self.recipe.run.split("train"), *model_inputs(self.start)]

    def settings(self) -> dict[str, Any]:
        """The settings that its result depends on."""
        recipe, reasoned = self.recipe, self.entry.reasoned
        return {
            **({} if reasoned is None else {"reasoned": reasoned}),
            "model": self.start,
            "dtype": recipe.dtype,
            "seed": recipe.seed,
            "lora": recipe.lora,
            "tiers": self.entry.tiers,
            "backend": self.backend.name,
            "bits": recipe.bits,
            "max_seq_length": recipe.max_seq_length,
            self.section: self.arguments,
            **processes.layout(),
        }


def training_of(recipe: Recipe, arm: str, trainer: str) -> Training:
    """The training of an arm by ``trainer``, its backend imported and its settings checked.

    Raises:
        UserError: when the recipe has no such arm, another trainer trains it, its start is not
            trained, or a library would refuse its settings.
    """
    arms = recipe.all_arms
    known = ", ".join(arms)
    where = f"{recipe.path}: arms"
    require(arm in arms, f"{where} has no {arm!r} (it has {known}){nearest(arm, arms)}")
    require(
        arms[arm].trainer == trainer,
        f"{where}.{arm} is trained by {arms[arm].trainer}, not by {trainer}; "
        f"{goal('arms')} trains it",
    )
    start = arms[arm].start
    recipe.run.require_trained(start)
    section = arms[arm].section
    assert section is not None
    training = Training(recipe.for_arm(arm), arm, section, recipe.run.model(start))
    training.start_backend()  # before the check imports what it patches
    recipe = with_vllm(training.recipe, training.backend.is_unsloth)
    if section == "grpo" and recipe is not training.recipe:
        print("grpo: answers are drawn by vLLM, which is installed; use_vllm: false goes without")
        training = replace(training, recipe=recipe)
    check_settings(replace(training.recipe, arms={}))  # or other arms would have its settings
    return training
