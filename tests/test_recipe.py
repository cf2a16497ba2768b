"""Recipes: what a good one becomes, alone and on top of others, and whose run it is."""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from running import refusal_of

from data.recipe import Recipe, load_recipe, recipe_from
from data.sections import ARMS, Arm, Margins, RewardSection, TierUse
from data.tiers import TIERS, Tier

GOOD = {
    "name": "small",
    "model": "some/model",
    "data": {"main": "dense", "tiers": {"dense": {"train": 3, "val": 2, "test": 1}}},
    "sft": {},
    "grpo": {},
}


def load(tmp_path: Path, content: dict | str, **overrides: str) -> Recipe:
    path = tmp_path / "small.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text)
    return load_recipe(path, **overrides)


def changed(key: str, *value: object, of: dict = GOOD) -> dict:
    """The recipe with the dotted key set to the value, or left out where there is none."""
    recipe = copy.deepcopy(of)
    *parents, last = key.split(".")
    inner = recipe
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value:
        inner[last] = value[0]
    else:
        del inner[last]
    return recipe


def test_what_a_recipe_leaves_out_has_a_default(tmp_path):
    recipe = load(tmp_path, GOOD)
    assert (recipe.seed, recipe.dtype, recipe.lora) == (0, "float32", None)
    assert (recipe.eval.samples, recipe.eval.temperature) == (64, 1.0)
    assert (recipe.data.reasoning, recipe.data.reasoned) == ("computed", 1.0)
    assert recipe.reward == RewardSection("graded", None, False)
    trained = {name: arm for name, arm in recipe.all_arms.items() if arm.trainer != "none"}
    assert recipe.all_arms == ARMS
    assert trained == {"sft": Arm("sft", "base"), "grpo": Arm("grpo", "sft")}
    assert recipe.conclusion.base_best == "base-best"
    assert recipe.tier_uses == {"dense": TierUse(3, 2, 1, None, TIERS["dense"])}
    assert (recipe.model, recipe.run.folder) == ("some/model", Path("runs/small"))


def test_the_flags_of_a_stage_override_the_recipe(tmp_path):
    load(tmp_path, GOOD)
    given = argparse.Namespace(
        recipe=tmp_path / "small.yaml", model="other/model", run="else", backend=None, bits=None
    )
    recipe = recipe_from(given, begins=True)
    assert (recipe.model, recipe.run_name, recipe.name) == ("other/model", "else", "small")
    assert recipe.run.folder == Path("runs/else")
    named = {
        model: load_recipe(given.recipe, model).run_name for model in ("", "some/model", "a/b")
    }
    assert named == {"": "small", "some/model": "small", "a/b": "small-a-b"}


def test_what_a_recipe_changes_is_taken_and_the_rest_stays_as_it_is(tmp_path):
    source = {"source": "p/{split}.jsonl", "train": 1, "val": 1, "test": 1}
    dials = {"events": [3, 5], "rules": [1, 2], "kinds": ["gap", "at_most"], "binding": True}
    before = TIERS["dense"]
    recipe = changed("data.tiers.dense", {"train": 3, "val": 2, "test": 1, **dials})
    recipe = changed("data.tiers.published", source, of=recipe)
    reward = {"shape": "graded", "weights": {"optimal": 1, "ratio": 0.5}, "unsound": True}
    recipe |= {"reward": reward, "conclusion": {"margins": {"gain": 0.05}}}
    read = load(tmp_path, recipe)
    dense = replace(before, events=(3, 5), rules=(1, 2), kinds=("gap", "at_most"), binding=True)
    published = TierUse(1, 1, 1, "p/{split}.jsonl", Tier())
    assert read.tier_uses == {"dense": TierUse(3, 2, 1, None, dense), "published": published}
    assert TIERS["dense"] == before
    assert read.reward == RewardSection("graded", {"optimal": 1.0, "ratio": 0.5}, True)
    assert list(read.reward.weights) == ["optimal", "ratio"]
    assert read.conclusion.margins == Margins(gain=0.05)


