"""Elicitation: the stage as a whole, and its arms in their roles."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from running import refusal_of
from scripted import lines, place, solving

from data.common.files import Stage, read_jsonl, write_jsonl
from data.rows import read_split
from data.sections import Margins
from eval import elicitation
from eval import judge as report
from eval.show.results import standing
from rewards.verify import Status, verify

N, FRESH = 8, 32
GRPO = {"grpo": {"trainer": "grpo"}}
SFT_GRPO = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}}
#: The base at its best, without which nothing is called new.
BEST = {"best": {"trainer": "none"}}
ASKED = {"base_best": "best"}
TWO_TIERS = {
    "main": "dense",
    "tiers": {"dense": {"train": 4, "val": 2, "test": 40}, "trap": {"train": 4, "test": 6}},
}


def narrow(row):
    """What the base solves: of the first twelve problems none."""
    return 0.0 if place(row) < 12 else 0.6


WEAK, TAUGHT = solving(narrow), solving(0.95)


def judged_run(world, arms=GRPO, conclusion=None, **changes):
    """A recipe whose run is evaluated: the base is weak, and so are others without a script."""
    recipe = world.recipe(arms, conclusion, **changes)
    for name in recipe.run.names:
        world.scripts.setdefault(name, TAUGHT if name == "grpo" else WEAK)
    world.train(recipe)
    return recipe, world.evaluate(recipe)


def overall(found, arm="grpo"):
    return found["judged"][arm]["overall"]


def test_an_arm_that_solves_what_base_never_does_has_a_new_capability(world, capsys):
    recipe, found = judged_run(world, BEST | SFT_GRPO, ASKED)
    assert overall(found)["conclusion"] == "new capability"
    assert overall(found)["estimates"]["certified"]["value"] == pytest.approx(12 / 40)
    assert overall(found)["estimates"]["control"]["value"] == 0
    assert found["sentence"] == found["judged"]["grpo"]["sentence"]
    assert found["sentence"] in capsys.readouterr().out
    words = recipe.run.elicitation.with_suffix(".md").read_text()
    assert words.startswith(found["sentence"])
    assert "| GRPO on dense | new capability |" in words
    assert "| 12 of 40 | 32 | 100.0" in words


def test_the_base_asked_twice_is_no_new_capability(world):
    _, found = judged_run(world, {"again": {"trainer": "none"}}, {"arms": ["again"]})
    assert overall(found, "again")["conclusion"] == "inconclusive"
    dense = found["judged"]["again"]["tiers"]["dense"]
    for key in ("expansion", "shrinkage"):
        assert dense[key]["again"]["share"]["value"] == 0
    assert overall(found, "again")["estimates"]["beyond base"]["value"] <= 0


def recount(recipe, arm, fresh=False):
    """Of the samples as they lie on the disk: by problem, how many there are and are optimal."""
    problems = {row["id"]: row["problem"] for row in read_split(recipe.run, "test")}
    n, c = Counter(), Counter()
    for row in lines(recipe, arm, fresh):
        n[row["id"]] += 1
        c[row["id"]] += verify(problems[row["id"]], row["completion"]).status == Status.OPTIMAL
    return {name: (n[name], c[name]) for name in problems}


def test_every_count_is_that_of_the_raw_samples(world):
    rare = solving(lambda row: (place(row) % 5) / 30)
    world.scripts |= {"base": rare, "grpo.1": solving(0.1), "grpo.2": rare}
    recipe, found = judged_run(world, {"grpo": {"trainer": "grpo", "seeds": [1, 2]}})
    tier = found["judged"]["grpo"]["tiers"]["dense"]
    names = ("base", "grpo.1", "grpo.2")
    first, fresh = ({a: recount(recipe, a, when) for a in names} for when in (False, True))
    rates = {arm: np.mean([c / n for n, c in first[arm].values()]) for arm in names}
    tuned = np.mean([rates["grpo.1"], rates["grpo.2"]])
    assert tier["pass_at_1"]["base"]["value"] == pytest.approx(rates["base"])
    assert tier["pass_at_1"]["grpo"]["value"] == pytest.approx(tuned)
    assert tier["estimates"]["gain over base"]["value"] == pytest.approx(tuned - rates["base"])
    budget = tier["budget"]
    assert (budget["n"], budget["reach"], budget["fresh"]) == (N, N + FRESH, FRESH)
    missed = {arm: {name for name, (_, c) in first[arm].items() if c == 0} for arm in names}
    assert all(missed.values())
    for member in names[1:]:
        cells = tier["two_by_two"][member]
        assert cells["neither"] == len(missed["base"] & missed[member])
        assert cells["only_tuned"] == len(missed["base"] - missed[member])
        assert cells["only_base"] == len(missed[member] - missed["base"])
        assert sum(cells[key] for key in ("both", "only_base", "only_tuned", "neither")) == 40
        for key, by, other in (("expansion", "base", member), ("shrinkage", member, "base")):
            expanded = tier[key][member]
            assert (expanded["unsolved"], expanded["tries"]) == (len(missed[by]), FRESH)
            for side, arm in (("tuned", other), ("reference", by)):
                right = [fresh[arm][name][1] > 0 for name in missed[by]]
                assert expanded[side]["value"] == pytest.approx(np.mean(right))
    # Exactly those were asked again, each as often as the recipe says.
    for arm in names:
        of_either = missed["base"] | missed["grpo.1"] | missed["grpo.2"]
        due = of_either if arm == "base" else missed["base"] | missed[arm]
        assert {name for name, (n, _) in fresh[arm].items() if n} == due
        assert {n for n, _ in fresh[arm].values()} <= {0, FRESH}


def test_a_changed_margin_asks_nobody_and_more_confirmation_samples_do(world, capsys):
    arms = BEST | GRPO
    recipe, found = judged_run(world, arms, ASKED)
    world.asked.clear()
    capsys.readouterr()
    assert world.evaluate(recipe) == found
    # Three arms asked, and asked again, the report, and the conclusion.
    assert capsys.readouterr().out.count("up to date") == 3 + 3 + 1 + 1
    changed = world.evaluate(world.recipe(arms, ASKED | {"margins": {"new": 0.4, "reach": 0.5}}))
    assert world.asked == []
    assert (found["margins"]["new"], changed["margins"]["new"]) == (Margins().new, 0.4)
    assert overall(found)["conclusion"] == "new capability"
    assert overall(changed)["conclusion"] != "new capability"
    more = world.evaluate(world.recipe(arms, ASKED | {"fresh": 40}))
    assert [asked[:2] for asked in world.asked] == [
        (arm, "fresh") for arm in ("base", "best", "grpo")
    ]
    assert overall(more)["budget"]["reach"] == N + 40


def test_verdicts_that_are_evenly_short_are_found_before_anyone_is_asked_again(world):
    recipe, _ = judged_run(world)
    path = recipe.run.verdicts("grpo")
    write_jsonl(path, [row for _, row in read_jsonl(path) if row["sample"] < N - 1])
    world.asked.clear()
    refusal_of(lambda: elicitation.run(recipe, force=True), f"{path} is not of the answers")
    assert world.asked == []


def test_a_conclusion_stands_only_while_all_that_it_counts_is_there_and_the_same(world):
    recipe, _ = judged_run(world, SFT_GRPO)
    reported, path = ["base", "sft", "grpo"], recipe.run.elicitation
    assert standing(path, recipe.run, reported) == path
    fresh = recipe.run.samples("base").parent / "fresh" / "samples.jsonl"
    content = fresh.read_bytes()
    fresh.write_bytes(content[: len(content) // 2])  # as Ctrl-C leaves it
    assert standing(path, recipe.run, reported) is None
    fresh.write_bytes(content)
    assert standing(path, recipe.run, reported) == path
    assert standing(path, recipe.run, ["base"]) is None  # the recipe has no grpo any more
    shutil.rmtree(recipe.run.folder / "grpo")
    shutil.rmtree(recipe.run.samples("grpo").parent)
    assert standing(path, recipe.run, reported) is None
    world.evaluate(recipe)
    assert not recipe.run.elicitation.with_name("manifest.json").exists()


def test_a_tier_that_base_solves_takes_nothing_from_what_is_said_of_another(world):
    """Nothing is asked again there, so all tiers together are about the other's samples."""
    world.scripts["base"] = solving(lambda row: narrow(row) if row["tier"] == "dense" else 1.0)
    world.scripts["best"] = world.scripts["base"]
    _, found = judged_run(world, BEST | GRPO, ASKED, data=TWO_TIERS)
    tiers = found["judged"]["grpo"]["tiers"]
    assert tiers["trap"]["budget"]["fresh"] == 0
    for one in (overall(found), tiers["dense"]):
        assert one["conclusion"] == "new capability"
        assert (one["budget"]["fresh"], one["budget"]["reach"]) == (FRESH, N + FRESH)


