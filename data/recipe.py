"""Recipes: one YAML file that is a whole experiment, checked before anything runs.

This module stands below all stages, since each of them reads the recipe; it knows the shape of
every section but imports no trainer. The ``sft`` and ``grpo`` sections are TRL's and are checked
against its config classes by ``pipeline.train.settings``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from data.common.errors import UserError, shown
from data.event import is_text
from data.run import Run
from data.sections import (
    ARMS,
    Arm,
    ConclusionSection,
    DataSection,
    EvalSection,
    MonitorSection,
    RewardSection,
    TierUse,
)
from data.tiers import TIERS, Tier

RUNS = Path("runs")
SPLITS = ("train", "val", "test")
TRAINERS = ("sft", "grpo", "rejection", "none")
CURRICULA = ("mixture", "easy_to_hard")
BACKENDS = ("auto", "unsloth", "trl")
BITS = (4, 8, 16)
DTYPES = ("float32", "bfloat16", "float16")
#: Keys of older recipes, by what they are called today.
_RENAMED = {"verdict": "conclusion"}
#: Keys that an extending recipe replaces whole.
_WHOLE = ("arms", "tiers", "reward")
#: Folders of a run that are not arms.
_TAKEN = (
    "base", "data", "eval", "audit", "probe", "compare", "elicitation", "export", "published",
)  # fmt: skip
#: What reports call all tiers together.
_TOGETHER = ("all", "overall")
#: What an arm may tune: what changes its answers and nothing else.
_TUNED = ("temperature", "top_p", "shots")
#: Of runs and arms, which are parts of file names.
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
#: numpy and torch take no other seeds.
MOST_SEED = 2**32 - 1
#: Types as a message names them.
TYPE_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping of keys",
    type(None): "null",
}


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: of the run's folder, ``runs/<name>``, unless RUN says otherwise.
        seed: the master seed of everything.
        model: folder or hub id of the base model.
        dtype: of the weights in training and sampling; of computation where they are quantised.
        backend: what trains: ``unsloth``, ``trl``, or ``auto``, see ``pipeline.train.backend.choose``.
        bits: 4 or 8 to quantise the weights below a LoRA in training; null or 16 for none.
        max_seq_length: tokens of a prompt with its answer; null for what the model can hold.
        fast_inference: sample in GRPO with Unsloth's vLLM.
        lora: arguments of peft's LoraConfig, or null for full fine-tuning; ``target_modules`` may
            be ``attention``, ``mlp`` or ``all``.
        reward: what GRPO is paid for.
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
    seed: int = 0
    dtype: str = "float32"
    backend: str = "auto"
    bits: int | None = None
    max_seq_length: int | None = None
    fast_inference: bool = False
    reward: RewardSection = field(default_factory=RewardSection)
    conclusion: ConclusionSection = field(default_factory=ConclusionSection)
    monitor: MonitorSection = field(default_factory=MonitorSection)
    arms: dict[str, Arm] = field(default_factory=lambda: dict(ARMS))
    lora: dict[str, Any] | None = None
    path: Path = field(default=Path(), metadata={"internal": True})
    run_name: str = field(default="", metadata={"internal": True})

    @property
    def run(self) -> Run:
        """Where everything lies that this recipe makes."""
        return Run(RUNS / self.run_name, self.model, self.all_arms())

    @property
    def quantised(self) -> bool:
        """Whether the weights are quantised in training."""
        return self.bits in (4, 8)

    def all_arms(self) -> dict[str, Arm]:
        """The arms that are trained, those with ``seeds`` once for each."""
        found = {}
        for name, arm in self.arms.items():
            seeds = [(seed,) for seed in arm.seeds] or [()]
            for member, own in zip(self.members(name), seeds, strict=True):
                found[member] = dataclasses.replace(arm, seeds=own)
        return found

    def members(self, name: str) -> list[str]:
        """What an entry of ``arms`` is called once for each of its seeds."""
        return [f"{name}.{seed}" for seed in self.arms[name].seeds] or [name]

    def judged(self) -> list[str]:
        """The entries of ``arms`` that get a conclusion."""
        if self.conclusion.arms is None:
            return [name for name in self.arms if name == "grpo"]
        return list(self.conclusion.arms)

    def for_arm(self, name: str) -> Recipe:
        """The recipe as it stands for one arm, with the arm's own seed, reward, settings and way
        of asking."""
        if name == "base":
            return self
        arm = self.all_arms()[name]
        changed: dict[str, Any] = {"eval": dataclasses.replace(self.eval, **arm.eval)}
        if arm.section:
            changed[arm.section] = {**getattr(self, arm.section), **arm.settings}
        return dataclasses.replace(
            self,
            seed=arm.seeds[0] if arm.seeds else self.seed,
            backend=arm.backend or self.backend,
            reward=arm.reward or self.reward,
            **changed,
        )

    def tier_uses(self) -> dict[str, TierUse]:
        """Each tier of ``data.tiers`` with its changes applied and validated."""
        return {n: _tier_use(self.path, n, use) for n, use in self.data.tiers.items()}


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
    recipe: Recipe = build(Recipe, _content(path), str(path), "")
    recipe = dataclasses.replace(
        recipe,
        path=path,
        model=model or recipe.model,
        run_name=run or recipe.name,
        backend=backend or recipe.backend,
        bits=bits or recipe.bits,
        dtype="bfloat16" if bits == 16 and recipe.dtype == "float32" else recipe.dtype,
    )
    if not _RUN.fullmatch(recipe.run_name):
        where = "run name" if run else f"{path}: name"
        raise UserError(
            f"{where} {recipe.run_name!r:.80} must be letters, digits, '.', '_' and '-', at most 100"
        )
    if not 0 <= recipe.seed <= MOST_SEED:
        raise UserError(f"{path}: seed must be 0 to {MOST_SEED}, not {recipe.seed}")
    if recipe.data.curriculum not in CURRICULA:
        raise UserError(
            f"{path}: data.curriculum must be one of {', '.join(CURRICULA)}, not "
            f"{recipe.data.curriculum!r}"
        )
    _check_loading(recipe)
    _check_eval(str(path), "eval", recipe.eval)
    recipe.monitor.validate(f"{path}: monitor")
    uses = recipe.tier_uses()
    if recipe.data.main not in uses:
        raise UserError(f"{path}: data.main is {recipe.data.main!r}, not one of {', '.join(uses)}")
    for name in set(uses) & set(_TOGETHER):
        raise UserError(f"{path}: data.tiers.{name} cannot be a tier's name")
    for split in SPLITS:
        if not getattr(uses[recipe.data.main], split):
            raise UserError(f"{path}: the main tier {recipe.data.main!r} needs {split} problems")
    _check_arms(recipe, uses)
    _check_conclusion(recipe)
    return recipe


def _check_loading(recipe: Recipe) -> None:
    """Raise UserError where no backend could load the model so."""
    for key, known in (("backend", BACKENDS), ("bits", (*BITS, None)), ("dtype", DTYPES)):
        value = getattr(recipe, key)
        if value not in known:
            names = ", ".join("null" if one is None else str(one) for one in known)
            raise UserError(f"{recipe.path}: {key} must be one of {names}, not {shown(value)}")
    if recipe.quantised and recipe.lora is None:
        raise UserError(
            f"{recipe.path}: weights of {recipe.bits} bits cannot be trained; give a lora: section"
        )
    if recipe.bits == 16 and recipe.dtype == "float32":
        raise UserError(f"{recipe.path}: weights of 16 bits need dtype: bfloat16 (or float16)")
    if recipe.max_seq_length is not None and recipe.max_seq_length < 1:
        raise UserError(f"{recipe.path}: max_seq_length must be 1 or more")


def _check_eval(source: str, key: str, section: EvalSection) -> None:
    for name in ("samples", "max_tokens", "rows", "resamples"):
        value = getattr(section, name)
        if value is not None and value < 1:
            raise UserError(f"{source}: {key}.{name} must be 1 or more")
    if section.temperature < 0 or not 0 < section.top_p <= 1 or section.shots < 0:
        raise UserError(
            f"{source}: {key}.temperature and shots must be 0 or more, top_p above 0, at most 1"
        )
    if section.server is not None and not _is_address(section.server):
        raise UserError(
            f"{source}: {key}.server must be an address such as http://host:8000/v1, without a "
            f"name or password, not {section.server!r}"
        )


def _is_address(text: str) -> bool:
    """Whether a text is an http(s) address that may be written into manifests."""
    try:
        found = urlsplit(text)
        sound = found.port is None or found.port > 0
    except ValueError:  # no port, or no IPv6 address
        return False
    plain = text.isprintable() and not any(map(str.isspace, text))
    known = found.scheme in ("http", "https") and bool(found.hostname) and "@" not in found.netloc
    return plain and sound and known and not (found.query or found.fragment)


def _check_arms(recipe: Recipe, uses: dict[str, TierUse]) -> None:
    """Raise UserError where an arm cannot be trained, or not after the arm that it starts from."""
    known = ["base"]
    for name, arm in recipe.arms.items():
        where = f"{recipe.path}: arms.{name}"
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise UserError(
                f"{where} cannot be an arm's name; take letters, digits, '_' and '-', at most 100"
            )
        if arm.trainer not in TRAINERS:
            raise UserError(f"{where}.trainer must be {' or '.join(TRAINERS)}, not {arm.trainer!r}")
        if arm.backend not in (*BACKENDS, None):
            raise UserError(
                f"{where}.backend must be one of {', '.join(BACKENDS)}, not {arm.backend!r}"
            )
        if arm.start not in known:
            raise UserError(
                f"{where}.start must be an arm before it ({', '.join(known)}), not {arm.start!r}"
            )
        for tier in arm.tiers:
            if tier not in uses or not uses[tier].train:
                raise UserError(f"{where}.tiers: data.tiers has no train problems of {tier!r}")
        for key, values in arm.tune.items():
            if key not in _TUNED or not values:
                raise UserError(
                    f"{where}.tune takes {', '.join(_TUNED)}, each with a list of values to try, "
                    f"not {key}: {list(values)}"
                )
        for key in ("samples", "resamples"):
            if key in arm.eval:
                raise UserError(
                    f"{where}.eval.{key} cannot differ: arms are compared at the same k"
                )
        tried = [("tune", {key: value}) for key, values in arm.tune.items() for value in values]
        for section, changes in [("eval", arm.eval), *tried]:
            key = f"arms.{name}.{section}"
            built = build(EvalSection, changes, str(recipe.path), f"{key}.")
            _check_eval(str(recipe.path), key, built)
        if len(set(arm.seeds)) < len(arm.seeds) or not all(0 <= s <= MOST_SEED for s in arm.seeds):
            raise UserError(f"{where}.seeds must be different, each 0 to {MOST_SEED}")
        known += recipe.members(name)


def _check_conclusion(recipe: Recipe) -> None:
    """Raise UserError where an arm has no place in a conclusion, or a margin makes no sense."""
    section = recipe.conclusion
    section.margins.validate(f"{recipe.path}: conclusion.margins")
    if section.fresh < 1:
        raise UserError(f"{recipe.path}: conclusion.fresh must be 1 or more")
    named = [("arms", name) for name in section.arms or ()]
    rivals = [("base_best", section.base_best), ("format_only", section.format_only)]
    for key, name in [*named, *rivals]:
        if name is not None and name not in recipe.arms:
            raise UserError(
                f"{recipe.path}: conclusion.{key} names {name!r}, not an entry of arms "
                f"({', '.join(recipe.arms)}){nearest(name, recipe.arms)}"
            )
    best = recipe.arms.get(section.base_best or "")
    if best and (best.trainer != "none" or best.start != "base" or best.seeds):
        raise UserError(
            f"{recipe.path}: conclusion.base_best: {section.base_best!r} must be the base itself, "
            "asked in another way (trainer none, start base, no seeds)"
        )
    for name in recipe.judged():
        seeds = recipe.arms[name].seeds
        for key, rival in rivals:
            if rival == name:
                raise UserError(f"{recipe.path}: conclusion.{key} is {name!r}, which is judged")
            if rival and recipe.arms[rival].seeds not in ((), seeds):
                raise UserError(
                    f"{recipe.path}: conclusion.{key}: {rival!r} needs no seeds or those of "
                    f"{name!r}, since they are compared seed by seed"
                )


def _content(path: Path, extended: tuple[Path, ...] = ()) -> Any:
    """What a recipe file says, on top of the recipe that its ``extends`` names, if any: of two
    mappings the keys are merged; ``arms``, ``reward`` and ``data.tiers`` are taken whole."""
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        near = nearest(path.stem, known)
        raise UserError(f"recipe {path} does not exist{near}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{path}{line} is not valid YAML ({problem})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file") from None
    except (ValueError, OverflowError, RecursionError) as error:  # beyond all measure
        raise UserError(f"{path} cannot be read as YAML ({error})") from None
    if not isinstance(content, dict) or "extends" not in content:
        return content
    below = content.pop("extends")
    if not isinstance(below, str):
        raise UserError(
            f"{path}: extends must be the name of a recipe beside it, not {shown(below)}"
        )
    if not _is_plain(below):
        raise UserError(f"{path}: extends {shown(below)} is no file's name")
    parent = path.parent / below
    if not parent.is_file():
        near = nearest(parent.stem, sorted(p.stem for p in parent.parent.glob("*.yaml")))
        raise UserError(f"{path}: extends {below}, but recipe {parent} does not exist{near}")
    extended = (*extended, path.resolve())
    if parent.resolve() in extended:
        raise UserError(f"{path}: extends goes in a circle")
    return _merged(_content(parent, extended), content)


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {key: value for key, value in below.items() if key not in above}
    return merged | {
        key: value if key in _WHOLE else _merged(below.get(key), value)
        for key, value in above.items()
    }


def _is_plain(text: str) -> bool:
    """Whether a text can name a file, and be written into a manifest."""
    return is_text(text) and "\0" not in text and len(text) < 1024


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def build(cls: type, content: Any, source: str, prefix: str) -> Any:
    """A dataclass from a mapping, with every key and type checked.

    Raises:
        UserError: naming ``source`` and the key (``prefix`` included) that is missing, unknown, or
            of the wrong type.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the recipe'} must be a mapping of keys")
    known = {f.name: f for f in fields(cls) if not f.metadata.get("internal")}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in content.items():
        if key not in known:
            now = _RENAMED.get(prefix + str(key))
            near = f"; it is called {now!r} now" if now else nearest(str(key), known)
            raise UserError(f"{source}: unknown key {prefix + str(key)!r}{near}")
        values[key] = _convert(hints[key], value, source, prefix + key)
    for name, spec in known.items():
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise UserError(f"{source}: key {prefix + name!r} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """``value`` as the annotated type, or UserError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _convert(next(o for o in options if o is not type(None)), value, source, key)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, source, f"{key}.")
    if origin is tuple and options[1:] == (Ellipsis,):
        if isinstance(value, list):
            return tuple(_convert(options[0], v, source, key) for v in value)
        raise UserError(f"{source}: {key} must be a list, not {shown(value)}")
    if origin is tuple:
        if isinstance(value, list) and len(value) == len(options):
            return tuple(_convert(o, v, source, key) for o, v in zip(options, value, strict=True))
        raise UserError(
            f"{source}: {key} must be a list of {len(options)} values, not {shown(value)}"
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{source}: {key} must be a mapping of keys, not {shown(value)}")
        return {str(k): _convert(options[1], v, source, f"{key}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and type(value) is int and abs(value) < 1 << 1000:
        return float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise UserError(f"{source}: {key} must be {TYPE_NAMES[hint]}, not {shown(value)}")
    if isinstance(value, str) and not _is_plain(value):
        raise UserError(f"{source}: {key} is no plain text, or too long: {shown(value)}")
    return value


def _tier_use(path: Path, name: str, content: Any) -> TierUse:
    """One entry of ``data.tiers``: counts, a source, and any attribute of the tier to change."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: data.tiers.{name} must be a mapping, such as {{train: 100}}")
    prefix = f"data.tiers.{name}."
    known = [*SPLITS, "source", *(f.name for f in fields(Tier))]
    for key in content:
        if key not in known:
            raise UserError(f"{path}: unknown key {prefix + str(key)!r}{nearest(str(key), known)}")
    counts = {k: v for k, v in content.items() if k in (*SPLITS, "source")}
    changes = {k: v for k, v in content.items() if k not in counts}
    use: TierUse = build(TierUse, counts, str(path), prefix)
    if min(use.train, use.val, use.test) < 0:
        raise UserError(f"{path}: {prefix}train, val and test must be 0 or more")
    if use.source is None and name not in TIERS:
        raise UserError(
            f"{path}: unknown tier {name!r} (the tiers are {', '.join(TIERS)}, and any name with "
            f"a source){nearest(name, TIERS)}"
        )
    if use.source is not None:
        if changes:
            raise UserError(f"{path}: {prefix}{next(iter(changes))} cannot change an imported tier")
        return use
    tier = dataclasses.replace(TIERS[name], **_tier_changes(path, prefix, changes))
    try:
        tier.validate(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return dataclasses.replace(use, tier=tier)


def _tier_changes(path: Path, prefix: str, changes: dict[str, Any]) -> dict[str, Any]:
    changed = build(Tier, changes, str(path), prefix)
    return {key: getattr(changed, key) for key in changes}


def recipe_arguments(description: str) -> argparse.ArgumentParser:
    """The flags that every stage takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--model", help="folder or hub id of a base model, instead of the recipe's")
    parser.add_argument("--backend", choices=BACKENDS, help="what trains, instead of the recipe's")
    parser.add_argument(
        "--bits", type=int, choices=BITS, help="of the weights in training, instead of the recipe's"
    )
    parser.add_argument("--run", help="name of the folder below runs/, instead of the recipe's")
    parser.add_argument("--force", action="store_true", help="redo the stage though up to date")
    return parser


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    return load_recipe(
        arguments.recipe, arguments.model, arguments.run, arguments.backend, arguments.bits
    )


class _Loader(yaml.SafeLoader):
    """YAML that reads as people write it: 1e-4 is a number; no, 17:00, 010 and dates are text (not
    false, 1020, 8 and a date, as YAML 1.1 has it); and a key given twice is a mistake, as is what
    JSON, and so a manifest, cannot hold."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):  # a tag that does not fit, digits beyond all measure
            kind = node.tag.removeprefix(_TAG)
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(node.value)} cannot be read as {kind}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_PLAIN = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)$", "-+0123456789"),
    "float": (
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf))$"
        r"|\.(nan|NaN)$",
        "-+0123456789.",
    ),
}
_TAG = "tag:yaml.org,2002:"
_HELD = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: read
    for tag, read in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _HELD
}
_Loader.yaml_implicit_resolvers = {
    first: [r for r in found if r[0].removeprefix(_TAG) not in (*_PLAIN, "timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _firsts) in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), list(_firsts))
