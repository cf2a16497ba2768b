"""Recipes: what a good one becomes, and the one sentence that every mistake in one earns."""

import argparse
import copy
from pathlib import Path

import pytest
import yaml

from data.errors import UserError
from data.recipe import TIERS, Recipe, TierUse, load_recipe, nearest, recipe_from
from data.tiers import Tier

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "pipeline" / "recipes").glob("*.yaml"))

GOOD = {
    "name": "small",
    "model": "some/model",
    "data": {"main": "dense", "tiers": {"dense": {"train": 3, "val": 2, "test": 1}}},
    "rewards": {"optimal": 1},
    "sft": {},
    "grpo": {},
}


def load(tmp_path: Path, content: dict | str, **overrides: str) -> Recipe:
    path = tmp_path / "small.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_recipe(path, **overrides)


def changed(key: str, *value: object) -> dict:
    """GOOD with the dotted key set to the value, or left out where there is none."""
    recipe = copy.deepcopy(GOOD)
    *parents, last = key.split(".")
    inner = recipe
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value:
        inner[last] = value[0]
    else:
        del inner[last]
    return recipe


def refusal(tmp_path: Path, content: dict | str) -> str:
    """What is said of a recipe, after its file's name."""
    with pytest.raises(UserError) as refused:
        load(tmp_path, content)
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith(f"{tmp_path / 'small.yaml'}:")
    return text.removeprefix(f"{tmp_path / 'small.yaml'}:").strip()


# --- good recipes --------------------------------------------------------------------------


def test_what_a_recipe_leaves_out_has_a_default(tmp_path):
    recipe = load(tmp_path, GOOD)
    assert (recipe.seed, recipe.dtype, recipe.init, recipe.lora) == (0, "float32", "sft", None)
    assert (recipe.eval.samples, recipe.eval.temperature, recipe.data.reasoning) == (64, 1.0, True)
    assert recipe.rewards == {"optimal": 1.0}
    assert recipe.tier_uses() == {"dense": TierUse(3, 2, 1, None, TIERS["dense"])}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_we_ship_is_sound(path):
    from pipeline.settings import check

    recipe = load_recipe(path)
    check(recipe)
    assert recipe.name == path.stem  # so `RECIPE=…/x.yaml` and `runs/x` are found together


def test_the_default_recipe_is_there():
    assert "RECIPE ?= pipeline/recipes/tiny.yaml" in (ROOT / "Makefile").read_text()
    assert ROOT / "pipeline" / "recipes" / "tiny.yaml" in RECIPES


def test_model_and_run_override_the_recipe(tmp_path):
    recipe = load(tmp_path, GOOD, model="other/model", run="elsewhere")
    assert (recipe.model, recipe.run, recipe.name) == ("other/model", "elsewhere", "small")
    assert recipe.folder == Path("runs/elsewhere")


def test_without_overrides_the_run_is_the_recipes_name(tmp_path):
    recipe = load(tmp_path, GOOD)
    assert (recipe.model, recipe.folder) == ("some/model", Path("runs/small"))


def test_the_flags_of_a_stage_reach_the_recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    given = argparse.Namespace(recipe=path, model="m", run="r")
    assert (recipe_from(given).model, recipe_from(given).run) == ("m", "r")


def test_a_tier_can_be_changed_and_the_named_one_stays_as_it_is(tmp_path):
    named = TIERS["dense"].events
    recipe = load(tmp_path, changed("data.tiers.dense.events", [3, 5]))
    tier = recipe.tier_uses()["dense"].tier
    assert tier.events == (3, 5)
    assert tier.window == TIERS["dense"].window
    assert TIERS["dense"].events == named != (3, 5)


def test_an_imported_tier_may_have_any_name(tmp_path):
    source = {"source": "p/{split}.jsonl", "train": 1, "val": 1, "test": 1}
    uses = load(tmp_path, changed("data.tiers.published", source)).tier_uses()
    assert uses["published"] == TierUse(1, 1, 1, "p/{split}.jsonl", Tier())


# --- YAML as people write it ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("+2", 2),
        ("1_000", 1000),
        ("0", 0),
        ("540", 540),
        # Not the truth value, base-60 number, octal number and date that YAML 1.1 makes of these.
        ("no", "no"),
        ("on", "on"),
        ("17:00", "17:00"),
        ("09:00", "09:00"),
        ("010", "010"),
        ("2026-01-31", "2026-01-31"),
        ("2026-13-45", "2026-13-45"),
        ("1e-4x", "1e-4x"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("'1e-4'", "1e-4"),
    ],
)
def test_a_value_is_read_as_it_is_meant(tmp_path, written, read):
    text = yaml.safe_dump({**GOOD, "sft": None}).replace("sft: null", f"sft: {{x: {written}}}")
    value = load(tmp_path, text).sft["x"]
    assert (value, type(value)) == (read, type(read))