THREE = changed(
    "arms",
    {
        "warm": {"trainer": "sft", "seeds": [3, 4], "tiers": ["dense"]},
        "paid": {
            "trainer": "grpo",
            "start": "warm.4",
            "reward": {"shape": "binary"},
            "settings": {"learning_rate": 1e-3, "max_steps": 5},
        },
        "cold": {"trainer": "grpo"},
    },
)


def test_an_arm_with_seeds_is_trained_once_with_each(tmp_path):
    recipe = load(tmp_path, THREE)
    assert list(recipe.all_arms) == ["warm.3", "warm.4", "paid", "cold"]
    assert recipe.all_arms["warm.3"] == Arm("sft", seeds=(3,), tiers=("dense",))
    assert recipe.all_arms["cold"] == Arm("grpo", start="base")


def test_a_recipe_stands_for_one_arm_with_that_arms_own_settings(tmp_path):
    recipe = load(tmp_path, THREE | {"seed": 9, "grpo": {"max_steps": 2, "beta": 0.1}})
    paid, cold = recipe.for_arm("paid"), recipe.for_arm("cold")
    assert paid.grpo == {"max_steps": 5, "beta": 0.1, "learning_rate": 1e-3}
    assert (paid.reward, paid.seed, paid.sft) == (RewardSection("binary"), 9, {})
    assert [recipe.for_arm(name).seed for name in ("warm.3", "warm.4", "cold")] == [3, 4, 9]
    assert (cold.grpo, cold.reward) == (recipe.grpo, recipe.reward)
    assert recipe.for_arm("base") == recipe
    assert recipe.grpo == {"max_steps": 2, "beta": 0.1}, "the recipe itself is as it was"


def test_the_arm_called_grpo_is_judged_unless_others_are_named(tmp_path):
    seeded = {"trainer": "grpo", "seeds": [1, 2]}
    both = changed("arms", {"sft": {"trainer": "sft"}, "grpo": seeded})
    assert load(tmp_path, GOOD).judged() == ["grpo"]
    assert load(tmp_path, changed("arms", {"sft": {"trainer": "sft"}})).judged() == []
    recipe = load(tmp_path, changed("conclusion.arms", ["sft", "grpo"], of=both))
    assert recipe.judged() == ["sft", "grpo"]
    assert recipe.arms["grpo"].members("grpo") == ["grpo.1", "grpo.2"]


def test_a_new_tier_is_like_another_one_or_has_attributes_of_its_own(tmp_path):
    tiers = {
        "dense": {"train": 1, "val": 1, "test": 1},
        "short": {"like": "trap", "test": 1, "events": [3, 4]},
        "own": {"test": 1, "window": ["10:00", "14:00"]},
    }
    uses = load(tmp_path, changed("data.tiers", tiers)).tier_uses
    assert uses["short"].tier == replace(TIERS["trap"], events=(3, 4))
    assert uses["own"].tier == Tier(window=("10:00", "14:00"))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 0.0001), ("1E5", 100000.0), ("1.5e-3", 0.0015), (".5", 0.5), ("5.", 5.0),
        ("-3", -3), ("+2", 2), ("1_000", 1000), ("0", 0), ("540", 540),
        # Not the truth value, base-60 number, octal number and date that YAML 1.1 makes of these.
        ("no", "no"), ("on", "on"), ("17:00", "17:00"), ("09:00", "09:00"), ("010", "010"),
        ("2026-01-31", "2026-01-31"), ("2026-13-45", "2026-13-45"),
        ("1e-4x", "1e-4x"), ("1e", "1e"), ("e5", "e5"), ("'1e-4'", "1e-4"),
        ("true", True), ("False", False), ("null", None),
    ],
)  # fmt: skip
def test_a_value_is_read_as_it_is_meant(tmp_path, written, read):
    text = yaml.safe_dump({**GOOD, "sft": None}).replace("sft: null", f"sft: {{x: {written}}}")
    value = load(tmp_path, text).sft["x"]
    assert (value, type(value)) == (read, type(read))


