"""Run: the folder that holds all that one recipe made, and where each thing in it lies."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.common.errors import UserError, require
from data.common.fields import nearest
from data.common.files import finished, read_object, write_json
from data.sections import ARMS, Arm

BASE = "base"
#: Below an arm's folder: the finished model, the LoRA adapter that was merged into it, the log.
MODEL, ADAPTER, LOG = "model", "adapter", "log.jsonl"
#: Below the run's folder: the recipe and the base model that it belongs to.
OWNER = "run.json"
#: Below an arm's checkpoints: answers of its start, which ``kl_start`` is measured on.
START = "start.jsonl"
#: Below an arm's folder in ``eval``.
SAMPLES, VERDICTS = "samples.jsonl", "verdicts.jsonl"
#: The recipe that make takes without RECIPE=.
DEFAULT = "tiny"


@dataclass(frozen=True)
class Run:
    """Knows every path below ``runs/<name>``; reads nothing but whether an arm is trained.

    Attributes:
        folder: of the run.
        model_name: folder or hub id of the base model.
        arms: every arm that is trained or asked, by name and seed (``Recipe.all_arms``).
    """

    folder: Path
    model_name: str
    arms: Mapping[str, Arm]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def split(self, name: str) -> Path:
        """The problems of ``train``, ``val`` or ``test``."""
        return self.data / f"{name}.jsonl"

    @property
    def floors(self) -> Path:
        """What blind policies score on the test problems."""
        return self.data / "floors.json"

    @property
    def lengths(self) -> Path:
        """How many tokens prompts and gold answers have."""
        return self.data / "lengths.json"

    @property
    def audit(self) -> Path:
        return self.folder / "audit"

    def probe(self, arm: str) -> Path:
        return self.folder / "probe" / arm

    def stage(self, arm: str) -> Path:
        """The folder of an arm's training."""
        return self.folder / arm

    def log(self, arm: str) -> Path:
        """The signals of an arm's training, one logging step a line."""
        return self.stage(arm) / LOG

    def adapter(self, arm: str) -> Path:
        return self.stage(arm) / ADAPTER

    def successes(self, arm: str) -> Path:
        """The start's verified successes that rejection sampling trains an arm on."""
        return self.stage(arm) / "successes" / "successes.jsonl"

    @property
    def eval(self) -> Path:
        return self.folder / "eval"

    def samples(self, arm: str) -> Path:
        """The answers of an arm to the test problems."""
        return self.eval / arm / SAMPLES

    def verdicts(self, arm: str) -> Path:
        return self.eval / arm / VERDICTS

    @property
    def report(self) -> Path:
        """The counts of every arm: pass@k, differences, floors."""
        return self.eval / "report.json"

    @property
    def elicitation(self) -> Path:
        """The conclusions on the judged arms, and what they rest on."""
        return self.eval / "elicitation" / "elicitation.json"

    @property
    def thinking(self) -> Path:
        """Whether the arms' answers hang on their reasoning."""
        return self.eval / "thinking" / "thinking.json"

    @property
    def comparison(self) -> Path:
        return self.eval / "compare"

    @property
    def published(self) -> Path:
        return self.eval / "published"

    def export(self, name: str) -> Path:
        return self.folder / "export" / name

    def belong_to(self, recipe: Path, force: bool = False) -> None:
        """Note whose run this is when its first stage begins; with ``force`` it changes hands.

        Raises:
            UserError: where another recipe's or base model's finished work would be replaced.
        """
        path = self.folder / OWNER
        owner = {"recipe": os.path.relpath(recipe), "model": self.model_name}
        found = read_object(path)
        if not found or (force and found != owner):
            write_json(path, owner)
        elif found != owner:
            raise UserError(
                f"{self.folder} belongs to the recipe {found.get('recipe')} with the model "
                f"{found.get('model')}; RUN=name gives this one a folder of its own, FORCE=1 "
                "replaces what is there"
            )

    @property
    def names(self) -> list[str]:
        """The base and every arm, in the order of training."""
        return [BASE, *self.arms]

    def weights_of(self, arm: str) -> str:
        """The arm whose weights answer: an arm without a trainer asks its start in another way."""
        while arm != BASE and self.arms[arm].trainer == "none":
            arm = self.arms[arm].start
        return arm

    def model(self, arm: str) -> str:
        """Where an arm's weights are: the base model's folder or hub id, or what a stage made."""
        owner = self.weights_of(arm)
        return self.model_name if owner == BASE else str(self.stage(owner) / MODEL)

    def is_trained(self, arm: str) -> bool:
        """Whether the weights of an arm are there."""
        owner = self.weights_of(arm)
        return owner == BASE or finished(self.stage(owner))

    def require_known(self, arm: str) -> None:
        """Raise UserError unless the run has the arm."""
        near, known = nearest(arm, self.names), ", ".join(self.names)
        require(arm in self.names, f"ARM= (--arm) must be one of {known}, not {arm!r}{near}")

    def require_data(self, split: str = "test") -> None:
        """Raise UserError unless the data stage has run to its end."""
        require(
            finished(self.data),
            f"{self.split(split)} does not exist or is not finished; {goal('data')} writes it",
        )

    def require_trained(self, arm: str) -> None:
        """Raise UserError unless the weights of an arm are there, or the data to train it on."""
        if not self.is_trained(arm):
            self.require_data("train")
            raise UserError(f"{self.model(arm)} is not finished; {maker(arm)} trains it")

    def chosen(self, arm: str | None) -> str:
        """The arm that is named, else the last one that is trained, else the base.

        Raises:
            UserError: when there is no such arm, or it is not trained.
        """
        if arm is None:
            own = [name for name, what in self.arms.items() if what.trainer != "none"]
            return [BASE, *filter(self.is_trained, own)][-1]
        self.require_known(arm)
        self.require_trained(arm)
        return arm

    def sampled(self) -> list[str]:
        """The arms whose answers are all drawn."""
        return [arm for arm in self.names if finished(self.samples(arm).parent)]


def given() -> dict[str, str]:
    """What this command was given that says which run it is about, by flag."""
    parser = argparse.ArgumentParser(add_help=False)
    for flag in ("recipe", "model", "run", "backend", "bits"):
        parser.add_argument(f"--{flag}")
    return {flag: value for flag, value in vars(parser.parse_known_args()[0]).items() if value}


def goal(name: str, *settings: str) -> str:
    """A goal of make as a way out, with what this command was given that says which run it is."""
    unsaid = (DEFAULT, f"pipeline/recipes/{DEFAULT}.yaml")
    same = [
        f"{flag.upper()}={shlex.quote(value)}"
        for flag, value in given().items()
        if flag != "recipe" or value not in unsaid
    ]
    return f"`{' '.join(['make', name, *same, *settings])}`"


def maker(arm: str, *settings: str) -> str:
    """The command that trains an arm."""
    return goal(arm if arm in ARMS else "arms", *settings)
