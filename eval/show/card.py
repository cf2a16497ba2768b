"""The model card of a trained arm, as Markdown with the metadata that the hub reads.

Names (of tiers, models, runs) are shown as code, in which nothing is markup, texts of problems in
fences longer than any that they hold. What was not recorded is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.common.files import sha256
from data.rows import read_split
from data.run import Run
from data.sections import DataSection, EvalSection
from eval.show.lineage import Evaluation, Link, is_repository
from eval.show.report_sheets import report_sheets
from eval.show.tables import markdown_of
from rewards.verify import VALID

#: In the metadata of every card; tells an export from other folders on the hub.
TAG = "slotwise"
#: The work of each trainer, in words.
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


def card_text(
    run: Run,
    data: DataSection,
    links: Sequence[Link],
    result: Evaluation | None,
    asking: EvalSection,
    adapter: bool = False,
    gguf: str = "",
) -> str:
    """Metadata and Markdown, the same for the same files.

    Args:
        links: the models from the base to the exported one.
        result: what was measured of it; None where nothing was.
        asking: the decoding of its ``generation_config.json``, ``max_tokens`` resolved.
        adapter: it is the LoRA adapter alone.
        gguf: name of a GGUF file beside it, or nothing.
    """
    arms = {link.arm: run.arms[link.arm] for link in links[1:]}
    arm = links[-1].arm
    rows = [
        row for row in read_split(run, "train") if row["tier"] in (arms[arm].tiers or data.tiers)
    ]
    path = run.split("train")
    same = links[-1].facts["inputs"].get(str(path)) == sha256(path)
    steps = {x.arm: _used_settings(arms[x.arm].trainer, x.facts) for x in links if x.facts}
    backends = [settings["backend"] for settings in steps.values() if "backend" in settings]
    tags = [TAG, "scheduling", *(trained.trainer for trained in arms.values()), "trl", *backends]
    sources = [use["source"].partition(":")[0] for use in data.tiers.values() if "source" in use]
    return _card_templates().get_template("card.md.j2").render(
        run=run.folder.name,
        arm=arm,
        links=links,
        ways={name: _WAYS[trained.trainer] for name, trained in arms.items()},
        start=links[-2] if adapter else None,
        gguf=gguf,
        tags=list(dict.fromkeys(tags)),
        datasets=[source for source in dict.fromkeys(sources) if is_data_set(source)],
        example=max(rows, key=lambda row: row["tier"] == data.main),  # the first such one
        evaluation=result,
        tables=result and _pass_tables(result.report),
        invalid=result and _invalid(result.report, arm),
        main=data.main,
        asking=asking,
        steps=steps,
        problems=Counter(row["tier"] for row in rows) if same else {},
    )  # fmt: skip


def is_data_set(source: str) -> bool:
    """Whether the source of a tier is a data set of the hub, not a file."""
    is_file = Path(source).exists() or source.endswith((".json", ".jsonl"))
    return "/" in source and is_repository(source) and not is_file


def _used_settings(trainer: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a training really used, as its manifest says."""
    section = "sft" if trainer == "rejection" else trainer
    settings, used = facts["settings"], dict(facts.get("trained_with", {}))
    if used.get("max_steps", 0) > 0:
        used.pop("num_train_epochs", None)  # does not count then
    names = dict.fromkeys([*_SHOWN_ARGUMENTS, *settings.get(section, {})])
    kept = ("backend", "dtype", "bits", "lora", "curriculum", "reward", "tiers")
    shown = {
        "trainer": trainer,
        "seed": facts.get("seed"),
        **{key: settings.get(key) for key in kept},
        "arguments": {key: used[key] for key in names if key in used},
        **{key: facts.get(key) for key in ("trainable_parameters", "seconds", "versions")},
    }
    return {key: value for key, value in shown.items() if value not in (None, [])}


def _pass_tables(report: Mapping[str, Any]) -> str:
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
def _card_templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "fenced": fenced,
        "json": json.dumps,
        "plain": plain,
        "prose": prose,
        "python": lambda text: [repr(line) for line in text.splitlines(keepends=True)],
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
    }
    return environment