def test_a_recipe_that_ships_goes_by_its_bare_name(tmp_path):
    for name in ("qwen2.5-7b", "qwen2.5-7b.yaml", "pipeline/recipes/qwen2.5-7b"):
        assert load_recipe(Path(name)).name == "qwen2.5-7b"
    assert load(tmp_path, {"extends": "tiny", "name": "above"}).data.main == "busy"
    for name, end in (("Qwen2.5-7B", "did you mean 'qwen2.5-7b'?"), ("zzz", "thinking, tiny")):
        assert refusal_of(lambda name=name: load_recipe(Path(name))).endswith(end)


def test_a_run_is_not_given_to_another_recipe_or_model_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "copy.yaml"):
        Path(name).write_text(yaml.safe_dump(GOOD))

    def asked(path="mine.yaml", begins=True, **given):
        flags = {"model": None, "run": None, "backend": None, "bits": None, "force": False}
        return recipe_from(argparse.Namespace(recipe=Path(path), **(flags | given)), begins)

    first = asked().run
    first.belong_to(Path("mine.yaml"))
    # Another model has a run of its own, which is said.
    other = asked(model="an/other").run
    assert other.folder != first.folder
    assert str(other.folder) in capsys.readouterr().err
    of_another = ("belongs to the recipe mine.yaml ", " RUN=name")
    refusal_of(lambda: asked("copy.yaml"), *of_another)
    refusal_of(lambda: asked(model="an/other", run="small"), *of_another)
    asked("copy.yaml", force=True)  # changes hands
    assert asked("copy.yaml").run == first
    refusal_of(asked, "belongs to the recipe copy.yaml")
    misspelt = ("does not exist; ", "; did you mean 'small'?")
    refusal_of(lambda: asked("copy.yaml", begins=False, run="smal"), *misspelt)


# --- recipes on top of others ----------------------------------------------------------------


def extend(tmp_path: Path, above: dict, below: dict = GOOD) -> Recipe:
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(below, sort_keys=False))
    return load(tmp_path, {"extends": "below.yaml", **above})


def test_a_recipe_that_extends_another_says_only_what_differs(tmp_path):
    below = GOOD | {"seed": 5, "sft": {"max_steps": 3, "packing": True}, "lora": {"r": 4}}
    recipe = extend(tmp_path, {"name": "above", "sft": {"max_steps": 7}, "lora": None}, below)
    assert (recipe.name, recipe.run_name, recipe.seed) == ("above", "above", 5)
    assert recipe.sft == {"max_steps": 7, "packing": True}
    assert recipe.lora is None
    assert recipe.path == tmp_path / "small.yaml"
    assert extend(tmp_path, {}) == load(tmp_path, GOOD)


def test_tiers_and_arms_are_not_merged_but_replaced(tmp_path):
    above = {"arms": {"grpo": {"trainer": "grpo"}}}
    above["data"] = {"main": "blog", "tiers": {"blog": {"train": 1, "val": 1, "test": 1}}}
    below = changed("data.reasoning", "none")
    below["arms"] = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}}
    recipe = extend(tmp_path, above, below)
    assert list(recipe.tier_uses) == ["blog"]
    assert recipe.arms == {"grpo": Arm("grpo")}
    assert recipe.data.reasoning == "none"


def test_a_null_leaves_out_an_inherited_tier_or_arm_and_keeps_the_others(tmp_path):
    below = changed("data.tiers.trap", {"test": 1})
    below["arms"] = {"sft": {"trainer": "sft"}, "cold": {"trainer": "grpo"}}
    above = {"data": {"tiers": {"trap": None, "blog": {"test": 2}}}, "arms": {"sft": None}}
    recipe = extend(tmp_path, above, below)
    assert list(recipe.tier_uses) == ["dense", "blog"]
    assert list(recipe.arms) == ["cold"]
    trop = {"data": {"tiers": {"trop": None}}}
    refusal_of(lambda: extend(tmp_path, trop, below), "data.tiers.trop ", "did you mean 'trap'?")