LENIENT = {"trainer": "none", "eval": {"lenient": True}}
ROLES = {
    "best": {**LENIENT, "tune": {"temperature": [0.5, 1.0]}},
    **SFT_GRPO,
    "form": {"trainer": "grpo", "start": "sft"},
}
NAMED = {"base_best": "best", "format_only": "form"}


def test_arms_that_were_not_sampled_are_said_and_left_out(world, capsys):
    world.scripts |= dict.fromkeys(("base", "best", "sft", "form"), WEAK) | {"grpo": TAUGHT}
    recipe = world.recipe(ROLES, NAMED)
    world.train(recipe, "sft", "grpo")
    found = world.evaluate(recipe)
    assert "form was not sampled" in capsys.readouterr().out
    assert {"beyond base", "beyond sft"} < overall(found)["estimates"].keys()
    assert "beyond format_only" not in overall(found)["estimates"]
    assert "form" not in found["tiers"]["dense"]["coverage"]
    world.train(recipe, "form")
    found = world.evaluate(recipe)
    assert "beyond format_only" in overall(found)["estimates"]
    assert list(found["tiers"]["dense"]["coverage"]) == ["base", "best", "sft", "grpo", "form"]


@pytest.mark.parametrize("named", [True, False])
def test_that_the_recipe_names_what_is_judged_is_said_where_it_names_nothing(world, named, capsys):
    elicitation.run(world.recipe(GRPO, {"arms": ["grpo"] if named else []}), force=False)
    said = capsys.readouterr().out
    assert "no arm to judge" in said
    assert ("conclusion.arms" in said) != named


