"""The model card of a trained arm, as Markdown with the metadata that the hub reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from data.rows import read_split
from data.run import Run
from data.sections import DataSection, EvalSection
from eval.show.lineage import Evaluation, Link
from eval.show.report_sheets import report_sheets
from eval.show.tables import markdown_of
from rewards.verify import VALID

#: The work of each trainer, in words.
_WAYS = {
    "sft": "supervised fine-tuning on gold answers",
    "grpo": "GRPO with verifiable rewards",
    "rejection": "fine-tuning on its own verified successes",
}


def card_text(
    run: Run,
    data: DataSection,
    links: Sequence[Link],
    result: Evaluation | None,
    asking: EvalSection,
) -> str:
    """Metadata and Markdown, the same for the same files.

    Args:
        links: the models from the base to the exported one.
        result: what was measured of it; None where nothing was.
        asking: the decoding of its ``generation_config.json``, ``max_tokens`` resolved.
    """
    base, arm = links[0], links[-1].arm
    trainers = {link.arm: run.arms[link.arm].trainer for link in links[1:]}
    tiers = run.arms[arm].tiers or data.tiers
    rows = [row for row in read_split(run, "train") if row["tier"] in tiers]
    metadata = ModelCardData(
        base_model=base.model if base.on_hub else None,
        license=_licence(base),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["slotwise", "scheduling", "trl", *trainers.values()])),
        model_name=f"{run.folder.name}-{arm}",
        eval_results=list(_eval_results(run, arm, result.report)) if result else None,
    )
    template = Path(__file__).with_name("templates") / "card.md.j2"
    settings = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return settings.from_string(template.read_text(encoding="utf-8")).render(
        metadata=metadata,
        run=run.folder.name,
        arm=arm,
        links=links,
        ways={name: _WAYS[trainer] for name, trainer in trainers.items()},
        example=next((row for row in rows if row["tier"] == data.main), rows[0]),
        problems=Counter(row["tier"] for row in rows),
        evaluation=result,
        tables=result and _pass_tables(result.report),
        invalid=result and _invalid(result.report, arm),
        main=data.main,
        asking=asking,
        steps={
            link.arm: _used_settings(trainers[link.arm], link.facts) for link in links if link.facts
        },
    )


def _licence(base: Link) -> str | None:
    """The licence that a model's own card names; of the hub, if that is within reach."""
    card = Path(base.model) / "README.md"
    if card.is_file() or not base.on_hub:
        return ModelCard.load(card).data.license if card.is_file() else None
    try:
        data = HfApi().model_info(base.model, timeout=10).card_data
    except (httpx.HTTPError, OSError):  # no network, or no such model any more
        return None
    return data.license if data else None


def _eval_results(run: Run, arm: str, report: Mapping[str, Any]) -> Iterator[EvalResult]:
    """pass@1 of an arm on every tier, in the hub's words."""
    for tier, counted in report["tiers"].items():
        at_1 = counted["arms"][arm]["pass_at_k"]["1"]
        yield EvalResult(
            task_type="text-generation",
            dataset_type="slotwise",
            dataset_name=f"{run.folder.name}, tier {tier}",
            dataset_config=tier,
            dataset_split="test",
            metric_type="pass@1",
            metric_name=f"pass@1, success = {report['success']}",
            metric_value=round(at_1["value"], 4),
            metric_args={
                "interval": [round(at_1[end], 4) for end in ("low", "high")],
                "level": report["level"],
                "problems": counted["problems"],
                "samples": counted["samples"],
            },
        )


def _used_settings(trainer: str, facts: Mapping[str, Any]) -> str:
    """The settings that a training really used, as its manifest says, in YAML: of the trainer's
    arguments those that the recipe sets."""
    settings, used = facts["settings"], facts.get("trained_with", {})
    asked = settings.get("sft" if trainer == "rejection" else trainer, {})
    kept = ("backend", "dtype", "bits", "lora", "reward", "tiers")
    shown = {
        "trainer": trainer,
        "seed": facts.get("seed"),
        **{key: settings.get(key) for key in kept},
        "arguments": {key: used[key] for key in asked if key in used},
        **{key: facts.get(key) for key in ("trainable_parameters", "seconds", "versions")},
    }
    known = {key: value for key, value in shown.items() if value not in (None, [])}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True)


def _pass_tables(report: Mapping[str, Any]) -> str:
    """pass@k and its differences, on every tier."""
    sheets = (sheet for sheet in report_sheets(report) if sheet.columns[0] == "k")
    return markdown_of(sheets).rstrip()


def _invalid(report: Mapping[str, Any], arm: str) -> float:
    """The share of an arm's answers on the main tier that are no valid schedule."""
    counted = report["tiers"][report["main"]]["arms"][arm]
    return 1 - sum(counted["statuses"].get(status, 0) for status in VALID) / counted["answers"]