def test_a_window_needs_no_quotes(tmp_path):
    text = yaml.safe_dump(changed("data.tiers.dense.window", "HERE"))
    recipe = load(tmp_path, text.replace("HERE", "[08:00, 17:30]"))
    assert recipe.tier_uses()["dense"].tier.window == ("08:00", "17:30")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nsft: [1\ngrpo: 2\n", "3 is not valid YAML"),
        ("name: a\n\tx: 1\n", "2 is not valid YAML"),
        ("name: a\nsft: {}\nsft: {}\n", "3 is not valid YAML (key 'sft' is given twice)"),
        (
            "name: a\nsft:\n  max_steps: 1\n  max_steps: 2\n",
            "4 is not valid YAML (key 'max_steps' is given twice)",
        ),
        ("name: !!python/object:os.system x\n", "1 is not valid YAML"),
        ("{[1]: 2}", "1 is not valid YAML"),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, text, says):
    assert refusal(tmp_path, text).startswith(says)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"small\.yaml is not a UTF-8 text file$"):
        load_recipe(path)


def test_a_file_with_a_control_character_is_one_sentence(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: x\n\x00")
    with pytest.raises(UserError, match=r"small\.yaml is not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["", "- 1\n", "tiny\n", "3"])
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path, text):
    assert refusal(tmp_path, text) == "the recipe must be a mapping of keys"


def test_a_missing_recipe_is_answered_with_the_nearest_name(tmp_path):
    (tmp_path / "tiny.yaml").write_text("")
    (tmp_path / "blog-7b.yaml").write_text("")
    with pytest.raises(UserError, match=r"tinny\.yaml does not exist; did you mean 'tiny'\?$"):
        load_recipe(tmp_path / "tinny.yaml")
    with pytest.raises(UserError, match=r"quite-another\.yaml does not exist$"):
        load_recipe(tmp_path / "quite-another.yaml")
    with pytest.raises(UserError, match=r"nowhere/tiny\.yaml does not exist$"):
        load_recipe(tmp_path / "nowhere" / "tiny.yaml")


# --- keys and types ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("modle", "unknown key 'modle'; did you mean 'model'?"),
        ("data.tires", "unknown key 'data.tires'; did you mean 'tiers'?"),
        ("data.tiers.dense.trian", "unknown key 'data.tiers.dense.trian'; did you mean 'train'?"),
        ("data.tiers.dense.evnts", "unknown key 'data.tiers.dense.evnts'; did you mean 'events'?"),
        ("eval.temprature", "unknown key 'eval.temprature'; did you mean 'temperature'?"),
        ("xyz", "unknown key 'xyz'"),
        # What a recipe has inside, but not in its file.
        ("path", "unknown key 'path'"),
        ("run", "unknown key 'run'"),
        ("data.tiers.dense.tier", "unknown key 'data.tiers.dense.tier'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(tmp_path, key, says):
    assert refusal(tmp_path, changed(key, 1)) == says


def test_a_key_that_is_no_text_is_named_too(tmp_path):
    assert refusal(tmp_path, {**GOOD, 1: 2}) == "unknown key '1'"


@pytest.mark.parametrize("key", ["name", "model", "data", "rewards", "sft", "grpo"])
def test_a_missing_section_is_named(tmp_path, key):
    assert refusal(tmp_path, changed(key)) == f"key {key!r} is missing"


@pytest.mark.parametrize("key", ["data.main", "data.tiers"])
def test_a_missing_key_of_a_section_is_named(tmp_path, key):
    assert refusal(tmp_path, changed(key)) == f"key {key!r} is missing"


@pytest.mark.parametrize(
    ("key", "value", "must_be"),
    [
        ("name", 5, "text"),
        ("model", None, "text"),
        ("seed", "a", "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", 1.0, "a whole number"),
        ("data.reasoning", "on", "true or false"),
        ("data.reasoning", 1, "true or false"),
        ("data.tiers", ["dense"], "a mapping of keys"),
        ("data.tiers.dense.train", "many", "a whole number"),
        ("data.tiers.dense.source", 3, "text"),
        ("data.tiers.dense.greedy_fails", 0, "true or false"),
        ("data.tiers.dense.window", [540, 1020], "text"),
        ("data.tiers.dense.window", "09:00-17:00", "a list of 2 values"),
        ("data.tiers.dense.durations", [60, 120], "a list of 3 values"),
        ("data.tiers.dense.overlap", 0.5, "a list of 2 values"),
        ("sft", None, "a mapping of keys"),
        ("grpo", [1], "a mapping of keys"),
        ("lora", "q_proj", "a mapping of keys"),
        ("rewards", ["optimal"], "a mapping of keys"),
        ("rewards.optimal", "much", "a number"),
        ("rewards.optimal", True, "a number"),
        ("rewards.optimal", float("nan"), "a number"),
        ("rewards.optimal", float("inf"), "a number"),
        ("eval.samples", "4", "a whole number"),
        ("eval.top_p", None, "a number"),
        ("eval.temperature", float("nan"), "a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(tmp_path, key, value, must_be):
    assert refusal(tmp_path, changed(key, value)).startswith(f"{key} must be {must_be}, not ")


@pytest.mark.parametrize("key", ["data", "eval", "data.tiers.dense"])
def test_a_section_that_is_no_mapping_is_named(tmp_path, key):
    says = refusal(tmp_path, changed(key, 3))
    assert says.startswith(f"{key} must be a mapping")


# --- values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("init", "grpo", "init must be sft or base, not 'grpo'"),
        ("seed", -1, "seed must be 0 to 4294967295, not -1"),
        ("seed", 2**32, "seed must be 0 to 4294967295, not 4294967296"),
        ("eval.samples", 0, "eval.samples must be 1 or more"),
        ("eval.max_tokens", 0, "eval.max_tokens must be 1 or more"),
        ("eval.rows", -1, "eval.rows must be 1 or more"),
        ("eval.resamples", 0, "eval.resamples must be 1 or more"),
        (
            "eval.temperature",
            -0.1,
            "eval.temperature must be 0 or more, eval.top_p above 0, at most 1",
        ),
        ("eval.top_p", 0, "eval.temperature must be 0 or more, eval.top_p above 0, at most 1"),
        ("eval.top_p", 1.1, "eval.temperature must be 0 or more, eval.top_p above 0, at most 1"),
        ("data.main", "dens", "data.main is 'dens', not one of dense"),
        ("data.tiers.dense.train", -1, "data.tiers.dense.train, val and test must be 0 or more"),
        ("data.tiers.dense.test", 0, "the main tier 'dense' needs test problems"),
        ("data.tiers.dense.val", 0, "the main tier 'dense' needs val problems"),
        (
            "data.tiers.trapp",
            {"test": 1},
            "unknown tier 'trapp' (the tiers are blog, dense, trap, and any name with a source); "
            "did you mean 'trap'?",
        ),
        (
            "data.tiers.published",
            {"source": "p.jsonl", "test": 1, "grid": 5},
            "data.tiers.published.grid cannot change an imported tier",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tmp_path, key, value, says):
    assert refusal(tmp_path, changed(key, value)) == says


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "window",
            ["09:00", "09:30"],
            "window must hold an event of 120 minutes, not ('09:00', '09:30')",
        ),
        (
            "window",
            ["17:00", "09:00"],
            "window must hold an event of 120 minutes, not ('17:00', '09:00')",
        ),
        ("window", ["09:00", "24:00"], "window must be two HH:MM times, not ('09:00', '24:00')"),
        ("events", [5, 4], "events must be [fewest, most], 1 or more, not (5, 4)"),
        ("grid", 0, "grid must be 1 minute or more, not 0"),
        ("durations", [60, 30, 15], "durations must be [shortest, longest, step]"),
        ("overlap", [0.9, 0.2], "overlap must be [least, greatest], shares 0 to 1"),
    ],
)
def test_an_impossible_tier_is_refused_before_anything_runs(tmp_path, key, value, says):
    text = refusal(tmp_path, changed(f"data.tiers.dense.{key}", value))
    assert text.startswith(f"tier 'dense': {says}")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "with blank", "ü"])
def test_a_run_is_a_plain_folder_name(tmp_path, name):
    with pytest.raises(UserError, match="must be letters, digits"):
        load(tmp_path, {**GOOD, "name": name})


def test_an_overriding_run_is_checked_as_well(tmp_path):
    with pytest.raises(UserError, match=r"run name '\.\./x' must be letters"):
        load(tmp_path, GOOD, run="../x")


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("modle", ["model", "name"]) == "; did you mean 'model'?"
    assert nearest("zzz", ["model", "name"]) == nearest("model", []) == ""
