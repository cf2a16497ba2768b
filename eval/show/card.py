"""The model card of a trained arm: what the files of its run say of it, as Markdown.

Names (of tiers, models, runs) are shown as code, in which nothing is markup, texts of problems in
fences longer than any that they hold. What was not recorded is left out; and what does not belong
to the very weights that are exported (an older evaluation, an arm trained again since) is not
shown, which the card says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.common.errors import UserError
from data.common.files import finished, sha256, stage_facts
from data.recipe import Recipe
from data.rows import read_split
from data.run import maker
from data.sections import EvalSection
from eval.answers.files import way_of_asking
from eval.show.report_sheets import report_sheets
from eval.show.results import read_result, standing_conclusion
from eval.show.tables import markdown_of
from pipeline.model.load import is_local
from rewards.verify import VALID

TEMPLATES = Path(__file__).parent / "templates"
#: In the metadata of every card; tells an export from other folders on the hub.
TAG = "slotwise"
#: What each trainer does, in a sentence.
_WAYS = {
    "sft": "supervised fine-tuning on gold answers",
    "grpo": "GRPO with verifiable rewards",
    "rejection": "fine-tuning on its own verified successes",
}
#: Of the hundred and more arguments that a trainer records: those shown, beside all that the recipe
#: sets.
_SHOWN = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "num_generations",
    "max_completion_length",
    "temperature",
    "top_p",
    "beta",
    "loss_type",
    "scale_rewards",
    "reward_weights",
)


@dataclass(frozen=True)
class Link:
    """One model on the way from the base to the exported arm.

    Attributes:
        arm: its name, ``base`` first.
        model: its folder or hub id.
        sha256: of its folder as the next one was trained from it; None for a model of the hub.
        facts: its training's manifest; None for the base, and where it was trained again since.
    """

    arm: str
    model: str
    sha256: str | None
    facts: Mapping[str, Any] | None


@dataclass(frozen=True)
class Evaluation:
    """What ``make eval`` found of the exported weights.

    Attributes:
        report: ``report.json``, of the arms of the lineage alone.
        asking: how the arm was asked.
        sentence: of the conclusion on it, None where there is none.
        seeds: how many trained models that sentence is about.
    """

    report: Mapping[str, Any]
    asking: EvalSection
    sentence: str | None
    seeds: int


# --- what the files say --------------------------------------------------------------------------


def lineage(recipe: Recipe, arm: str) -> list[Link]:
    """The models from the base to ``arm``, by the manifests of their trainings. It begins later
    where an arm on the way was trained again since.

    Raises:
        UserError: when an arm was trained from another model than the recipe starts it from now.
    """
    folder = Path(recipe.run.model(arm))
    found = [Link(arm, str(folder), sha256(folder), stage_facts(folder.parent))]
    while (facts := found[0].facts) is not None:
        start = _weights_of(recipe, recipe.all_arms[found[0].arm].start)
        model = recipe.run.model(start)
        if facts["settings"]["model"] != model:
            raise UserError(
                f"{found[0].model} was trained from {facts['settings']['model']}, and {recipe.path}"
                f" starts it from {model} now: name the recipe and MODEL that it was trained with, "
                f"or train it again ({maker(found[0].arm)})"
            )
        known, before = facts["inputs"].get(model), None
        if start != "base" and finished(Path(model).parent) and sha256(Path(model)) == known:
            before = stage_facts(Path(model).parent)
        found.insert(0, Link(start, model, known, before))
    return found


def _weights_of(recipe: Recipe, arm: str) -> str:
    """The arm itself, or, where it is one asked in another way, that one."""
    while arm != "base" and (found := recipe.all_arms[arm]).trainer == "none":
        arm = found.start
    return arm


def evaluation(recipe: Recipe, links: Sequence[Link]) -> Evaluation | str:
    """What was measured of the last of ``links``; a sentence where nothing was.

    A model before it is in the tables where its samples, too, are of the weights in the lineage.
    """
    folder, arm = recipe.run.eval, links[-1].arm
    if not finished(recipe.run.samples(arm).parent) or not finished(folder):
        return "The run has no finished evaluation of this model; `make eval` makes one."
    report, judged = read_result(folder / "report.json"), stage_facts(folder)["inputs"]
    shown = [x.arm for x in links if x.arm in report["arms"] and _is_counted(recipe, x, judged)]
    if arm not in shown:
        return "The run's evaluation is of other weights than these; `make eval` evaluates these."
    entry = next(name for name in recipe.arms if arm in recipe.arms[name].members(name))
    return Evaluation(
        _of_arms(report, shown),
        way_of_asking(recipe.run.samples(arm).parent),
        _conclusion(recipe, arm, entry, report["arms"]),
        len(recipe.arms[entry].members(entry)),
    )


def _is_counted(recipe: Recipe, link: Link, judged: Mapping[str, str]) -> bool:
    """Whether the samples that were judged are of the weights of ``link``."""
    path = recipe.run.samples(link.arm)
    if not finished(path.parent):
        return False
    facts = stage_facts(path.parent)
    return (facts["settings"]["model"], facts["inputs"].get(link.model), facts["sha256"]) == (
        link.model,
        link.sha256,
        judged.get(str(path)),
    )


def _of_arms(report: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    """A report with these arms alone."""
    tiers = {
        tier: {
            **found,
            "arms": {arm: found["arms"][arm] for arm in arms},
            "differences": [
                pair
                for pair in found["differences"]
                if pair["tuned"] in arms and pair["reference"] in arms
            ],
        }
        for tier, found in report["tiers"].items()
    }
    return {**report, "arms": list(arms), "tiers": tiers}


def _conclusion(recipe: Recipe, arm: str, entry: str, reported: Sequence[str]) -> str | None:
    """The sentence of the conclusion on an arm's entry, where it stands and counts the arm."""
    path = standing_conclusion(recipe.run, reported)
    verdicts = recipe.run.verdicts(arm)
    if path is None or str(verdicts) not in stage_facts(path.parent)["inputs"]:
        return None
    return read_result(path)["judged"].get(entry, {}).get("sentence")


