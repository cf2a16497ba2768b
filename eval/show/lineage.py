"""The lineage of a trained model and its results, by the manifests of its run.

Only facts of the very weights that are there now count: an arm may have been trained again since
another started from it, or since it was evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.files import finished, sha256, stage_facts
from data.run import BASE, Run, maker
from data.sections import EvalSection
from eval.answers.files import way_of_asking
from eval.show.results import read_result, standing
from pipeline.model.load import is_local


@dataclass(frozen=True)
class Link:
    """One model on the way from the base to an arm.

    Attributes:
        arm: its name, ``base`` first.
        model: its folder or hub id.
        sha256: of its folder as the next one was trained from it; None for a model of the hub.
        facts: its training's manifest; empty for the base, and where it was trained again since.
    """

    arm: str
    model: str
    sha256: str | None
    facts: Mapping[str, Any]

    @property
    def on_hub(self) -> bool:
        """Whether it is named by an id of the hub."""
        return self.arm == BASE and not is_local(self.model)

    @property
    def called(self) -> str:
        """A base's folder; of one outside this tree the last part, since the rest is private."""
        path = Path(self.model)
        private = path.is_absolute() or path.parts[:1] in (("~",), ("..",))
        return path.name if private else self.model


@dataclass(frozen=True)
class Evaluation:
    """The results of ``make eval`` on a model.

    Attributes:
        report: ``report.json``, of the arms of the lineage alone.
        asking: how the arm was asked, and its answers were read.
        sentence: the conclusion on it, None where there is none.
        seeds: how many trained models that sentence is about.
    """

    report: Mapping[str, Any]
    asking: EvalSection
    sentence: str | None
    seeds: int


def lineage(run: Run, arm: str) -> list[Link]:
    """The models from the base to ``arm``. It begins later where one was trained again since.

    Raises:
        UserError: when an arm was trained from another model than the recipe starts it from now.
    """
    folder = Path(run.model(arm))
    links = [Link(arm, str(folder), sha256(folder), stage_facts(folder.parent))]
    while facts := links[0].facts:
        start = run.weights_of(run.arms[links[0].arm].start)
        model = run.model(start)
        if facts["settings"]["model"] != model:
            raise UserError(
                f"{links[0].model} was trained from {facts['settings']['model']}, and the recipe "
                f"starts it from {model} now: name the recipe and MODEL that it was trained with, "
                f"or train it again ({maker(links[0].arm)})"
            )
        known = facts["inputs"].get(model)
        same = start != BASE and finished(run.stage(start)) and sha256(Path(model)) == known
        links.insert(0, Link(start, model, known, stage_facts(run.stage(start)) if same else {}))
    return links


def evaluation(run: Run, links: Sequence[Link]) -> Evaluation | None:
    """The results of the last of ``links``, None where it has none. A model before it is in
    the report where its samples are of the weights in the lineage."""
    arm = links[-1].arm
    if not finished(run.eval):
        return None
    report, judging = read_result(run.report), stage_facts(run.eval)
    judged = judging["inputs"]
    counted = [x.arm for x in links if x.arm in report["arms"] and _is_counted(run, x, judged)]
    if arm not in counted:
        return None
    entry = arm.partition(".")[0]
    seeds = sum(name.partition(".")[0] == entry for name in run.arms)
    sentence = _sentence(run, arm, entry, report["arms"])
    # Answers that were drawn once may have been judged in another way since.
    lenient = judging["settings"]["lenient"][arm]
    asking = replace(way_of_asking(run.samples(arm).parent), lenient=lenient)
    return Evaluation(_of_arms(report, counted), asking, sentence, seeds)


def _is_counted(run: Run, link: Link, judged: Mapping[str, str]) -> bool:
    """Whether the samples that were judged are of the weights of ``link``."""
    path = run.samples(link.arm)
    if not finished(path.parent):
        return False
    facts = stage_facts(path.parent)
    drawn_from = facts["settings"]["model"], facts["inputs"].get(link.model)
    return drawn_from == (link.model, link.sha256) and facts["sha256"] == judged.get(str(path))


def _of_arms(report: Mapping[str, Any], arms: Sequence[str]) -> Mapping[str, Any]:
    """A report with these arms alone."""
    tiers = {}
    for tier, counted in report["tiers"].items():
        pairs = counted["differences"]
        tiers[tier] = {
            **counted,
            "arms": {arm: counted["arms"][arm] for arm in arms},
            "differences": [p for p in pairs if {p["tuned"], p["reference"]} <= set(arms)],
        }
    others = set(report["arms"]) - set(arms)  # policies stay
    shortcuts = {
        tier: {**one, "agree": {arm: of for arm, of in one["agree"].items() if arm not in others}}
        for tier, one in report["shortcuts"].items()
    }
    return {**report, "arms": list(arms), "tiers": tiers, "shortcuts": shortcuts}


def _sentence(run: Run, arm: str, entry: str, reported: Sequence[str]) -> str | None:
    """The conclusion on an arm's entry, where it stands and counts the arm."""
    path = standing(run.elicitation, run, reported)
    if path is None or str(run.verdicts(arm)) not in stage_facts(path.parent)["inputs"]:
        return None
    return read_result(path)["judged"].get(entry, {}).get("sentence")