def test_without_an_arm_to_judge_nothing_is_asked_again_and_nothing_written(world):
    world.scripts |= {"base": WEAK, "sft": WEAK}
    recipe = world.recipe(SFT_GRPO)
    world.train(recipe, "sft")
    with pytest.raises(FileNotFoundError):
        world.evaluate(recipe)
    assert world.again() == {}


def test_a_skill_that_the_base_has_when_read_leniently_is_not_new(world):
    """The base knows, but leaves out a tag; read leniently it is right, first and asked again."""

    def clumsy(row, way, rng):
        text = solving(0.5)(row, way, rng)
        return text.replace("</schedule>", "") if place(row) < 12 else text

    world.scripts |= {"base": clumsy, "best": clumsy}
    arms = {"best": LENIENT, **GRPO}
    _, found = judged_run(world, arms, ASKED | {"margins": {"reach": 0.2}})
    assert overall(found)["conclusion"] == "elicited"
    # The base at its best leaves nothing unsolved; what is asked again is for the expansion.
    assert list(world.again()) == ["base", "grpo"]
    assert overall(found)["estimates"]["certified"]["value"] == 0
    unasked = overall(world.evaluate(world.recipe(arms)))
    assert unasked["conclusion"] == "inconclusive"
    assert all(f"conclusion.{key}" in unasked["reason"] for key in NAMED)