# --- the card ------------------------------------------------------------------------------------


def card(
    recipe: Recipe,
    links: Sequence[Link],
    found: Evaluation | str,
    asking: EvalSection,
    adapter: bool = False,
    gguf: str | None = None,
) -> str:
    """The card of the last of ``links``: metadata and Markdown, the same for the same files.

    Args:
        found: what ``evaluation`` says.
        asking: the decoding of ``generation_config.json``, ``max_tokens`` resolved.
        adapter: it is the card of the arm's LoRA adapter alone.
        gguf: name of a GGUF file beside it.
    """
    from huggingface_hub import ModelCard

    result = found if isinstance(found, Evaluation) else None
    arm, start = links[-1].arm, links[-2]
    tiers = recipe.all_arms[arm].tiers or tuple(recipe.tier_uses)
    rows = [row for row in read_split(recipe.run, "train") if row["tier"] in tiers]
    path = recipe.run.split("train")
    same = links[-1].facts["inputs"].get(str(path)) == sha256(path)
    body = _environment().get_template("card.md.j2").render(
        run=recipe.run_name,
        arm=arm,
        ways=[_way(recipe, link) for link in links[1:]],
        base=_shown(links[0]),
        start=_shown(start) if adapter else None,
        start_id=called(start),
        gguf=gguf,
        example=max(rows, key=lambda row: row["tier"] == recipe.data.main),  # the first such one
        missing=None if result else found,
        evaluation=result,
        tables=result and _tables(result.report),
        invalid=result and _invalid(result.report, arm),
        main=recipe.data.main,
        asking=asking,
        steps={link.arm: _settings(recipe, link) for link in links if link.facts},
        problems=Counter(row["tier"] for row in rows) if same else {},
        lineage=[_line(recipe, *pair) for pair in zip([None, *links], links, strict=False)],
    )  # fmt: skip
    return str(
        ModelCard(f"---\n{_metadata(recipe, links, result, adapter).to_yaml()}\n---\n{body}")
    )


def _metadata(
    recipe: Recipe, links: Sequence[Link], result: Evaluation | None, adapter: bool
) -> Any:
    from huggingface_hub import ModelCardData

    # The hub takes its own ids alone; and what it calls an adapter's base is what that belongs on.
    base = links[-2] if adapter else links[0]
    known = base.arm == "base" and on_hub(base.model)
    trained = links[1:]
    backends = {_backend(link.facts) for link in trained if link.facts}
    sources = [use.source.partition(":")[0] for use in recipe.tier_uses.values() if use.source]
    name = f"{recipe.run_name}-{links[-1].arm}"
    return ModelCardData(
        base_model=base.model if known else None,
        datasets=list(dict.fromkeys(s for s in sources if "/" in s and on_hub(s))) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[
            TAG,
            "scheduling",
            *dict.fromkeys(recipe.all_arms[link.arm].trainer for link in trained),
            "trl",
            *(["unsloth"] if "unsloth" in backends else []),
        ],
        **({"model_name": name, "eval_results": _results(recipe, links, result)} if result else {}),
    )


