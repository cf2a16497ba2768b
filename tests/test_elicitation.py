"""Elicitation: who is asked again, what the counts lead to, and the stage as a whole."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from running import refusal_of
from scripted import lines, place, solving

from data.common.files import Stage, read_jsonl, write_jsonl
from data.draw import make_problem
from data.rows import read_split
from data.sections import Margins
from data.tiers import TIERS
from eval import elicitation
from eval import judge as report
from eval.answers.counted import Solved, to_ask_again
from eval.answers.roles import JudgedArm
from eval.elicitation import conclusions_on
from eval.show.results import standing
from eval.stats.counts import Counts
from rewards.verify import Status, verify

N, FRESH = 8, 32
MARGINS = Margins(lift=2, resamples=200)
GRPO = {"grpo": {"trainer": "grpo"}}
SFT_GRPO = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}}
#: The base at its best, without which nothing is called new.
BEST = {"best": {"trainer": "none"}}
ASKED = {"base_best": "best"}
TWO_TIERS = {
    "main": "dense",
    "tiers": {"dense": {"train": 4, "val": 2, "test": 40}, "trap": {"train": 4, "test": 6}},
}


# --- counts made by hand --------------------------------------------------------------------


def solved_of(tiers, **solved):
    """Counts made by hand: ``tiers`` of the problems, and of each arm how often it solved each."""
    rows = [{"id": f"p{i}", "tier": tier} for i, tier in enumerate(tiers)]
    return Solved(rows, {arm: Counts(N, c) for arm, c in solved.items()})


def case_of(name="grpo", members=("grpo",), tiers=("dense",), start=None, best=None, forms=()):
    return JudgedArm(name, members, tiers, start, best, forms)


@pytest.mark.parametrize("named", [True, False])
def test_that_the_recipe_names_what_is_judged_is_said_where_it_names_nothing(world, named, capsys):
    elicitation.run(world.recipe(GRPO, {"arms": ["grpo"] if named else []}), force=False)
    said = capsys.readouterr().out
    assert "no arm to judge" in said
    assert ("conclusion.arms" in said) != named


def test_what_every_base_left_unsolved_all_are_asked_again():
    solved = solved_of(
        ["dense"] * 4, base=[0, 0, 3, 1], best=[0, 2, 0, 1], sft=[8] * 4, grpo=[8] * 4, form=[8] * 4
    )
    case = case_of(start="sft", best="best", forms=("form",))
    assert to_ask_again([case], solved) == {
        "base": [0, 1],  # 1 for expansion and shrinkage, which are against the base alone
        "best": [0],
        "sft": [0],
        "form": [0],
        "grpo": [0, 1],
    }


def test_what_a_judged_arm_left_unsolved_it_and_the_base_are_asked_again_and_nobody_else():
    solved = solved_of(
        ["dense"] * 4,
        base=[5, 5, 5, 0],
        sft=[0, 0, 0, 1],
        **{"grpo.1": [0, 5, 5, 5], "grpo.2": [5, 0, 5, 5]},
    )
    wanted = to_ask_again([case_of(members=("grpo.1", "grpo.2"), start="sft")], solved)
    assert wanted == {"base": [0, 1, 3], "sft": [3], "grpo.1": [0, 3], "grpo.2": [1, 3]}


def test_an_arm_is_asked_again_on_its_own_tiers_alone_and_cases_add_up():
    tiers = ["dense", "trap", "dense", "trap"]
    solved = solved_of(tiers, base=[0, 0, 4, 4], sft=[4, 4, 4, 0], grpo=[4, 4, 0, 0])
    of_grpo = case_of(tiers=("dense",), start="sft")
    of_sft = case_of(name="sft", members=("sft",), tiers=("trap",))
    assert to_ask_again([of_grpo], solved) == {"base": [0, 2], "sft": [0], "grpo": [0, 2]}
    both = {"base": [0, 1, 2, 3], "sft": [0, 1, 3], "grpo": [0, 2]}
    assert to_ask_again([of_grpo, of_sft], solved) == both
    assert to_ask_again([of_sft, of_grpo], solved) == both


@pytest.fixture(scope="module")
def problems():
    """Twice twenty test rows."""
    return [
        {
            "id": f"{tier}-{i}",
            "tier": tier,
            "problem": make_problem(5, "test", tier, TIERS[tier], i),
        }
        for tier in ("dense", "trap")
        for i in range(20)
    ]


def drawn(rows, case, seed, **chances):
    """What real stages count, of arms that are right with these chances a try."""
    rng = np.random.default_rng(seed)
    counts = {arm: Counts(N, rng.binomial(N, p)) for arm, p in chances.items()}
    for arm, places in to_ask_again([case], Solved(rows, counts)).items():
        n = np.zeros(len(rows), int)
        n[places] = FRESH
        counts[arm] = counts[arm].with_fresh(Counts(n, rng.binomial(n, chances[arm])))
    return Solved(rows, counts)


@pytest.fixture(scope="module")
def skill(problems):
    """Chances of a base: of three problems in ten none."""
    rng = np.random.default_rng(9)
    return np.where(rng.random(len(problems)) < 0.3, 0.0, rng.beta(0.7, 4, len(problems)))


@pytest.mark.parametrize("members", [("grpo",), ("grpo.1", "grpo.2", "grpo.3")])
def test_base_against_itself_is_never_new(problems, skill, members):
    case = case_of(members=members, tiers=("dense", "trap"), start="sft", best="best")
    chances = dict.fromkeys(("base", "best", "sft", *members), skill)
    for seed in range(15):
        found = conclusions_on(case, drawn(problems, case, seed, **chances), MARGINS, 0)
        assert (found.overall.conclusion, found.overall.seeds) == ("inconclusive", len(members))
        assert "new capability" not in {tier.conclusion for tier in found.tiers.values()}


def test_a_skill_that_no_base_has_is_new_and_one_that_the_start_has_is_not(problems, skill):
    skilled = np.where(skill == 0, 0.95, np.minimum(1, 2 * skill))
    case = case_of(tiers=("dense", "trap"), start="sft", best="best", forms=("form",))
    for start, expected in ((skill, "new capability"), (skilled, "distilled")):
        rivals = {"best": skill, "sft": start, "form": skill}
        solved = drawn(problems, case, 1, base=skill, **rivals, grpo=skilled)
        margins = Margins(lift=2, resamples=200, reach=0.1)  # for so few problems
        assert conclusions_on(case, solved, margins, 0).overall.conclusion == expected


# --- the stage ------------------------------------------------------------------------------


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


# --- arms and their roles -------------------------------------------------------------------


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
