"""A run without models: real problems, and arms that answer from a script, by real stages."""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from running import rows_in

from data import recipe as recipes
from data.common import files
from data.common.files import Stage, write_jsonl
from data.common.seeds import seed_of
from data.draw import make_problem
from data.recipe import Recipe, load_recipe
from data.rows import new_row, row_to_json
from data.tiers import TIERS
from eval import elicitation
from eval import judge as report
from eval.answers import sampling
from eval.answers.asker import Asker
from eval.answers.sampling import sample_arm
from eval.sample import trained_arms

#: The answer of an arm: ``(row, way of asking, random stream of its own) -> text``.
Script = Callable[[dict[str, Any], Any, random.Random], str]

CONTENT = {
    "name": "scripted",
    "seed": 3,
    "model": "nobody/base",
    "data": {"main": "dense", "tiers": {"dense": {"train": 4, "val": 2, "test": 40}}},
    "sft": {},
    "grpo": {},
    "eval": {"samples": 8, "max_tokens": 12, "resamples": 100},
}
#: Few resamples, and few tries that a problem counts from.
MARGINS = {"lift": 2, "resamples": 200}


#: Each is proven once, not for each run.
_problem = cache(make_problem)


def place(row: dict[str, Any]) -> int:
    """The number of a problem in its tier."""
    return int(row["id"].rpartition("-")[2])


def solving(chance: float | Callable[[dict[str, Any]], float]) -> Script:
    """Right with a chance a try, of the row where it is a function; else an empty schedule."""

    def script(row: dict[str, Any], way: Any, rng: random.Random) -> str:
        now = chance(row) if callable(chance) else chance
        wrong = f"I do not know, {rng.random()}.\n<schedule>\n</schedule>"
        return row["gold"] if rng.random() < now else wrong

    return script


class Scripted(Asker):
    """An arm whose answers come from ``scripts``; ``asked`` is who was asked what, and how."""

    scripts: ClassVar[dict[str, Script]] = {}
    asked: ClassVar[list[tuple[str, str, list[str], Any]]] = []
    #: Ctrl-C comes before the answers to this many problems are there.
    patience: ClassVar[int | None] = None

    def batches(self, rows, asking) -> list[list[int]]:
        return [[i] for i in range(len(rows))]

    def answers(self, rows, asking, stream="sample") -> Iterator[list[dict[str, Any]]]:
        self.asked.append((self.arm, stream, [row["id"] for row in rows], asking))
        for count, row in enumerate(rows):
            if count == self.patience:
                raise KeyboardInterrupt
            rng = random.Random(seed_of(stream, self.arm, row["id"]))
            yield [
                {
                    "id": row["id"],
                    "arm": self.arm,
                    "sample": number,
                    "completion": self.scripts[self.arm](row, asking, rng),
                    "finish_reason": "stop",
                    "tokens": 9,
                }
                for number in range(asking.samples)
            ]


class World:
    """A recipe and its run in a folder; what it says of ``arms`` and ``conclusion`` may change."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.scripts, self.asked = folder, {}, []
        monkeypatch.setattr(recipes, "RUNS", folder / "runs")
        monkeypatch.setattr(files, "_commit", lambda: None)
        monkeypatch.setattr(sampling, "Asker", Scripted)
        monkeypatch.setattr(report, "passk_chart", lambda _: b"")
        monkeypatch.setattr(elicitation.likelihood, "measure", lambda *_, **__: {})
        monkeypatch.setattr(Scripted, "scripts", self.scripts)
        monkeypatch.setattr(Scripted, "asked", self.asked)
        monkeypatch.setattr(Scripted, "patience", None)

    def recipe(self, arms: dict, conclusion: dict | None = None, **changes: Any) -> Recipe:
        conclusion = {"fresh": 32, **(conclusion or {})}
        conclusion["margins"] = {**MARGINS, **conclusion.get("margins", {})}
        path = self.folder / "scripted.yaml"
        content = {**CONTENT, "arms": arms, "conclusion": conclusion, **changes}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        found = load_recipe(path)
        if not (found.run.folder / "data" / "manifest.json").exists():
            self._make_data(found)
        return found

    def _make_data(self, recipe: Recipe) -> None:
        folder = recipe.run.data
        for split in ("train", "val", "test"):
            rows = [
                row_to_json(
                    new_row(
                        f"{split}-{name}-{i:05d}",
                        split,
                        name,
                        _problem(recipe.seed, split, name, TIERS[name], i),
                        reasoning="none",
                    )
                )
                for name, use in recipe.tier_uses.items()
                for i in range(getattr(use, split))
            ]
            write_jsonl(folder / f"{split}.jsonl", rows)
        Stage(folder, "data", {}).finish([])

    def train(self, recipe: Recipe, *names: str) -> None:
        """Leave what a training leaves, of these arms or of all."""
        for name, arm in recipe.all_arms.items():
            if arm.trainer != "none" and (not names or name in names):
                model = recipe.run.folder / name / "model"
                model.mkdir(parents=True, exist_ok=True)
                for file in ("config.json", "model.safetensors", "tokenizer.json"):
                    (model / file).write_text(f"{file} of {name}")
                Stage(model.parent, name, {}).finish([])

    def evaluate(self, recipe: Recipe) -> dict[str, Any]:
        """``make eval``; the content of ``elicitation.json``."""
        for arm in trained_arms(recipe.run):
            sample_arm(recipe, arm, force=False)
        report.run(recipe, force=False)
        elicitation.run(recipe, force=False)
        return self.found(recipe)

    def evaluated(self, arms: dict, conclusion: dict | None = None, **changes: Any) -> Recipe:
        """A recipe whose arms are trained and evaluated."""
        recipe = self.recipe(arms, conclusion, **changes)
        self.train(recipe)
        self.evaluate(recipe)
        return recipe

    def found(self, recipe: Recipe) -> dict[str, Any]:
        return json.loads((recipe.run.folder / "eval/elicitation/elicitation.json").read_text())

    def again(self) -> dict[str, list[str]]:
        """By arm, the problems that it was asked again, so far."""
        return {arm: ids for arm, stream, ids, _ in self.asked if stream == "fresh"}


def lines(recipe: Recipe, arm: str, fresh: bool = False) -> list[dict[str, Any]]:
    """The samples of an arm as they lie on the disk."""
    path = recipe.run.samples(arm)
    path = path.parent / "fresh" / path.name if fresh else path
    return rows_in(path)