def _results(recipe: Recipe, links: Sequence[Link], result: Evaluation) -> list[Any]:
    """pass@1 of the exported model on the test problems of every tier, for the hub."""
    from huggingface_hub import EvalResult

    report, found = result.report, []
    for tier, of_tier in report["tiers"].items():
        at_1 = of_tier["arms"][links[-1].arm]["pass_at_k"]["1"]
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=TAG,
                dataset_name=f"{recipe.run_name}, tier {plain(tier)}",
                dataset_config=plain(tier),  # what tells results apart on the hub
                dataset_split="test",
                metric_type="pass@1",
                metric_value=round(at_1["value"], 4),
                metric_name=f"pass@1, success = {report['success']}",
                metric_args={
                    "interval": [round(at_1["low"], 4), round(at_1["high"], 4)],
                    "level": report["level"],
                    "problems": of_tier["problems"],
                    "samples": of_tier["samples"],
                },
            )
        )
    return found


def on_hub(model: str) -> bool:
    """Whether this is an id of the hub, by its form."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not is_local(model) and not model.endswith((".json", ".jsonl"))


def _shown(link: Link) -> str:
    """A model in a sentence."""
    if link.arm != "base":
        return f"the model `{link.arm}` of the same run"
    if on_hub(link.model):
        return f"{code(link.model)} of the Hugging Face hub"
    return f"the local model {code(called(link))}"


def called(link: Link) -> str:
    """What to load it by: an id of the hub, or the name of a folder that its user has. Of a path
    outside this tree the last part is shown; the rest is nobody else's business."""
    if link.arm != "base":
        return link.arm
    path = Path(link.model)
    private = path.is_absolute() or path.parts[:1] in (("~",), ("..",))
    return plain(path.name if private else link.model)


def _way(recipe: Recipe, link: Link) -> str:
    return _WAYS[recipe.all_arms[link.arm].trainer]


def _line(recipe: Recipe, before: Link | None, link: Link) -> str:
    """A line of the lineage."""
    if link.arm == "base":
        said = [f"`base`: {_shown(link)}"]
    elif before and link.facts:
        said = [f"`{link.arm}`: from `{before.arm}` by {_way(recipe, link)}"]
    else:
        said = [f"`{link.arm}`: trained again since, so that its own lineage is lost"]
    if link.sha256:
        said.append(f"SHA-256 `{link.sha256}`")
    if link.facts and link.facts.get("commit"):
        said.append(f"code at commit {code(link.facts['commit'])}")
    return ", ".join(said)


def _backend(facts: Mapping[str, Any]) -> str | None:
    return facts["settings"].get("backend")


def _settings(recipe: Recipe, link: Link) -> dict[str, Any]:
    """What a training really used, as its manifest says."""
    facts, settings = link.facts, link.facts["settings"]
    section = recipe.all_arms[link.arm].section
    given, used = settings.get(section, {}), dict(facts.get("trained_with", {}))
    if used.get("max_steps", 0) > 0:
        used.pop("num_train_epochs", None)  # does not count then
    found = {
        "trainer": section,
        "backend": _backend(facts),
        "seed": facts.get("seed"),
        **{key: settings.get(key) for key in ("dtype", "bits", "lora", "curriculum", "reward")},
        "tiers": settings.get("tiers") or None,
        "trainable_parameters": facts.get("trainable_parameters"),
        "seconds": facts.get("seconds"),
        "arguments": {key: used[key] for key in dict.fromkeys([*_SHOWN, *given]) if key in used},
        "versions": facts.get("versions"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _tables(report: Mapping[str, Any]) -> str:
    """pass@k and its differences, on every tier."""
    tiers = {code(tier): found for tier, found in report["tiers"].items()}
    shown = {**report, "tiers": tiers, "main": code(report["main"])}
    return markdown_of(sheet for sheet in report_sheets(shown) if sheet.columns[0] == "k").rstrip()


def _invalid(report: Mapping[str, Any], arm: str) -> float:
    """The share of an arm's answers on the main tier that are no valid schedule."""
    found = report["tiers"][report["main"]]["arms"][arm]
    return 1 - sum(found["statuses"].get(status, 0) for status in VALID) / found["answers"]


# --- Markdown ------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """A name on one line, without what cannot be seen."""
    seen = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(seen.split()) or "(nothing)"


def code(text: object) -> str:
    """A name as a code span, in which nothing is markup (CommonMark 0.31, 6.1). Not for cells of a
    table, whose pipes divide it all the same."""
    text = plain(text)
    ticks = "`" * (_longest_ticks(text) + 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """A text as a code block, in which nothing is markup (CommonMark 0.31, 4.5)."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def prose(text: str) -> str:
    """A sentence of ours in which a name may stand: no markup, no HTML, no link."""
    return re.sub(r"([\\`*_<>#|~&]|(?<=\])[(\[])", r"\\\1", plain(text))


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _lines_of_python(text: str) -> list[str]:
    """A text as Python string literals, a line each."""
    return [repr(line) for line in text.splitlines(keepends=True)]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "fenced": fenced,
        "prose": prose,
        "python": _lines_of_python,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
    }
    return environment