def test_each_judged_arm_has_its_own_conclusion_on_its_own_tiers(world):
    arms = {
        **BEST,
        "slow": {"trainer": "grpo", "seeds": [1, 2, 3]},
        "quick": {"trainer": "grpo", "tiers": ["dense"]},
    }
    world.scripts["quick"] = TAUGHT
    _, found = judged_run(world, arms, ASKED | {"arms": ["slow", "quick"]}, data=TWO_TIERS)
    slow, quick = found["judged"].values()
    assert list(found["judged"]) == ["slow", "quick"]
    assert found["sentence"] == slow["sentence"]
    assert [list(one["tiers"]) for one in (slow, quick)] == [["dense", "trap"], ["dense"]]
    assert [one["overall"]["seeds"] for one in (slow, quick)] == [3, 1]
    assert slow["overall"]["problems"] == 46
    assert slow["overall"]["conclusion"] == "inconclusive"
    assert quick["overall"]["conclusion"] == "new capability"
    for key in ("two_by_two", "crossing", "expansion", "shrinkage"):
        assert list(slow["tiers"]["dense"][key]) == ["slow.1", "slow.2", "slow.3"]
        assert list(quick["tiers"]["dense"][key]) == ["quick"]
    trap = {name for ids in world.again().values() for name in ids if "trap" in name}
    assert trap  # the base and the slow one are asked again there, the quick one is not
    assert not trap & set(world.again()["quick"])
    assert list(found["detectable"]) == list(found["tiers"]) == ["dense", "trap"]


def test_only_answers_of_a_models_own_distribution_are_scored_under_models(world, monkeypatch):
    ways = {
        "cool": {"eval": {"temperature": 0.5}},
        "nucleus": {"eval": {"top_p": 0.9}},
        "shown": {"eval": {"shots": 1}},
        "tuned": {"tune": {"temperature": [0.5]}},
        "lenient": {"eval": {"lenient": True}},
    }
    arms = SFT_GRPO | {name: {"trainer": "none", **way} for name, way in ways.items()}
    scored = []

    def measure(models, rows, asked, references, *_):
        scored.append((list(models), list(rows), references))
        assert {row["arm"] for row in rows["sft"]} == {"sft"}
        return {}

    monkeypatch.setattr(elicitation.likelihood, "measure", measure)
    judged_run(world, arms, {"arms": ["grpo", *ways]})
    bare = ["base", "sft", "grpo", "lenient"]
    assert scored == [(bare, bare, ("base", "sft"))]


def test_an_arm_trained_from_another_model_than_the_one_beside_it_is_named(world, capsys):
    recipe = world.recipe(SFT_GRPO)
    world.scripts |= dict.fromkeys(recipe.run.names, solving(0.2))
    world.train(recipe)
    sft = recipe.run.stage("sft") / "model"
    results = [recipe.run.report, recipe.run.elicitation]

    def notes():
        Stage(recipe.run.stage("grpo"), "grpo", {"model": str(sft)}, [sft]).finish([])
        (sft / "model.safetensors").write_text("of another training")
        world.evaluate(recipe)
        return [json.loads(path.read_text()).get("notes") for path in results]

    [note], again = notes()
    assert again == [note]
    assert note.startswith("Note: GRPO was not trained from SFT as it is now")
    assert capsys.readouterr().out.count(f"\n{note}\n") == 2
    assert all(note in path.with_suffix(".md").read_text() for path in results)
    assert notes() == [None, None]  # trained again, from the model that is there
    Stage(sft.parent, "sft", {"model": "old/base"}).finish([])
    (recipe.run.stage("grpo") / "manifest.json").unlink()
    of_sft, of_grpo = report.strange_starts(recipe.run, ["base", "sft", "grpo"])
    assert ("`make sft`" in of_sft, "`make grpo`" in of_grpo) == (True, True)
