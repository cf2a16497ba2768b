"""The model card of a trained arm, as Markdown with the metadata that the hub reads.

Names (of tiers, models, runs) are shown as code, in which nothing is markup, texts of problems in
fences longer than any that they hold. What was not recorded is left out.
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
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.common.files import sha256
from data.rows import read_split
from data.run import BASE, Run
from data.sections import DataSection, EvalSection
from eval.show.lineage import Evaluation, Link
from eval.show.report_sheets import report_sheets
from eval.show.tables import markdown_of
from pipeline.model.load import is_local
from rewards.verify import VALID

#: In the metadata of every card; tells an export from other folders on the hub.
TAG = "slotwise"
#: What each trainer does, in words.
_WAYS = {
    "sft": "supervised fine-tuning on gold answers",
    "grpo": "GRPO with verifiable rewards",
    "rejection": "fine-tuning on its own verified successes",
}
#: Arguments of a trainer that are shown beside those that the recipe sets.
_SHOWN_ARGUMENTS = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "num_generations",
    "beta",
    "loss_type",
)


@dataclass(frozen=True)
class Export:
    """What a card is about.

    Attributes:
        links: the models from the base to the exported one.
        result: what was measured of it; None where nothing was.
        asking: the decoding of its ``generation_config.json``, ``max_tokens`` resolved.
        adapter: it is the LoRA adapter alone.
        gguf: name of a GGUF file beside it.
    """

    run: Run
    links: Sequence[Link]
    result: Evaluation | None
    asking: EvalSection
    adapter: bool = False
    gguf: str | None = None

    @property
    def arm(self) -> str:
        return self.links[-1].arm


def card(export: Export, data: DataSection) -> str:
    """Metadata and Markdown, the same for the same files."""
    run, links, result = export.run, export.links, export.result
    tiers = run.arms[export.arm].tiers or tuple(data.tiers)
    rows = [row for row in read_split(run, "train") if row["tier"] in tiers]
    path = run.split("train")
    same = links[-1].facts["inputs"].get(str(path)) == sha256(path)
    body = _environment().get_template("card.md.j2").render(
        run=run.folder.name,
        arm=export.arm,
        ways={link.arm: _WAYS[run.arms[link.arm].trainer] for link in links[1:]},
        links=links,
        start=links[-2] if export.adapter else None,
        gguf=export.gguf,
        example=max(rows, key=lambda row: row["tier"] == data.main),  # the first such one
        evaluation=result,
        tables=result and _tables(result.report),
        invalid=result and _invalid(result.report, export.arm),
        main=data.main,
        asking=export.asking,
        steps={x.arm: _settings(run.arms[x.arm].section, x.facts) for x in links if x.facts},
        problems=Counter(row["tier"] for row in rows) if same else {},
    )  # fmt: skip
    sources = [use["source"].partition(":")[0] for use in data.tiers.values() if "source" in use]
    metadata = _metadata(export, sources).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n{body}"))


def _metadata(export: Export, sources: Sequence[str]) -> ModelCardData:
    run, trained = export.run, export.links[1:]
    # The hub takes its own ids alone, and an adapter's base is what the adapter belongs on.
    base = export.links[-2] if export.adapter else export.links[0]
    trainers = [run.arms[link.arm].trainer for link in trained]
    backends = [link.facts["settings"].get("backend") for link in trained if link.facts]
    tags = [TAG, "scheduling", *trainers, "trl", *filter(None, backends)]
    results = _results(run, export.arm, export.result.report) if export.result else None
    return ModelCardData(
        base_model=base.model if base.arm == BASE and on_hub(base.model) else None,
        datasets=list(dict.fromkeys(s for s in sources if "/" in s and on_hub(s))) or None,
        library_name="peft" if export.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
        model_name=f"{run.folder.name}-{export.arm}" if results else None,
        eval_results=results,
    )


def _results(run: Run, arm: str, report: Mapping[str, Any]) -> list[EvalResult]:
    """pass@1 of a model on the test problems of every tier, for the hub."""
    results = []
    for tier, counted in report["tiers"].items():
        at_1 = counted["arms"][arm]["pass_at_k"]["1"]
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=TAG,
                dataset_name=f"{run.folder.name}, tier {plain(tier)}",
                dataset_config=plain(tier),  # distinguishes results on the hub
                dataset_split="test",
                metric_type="pass@1",
                metric_value=round(at_1["value"], 4),
                metric_name=f"pass@1, success = {report['success']}",
                metric_args={
                    "interval": [round(at_1["low"], 4), round(at_1["high"], 4)],
                    "level": report["level"],
                    "problems": counted["problems"],
                    "samples": counted["samples"],
                },
            )
        )
    return results


def is_repository(name: str) -> bool:
    """Whether the hub would take this as an id."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def on_hub(model: str) -> bool:
    """Whether this names a repository of the hub, not a file or a folder, by its form."""
    return is_repository(model) and not is_local(model) and not model.endswith((".json", ".jsonl"))


def called(link: Link) -> str:
    """What to load a model by: an id of the hub, or the name of a folder that its user has. Of a
    path outside this tree the last part is shown; the rest is private."""
    if link.arm != BASE:
        return link.arm
    path = Path(link.model)
    private = path.is_absolute() or path.parts[:1] in (("~",), ("..",))
    return plain(path.name if private else link.model)


def described(link: Link) -> str:
    """A model in a sentence."""
    if link.arm != BASE:
        return f"the model `{link.arm}` of the same run"
    known = on_hub(link.model)
    return f"{'' if known else 'the local model '}{code(called(link))}" + (
        " of the Hugging Face hub" if known else ""
    )


def _settings(section: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a training really used, as its manifest says."""
    settings = facts["settings"]
    used = dict(facts.get("trained_with", {}))
    if used.get("max_steps", 0) > 0:
        used.pop("num_train_epochs", None)  # does not count then
    names = dict.fromkeys([*_SHOWN_ARGUMENTS, *settings.get(section, {})])
    shown = {
        "trainer": section,
        "seed": facts.get("seed"),
        **{
            key: settings.get(key)
            for key in ("backend", "dtype", "bits", "lora", "curriculum", "reward", "tiers")
        },
        "arguments": {key: used[key] for key in names if key in used},
        **{key: facts.get(key) for key in ("trainable_parameters", "seconds", "versions")},
    }
    return {key: value for key, value in shown.items() if value not in (None, [])}


def _tables(report: Mapping[str, Any]) -> str:
    """pass@k and its differences, on every tier."""
    tiers = {code(tier): counted for tier, counted in report["tiers"].items()}
    shown = {**report, "tiers": tiers, "main": code(report["main"])}
    return markdown_of(sheet for sheet in report_sheets(shown) if sheet.columns[0] == "k").rstrip()


def _invalid(report: Mapping[str, Any], arm: str) -> float:
    """The share of an arm's answers on the main tier that are no valid schedule."""
    counted = report["tiers"][report["main"]]["arms"][arm]
    return 1 - sum(counted["statuses"].get(status, 0) for status in VALID) / counted["answers"]


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


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "called": called,
        "code": code,
        "described": described,
        "fenced": fenced,
        "prose": prose,
        "python": lambda text: [repr(line) for line in text.splitlines(keepends=True)],
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
    }
    return environment
