"""Recipes: what a good one becomes, and the one sentence that every mistake in one earns."""

import argparse
import copy
from pathlib import Path

import pytest
import yaml

from data.common.errors import UserError
from data.recipe import Recipe, load_recipe, nearest, recipe_from
from data.sections import ARMS, Arm, Margins, RewardSection, TierUse
from data.tiers import TIERS, Tier

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "pipeline" / "recipes").glob("*.yaml"))

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
    assert (recipe.seed, recipe.dtype, recipe.lora) == (0, "float32", None)
    assert (recipe.eval.samples, recipe.eval.temperature, recipe.data.reasoning) == (64, 1.0, True)
    assert recipe.data.curriculum == "mixture"
    assert recipe.reward == RewardSection("graded", None, False)
    assert recipe.all_arms() == ARMS == {"sft": Arm("sft", "base"), "grpo": Arm("grpo", "sft")}
    assert recipe.tier_uses() == {"dense": TierUse(3, 2, 1, None, TIERS["dense"])}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_we_ship_is_sound(path):
    from pipeline.train.settings import check_settings

    recipe = load_recipe(path)
    check_settings(recipe)
    assert recipe.name == path.stem  # so `RECIPE=…/x.yaml` and `runs/x` are found together


def test_model_and_run_override_the_recipe(tmp_path):
    recipe = load(tmp_path, GOOD, model="other/model", run="elsewhere")
    assert (recipe.model, recipe.run_name, recipe.name) == ("other/model", "elsewhere", "small")
    assert recipe.run.folder == Path("runs/elsewhere")


def test_without_overrides_the_run_is_the_recipes_name(tmp_path):
    recipe = load(tmp_path, GOOD)
    assert (recipe.model, recipe.run.folder) == ("some/model", Path("runs/small"))


def test_the_flags_of_a_stage_reach_the_recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    given = argparse.Namespace(recipe=path, model="m", run="r", backend=None, bits=None)
    assert (recipe_from(given).model, recipe_from(given).run_name) == ("m", "r")


def test_a_tier_can_be_changed_and_the_named_one_stays_as_it_is(tmp_path):
    named = TIERS["dense"].events
    recipe = load(tmp_path, changed("data.tiers.dense.events", [3, 5]))
    tier = recipe.tier_uses()["dense"].tier
    assert tier.events == (3, 5)
    assert tier.window == TIERS["dense"].window
    assert TIERS["dense"].events == named != (3, 5)


def test_every_dial_of_a_tier_can_be_set(tmp_path):
    dials = {
        "shortfall": [0.1, 1],
        "optima": [1, 1],
        "rules": [1, 2],
        "kinds": ["gap", "at_most"],
        "binding": True,
    }
    content = changed("data.tiers.dense", {"train": 3, "val": 2, "test": 1, **dials})
    tier = load(tmp_path, content).tier_uses()["dense"].tier
    assert (tier.shortfall, tier.optima) == ((0.1, 1.0), (1, 1))
    assert (tier.rules, tier.kinds, tier.binding) == ((1, 2), ("gap", "at_most"), True)


def test_an_imported_tier_may_have_any_name(tmp_path):
    source = {"source": "p/{split}.jsonl", "train": 1, "val": 1, "test": 1}
    uses = load(tmp_path, changed("data.tiers.published", source)).tier_uses()
    assert uses["published"] == TierUse(1, 1, 1, "p/{split}.jsonl", Tier())


# --- the reward and the arms -----------------------------------------------------------------


def test_a_reward_is_read_as_it_is_written(tmp_path):
    reward = {"shape": "graded", "weights": {"optimal": 1, "ratio": 0.5}, "unsound": True}
    found = load(tmp_path, changed("reward", reward)).reward
    assert found == RewardSection("graded", {"optimal": 1.0, "ratio": 0.5}, True)
    assert list(found.weights) == ["optimal", "ratio"]


THREE = {
    "warm": {"trainer": "sft", "seeds": [3, 4], "tiers": ["dense"]},
    "paid": {
        "trainer": "grpo",
        "start": "warm.4",
        "reward": {"shape": "binary"},
        "settings": {"learning_rate": 1e-3, "max_steps": 5},
    },
    "cold": {"trainer": "grpo"},
}


def test_an_arm_with_seeds_is_trained_once_with_each(tmp_path):
    recipe = load(tmp_path, changed("arms", THREE))
    assert list(recipe.all_arms()) == ["warm.3", "warm.4", "paid", "cold"]
    assert recipe.all_arms()["warm.3"] == Arm("sft", seeds=(3,), tiers=("dense",))
    assert recipe.all_arms()["cold"] == Arm("grpo", start="base")


def test_a_recipe_stands_for_one_arm_with_that_arms_own_settings(tmp_path):
    content = changed("arms", THREE) | {"seed": 9, "grpo": {"max_steps": 2, "beta": 0.1}}
    recipe = load(tmp_path, content)
    paid = recipe.for_arm("paid")
    assert paid.grpo == {"max_steps": 5, "beta": 0.1, "learning_rate": 1e-3}
    assert (paid.reward, paid.seed, paid.sft) == (RewardSection("binary"), 9, {})
    assert [recipe.for_arm(name).seed for name in ("warm.3", "warm.4", "cold")] == [3, 4, 9]
    cold = recipe.for_arm("cold")
    assert (cold.grpo, cold.reward) == (recipe.grpo, recipe.reward)
    assert recipe.for_arm("base") == recipe
    # The recipe itself is as it was.
    assert recipe.grpo == {"max_steps": 2, "beta": 0.1}


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("warm", "trainer", "dpo", "arms.warm.trainer must be sft or grpo"),
        ("warm", "trainer", None, "arms.warm.trainer must be text, not None"),
        ("warm", "seeds", [1, 1], "arms.warm.seeds must be different, each 0 to 4294967295"),
        ("warm", "seeds", [-1], "arms.warm.seeds must be different, each 0 to 4294967295"),
        ("warm", "seeds", 3, "arms.warm.seeds must be a list, not 3"),
        ("warm", "seeds", [True], "arms.warm.seeds must be a whole number, not True"),
        ("warm", "tiers", ["trap"], "arms.warm.tiers: data.tiers has no train problems of 'trap'"),
        ("warm", "tiers", "dense", "arms.warm.tiers must be a list, not 'dense'"),
        ("warm", "strat", "base", "unknown key 'arms.warm.strat'; did you mean 'start'?"),
        (
            "paid",
            "start",
            "warm",
            "arms.paid.start must be an arm before it (base, warm.3, warm.4), not 'warm'",
        ),
        (
            "paid",
            "start",
            "cold",
            "arms.paid.start must be an arm before it (base, warm.3, warm.4), not 'cold'",
        ),
        ("paid", "start", "paid", "arms.paid.start must be an arm before it"),
        ("paid", "reward", "binary", "arms.paid.reward must be a mapping of keys"),
        (
            "paid",
            "reward",
            {"shap": 1},
            "unknown key 'arms.paid.reward.shap'; did you mean",
        ),
        ("paid", "settings", [1], "arms.paid.settings must be a mapping of keys, not [1]"),
        ("paid", "trainer", ..., "key 'arms.paid.trainer' is missing"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_named(tmp_path, name, key, value, says):
    arms = copy.deepcopy(THREE)
    if value is ...:
        del arms[name][key]
    else:
        arms[name][key] = value
    assert refusal(tmp_path, changed("arms", arms)).startswith(says)


@pytest.mark.parametrize("name", ["base", "data", "eval", "audit", "a.1", "a/b", "..", "-x", "ü"])
def test_an_arm_has_a_folder_name_of_its_own(tmp_path, name):
    says = refusal(tmp_path, changed("arms", {name: {"trainer": "sft"}}))
    assert says == (
        f"arms.{name} cannot be an arm's name; take letters, digits, '_' and '-', at most 100"
    )


def test_an_arm_may_only_train_on_tiers_with_train_problems(tmp_path):
    content = changed("arms", {"a": {"trainer": "sft", "tiers": ["blog"]}})
    content["data"]["tiers"]["blog"] = {"test": 3}
    says = "arms.a.tiers: data.tiers has no train problems of 'blog'"
    assert refusal(tmp_path, content) == says


# --- recipes on top of others ----------------------------------------------------------------


def extend(tmp_path: Path, above: dict, below: dict = GOOD) -> Recipe:
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(below))
    return load(tmp_path, {"extends": "below.yaml", **above})


def test_a_recipe_that_extends_another_says_only_what_differs(tmp_path):
    below = GOOD | {"seed": 5, "sft": {"max_steps": 3, "packing": True}, "lora": {"r": 4}}
    recipe = extend(tmp_path, {"name": "above", "sft": {"max_steps": 7}, "lora": None}, below)
    assert (recipe.name, recipe.run_name, recipe.seed, recipe.model) == (
        "above",
        "above",
        5,
        "some/model",
    )
    assert recipe.sft == {"max_steps": 7, "packing": True}
    assert recipe.lora is None
    assert recipe.path == tmp_path / "small.yaml"
    assert extend(tmp_path, {}) == load(tmp_path, GOOD)


def test_tiers_and_arms_are_not_merged_but_replaced(tmp_path):
    above = {"arms": {"grpo": {"trainer": "grpo"}}}
    above["data"] = {"main": "blog", "tiers": {"blog": {"train": 1, "val": 1, "test": 1}}}
    below = changed("data.reasoning", False)
    below["arms"] = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}}
    recipe = extend(tmp_path, above, below)
    assert list(recipe.tier_uses()) == ["blog"]
    assert recipe.arms == {"grpo": Arm("grpo")}
    assert recipe.data.reasoning is False


def test_a_recipe_may_extend_one_that_extends_another(tmp_path):
    (tmp_path / "lowest.yaml").write_text(yaml.safe_dump({**GOOD, "seed": 1, "dtype": "bfloat16"}))
    recipe = extend(tmp_path, {"name": "top"}, {"extends": "lowest.yaml", "seed": 2})
    assert (recipe.name, recipe.seed, recipe.dtype) == ("top", 2, "bfloat16")


def test_a_mistake_in_what_is_extended_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"small\.yaml: unknown key 'sede'; did you mean 'seed'\?$"):
        extend(tmp_path, {}, {**GOOD, "sede": 3})
    with pytest.raises(UserError, match=r"small\.yaml: extends must be the name .*, not 3$"):
        load(tmp_path, {"extends": 3})
    with pytest.raises(UserError, match=r"belov\.yaml does not exist; did you mean 'below'\?$"):
        load(tmp_path, {"extends": "belov.yaml"})
    (tmp_path / "below.yaml").write_text("name: a\nsft: [")
    with pytest.raises(UserError, match=r"below\.yaml:2 is not valid YAML"):
        load(tmp_path, {"extends": "below.yaml"})


@pytest.mark.parametrize("way", ["small.yaml", "./small.yaml", "{folder}/small.yaml", "below.yaml"])
def test_recipes_that_extend_each_other_are_refused(tmp_path, way):
    (tmp_path / "below.yaml").write_text("extends: small.yaml")
    way = way.replace("{folder}", f"../{tmp_path.name}")
    with pytest.raises(UserError, match=r"\.yaml: extends goes in a circle$"):
        load(tmp_path, {"extends": way})


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
        # Tags, and what they do not fit.
        ("name: a\nseed: !!int ''\n", "2 is not valid YAML ('' cannot be read as int)"),
        ("seed: !!bool x\n", "1 is not valid YAML ('x' cannot be read as bool)"),
        ("seed: !!float ''\n", "1 is not valid YAML ('' cannot be read as float)"),
        (f"seed: 1{'0' * 5000}\n", "1 is not valid YAML ('1000"),
        ("seed: !!timestamp x\n", "1 is not valid YAML (could not determine a constructor"),
        ("seed: !!timestamp 2026-01-31\n", "1 is not valid YAML (could not determine"),
        ("sft: {x: !!set {a}}\n", "1 is not valid YAML (could not determine"),
        ("sft: {x: !!binary aGk=}\n", "1 is not valid YAML (could not determine"),
        ("sft: !!map [a]\n", "1 is not valid YAML"),
        ("sft: !!map a\n", "1 is not valid YAML"),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, text, says):
    assert refusal(tmp_path, text).startswith(says)


def test_a_character_that_there_is_not_is_one_sentence(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text('name: "\\UFFFFFFFF"\n')
    with pytest.raises(UserError, match=r"small\.yaml cannot be read as YAML"):
        load_recipe(path)


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
        ("verdict", "unknown key 'verdict'; it is called 'conclusion' now"),
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


@pytest.mark.parametrize("key", ["name", "model", "data", "sft", "grpo"])
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
        ("data.curriculum", 1, "text"),
        ("data.tiers.dense.shortfall", 0.5, "a list of 2 values"),
        ("data.tiers.dense.rules", 3, "a list of 2 values"),
        ("data.tiers.dense.kinds", "gap", "a list"),
        ("data.tiers.dense.kinds", [1], "text"),
        ("data.tiers.dense.binding", 1, "true or false"),
        ("arms", ["sft"], "a mapping of keys"),
        ("reward.shape", None, "text"),
        ("reward.unsound", "yes", "true or false"),
        ("reward.weights", ["optimal"], "a mapping of keys"),
        ("reward.weights.optimal", "much", "a number"),
        ("reward.weights.optimal", True, "a number"),
        ("reward.weights.optimal", float("nan"), "a number"),
        ("reward.weights.optimal", float("inf"), "a number"),
        ("eval.samples", "4", "a whole number"),
        ("eval.top_p", None, "a number"),
        ("eval.temperature", float("nan"), "a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(tmp_path, key, value, must_be):
    assert refusal(tmp_path, changed(key, value)).startswith(f"{key} must be {must_be}, not ")


@pytest.mark.parametrize("key", ["data", "eval", "reward", "arms.a", "data.tiers.dense"])
def test_a_section_that_is_no_mapping_is_named(tmp_path, key):
    says = refusal(tmp_path, changed(key, 3))
    assert says.startswith(f"{key} must be a mapping")


# --- values --------------------------------------------------------------------------------

RANGES = "eval.temperature and shots must be 0 or more, top_p above 0, at most 1"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("init", "base", "unknown key 'init'"),
        ("rewards", {"optimal": 1}, "unknown key 'rewards'; did you mean 'reward'?"),
        ("reward.shap", "graded", "unknown key 'reward.shap'; did you mean 'shape'?"),
        (
            "data.curriculum",
            "hard",
            "data.curriculum must be one of mixture, easy_to_hard, not 'hard'",
        ),
        ("seed", -1, "seed must be 0 to 4294967295, not -1"),
        ("seed", 2**32, "seed must be 0 to 4294967295, not 4294967296"),
        ("eval.samples", 0, "eval.samples must be 1 or more"),
        ("eval.max_tokens", 0, "eval.max_tokens must be 1 or more"),
        ("eval.rows", -1, "eval.rows must be 1 or more"),
        ("eval.resamples", 0, "eval.resamples must be 1 or more"),
        ("eval.temperature", -0.1, RANGES),
        ("eval.shots", -1, RANGES),
        ("eval.top_p", 0, RANGES),
        ("eval.top_p", 1.1, RANGES),
        ("data.main", "dens", "data.main is 'dens', not one of dense"),
        ("data.tiers.dense.train", -1, "data.tiers.dense.train, val and test must be 0 or more"),
        ("data.tiers.dense.test", 0, "the main tier 'dense' needs test problems"),
        ("data.tiers.dense.val", 0, "the main tier 'dense' needs val problems"),
        (
            "data.tiers.trapp",
            {"test": 1},
            f"unknown tier 'trapp' (the tiers are {', '.join(TIERS)}, and any name with a source); "
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
        ("kinds", ["gaap"], "kinds must be of gap, travel, "),
        ("binding", True, "binding needs rules, not True"),
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


def test_a_name_is_no_longer_than_the_files_that_it_is_part_of_can_be(tmp_path):
    recipe = load(tmp_path, {**GOOD, "arms": {"a" * 100: {"trainer": "sft"}}}, run="r" * 100)
    (tmp_path / f"{recipe.run_name}-{next(iter(recipe.arms))}.q4_k_m.gguf").touch()
    with pytest.raises(UserError, match=r"run name .* must be letters.*, at most 100$"):
        load(tmp_path, GOOD, run="r" * 101)
    with pytest.raises(UserError, match=r"cannot be an arm's name; .*, at most 100$"):
        load(tmp_path, {**GOOD, "arms": {"a" * 101: {"trainer": "sft"}}})


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("modle", ["model", "name"]) == "; did you mean 'model'?"
    assert nearest("zzz", ["model", "name"]) == nearest("model", []) == ""


# --- conclusion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margins", "words"),
    [
        ({"gian": 0.1}, "did you mean 'gain'"),
        ({"gain": 1.5}, "conclusion.margins.gain must be a share"),
        ({"new": 0.1}, "must not be above"),
        ({"level": 1.0}, "conclusion.margins.level must be above 0.5"),
        ({"luck": 0.03}, "conclusion.margins.luck must be above 0 and below 0.02"),
        ({"lift": 0}, "conclusion.margins.lift must be 1 or more"),
        ({"correction": "bonferroni"}, "must be holm or none"),
        ({"resamples": "many"}, "conclusion.margins.resamples must be a whole number"),
    ],
)
def test_a_senseless_margin_is_refused_in_one_sentence(tmp_path, margins, words):
    with pytest.raises(UserError, match=r"small\.yaml") as error:
        load(tmp_path, changed("conclusion.margins", margins))
    assert words in str(error.value)


def test_margins_not_named_have_their_defaults(tmp_path):
    found = load(tmp_path, changed("conclusion.margins", {"gain": 0.05})).conclusion.margins
    assert found == Margins(gain=0.05)


def with_conclusion(trained: dict, **conclusion: object) -> dict:
    return {**changed("conclusion", conclusion), "arms": trained}


SEEDED = {"grpo": {"trainer": "grpo", "seeds": [1, 2]}}


@pytest.mark.parametrize(
    ("arms", "conclusion", "words"),
    [
        (
            SEEDED,
            {"arms": ["gpro"]},
            "conclusion.arms names 'gpro', not an entry of arms (grpo); did",
        ),
        (SEEDED, {"base_best": "best"}, "conclusion.base_best names 'best'"),
        (
            {**SEEDED, "sft": {"trainer": "sft"}},
            {"base_best": "sft"},
            "conclusion.base_best: 'sft' must be the base itself, asked in another way",
        ),
        (
            {**SEEDED, "cool": {"trainer": "none", "seeds": [1, 2]}},
            {"base_best": "cool"},
            "'cool' must be the base itself",
        ),
        (SEEDED, {"format_only": "grpo"}, "conclusion.format_only is 'grpo', which is judged"),
        (SEEDED, {"fresh": 0}, "conclusion.fresh must be 1 or more"),
        (
            {**SEEDED, "form": {"trainer": "grpo", "seeds": [3]}},
            {"format_only": "form"},
            "'form' needs no seeds or those of 'grpo'",
        ),
    ],
)
def test_an_arm_without_a_place_in_the_conclusion_is_refused(tmp_path, arms, conclusion, words):
    with pytest.raises(UserError, match=r"small\.yaml") as error:
        load(tmp_path, with_conclusion(arms, **conclusion))
    assert words in str(error.value)


def test_the_arm_called_grpo_is_judged_unless_others_are_named(tmp_path):
    assert load(tmp_path, GOOD).judged() == ["grpo"]
    assert load(tmp_path, with_conclusion({"sft": {"trainer": "sft"}})).judged() == []
    both = {"sft": {"trainer": "sft"}, **SEEDED}
    recipe = load(tmp_path, with_conclusion(both, arms=["sft", "grpo"]))
    assert recipe.judged() == ["sft", "grpo"]
    assert [recipe.members(name) for name in recipe.arms] == [["sft"], ["grpo.1", "grpo.2"]]


def test_no_tier_is_called_what_reports_call_all_of_them(tmp_path):
    tiers = {**GOOD["data"]["tiers"], "overall": {"test": 1, "source": "x.jsonl"}}
    with pytest.raises(UserError, match=r"data\.tiers\.overall cannot be"):
        load(tmp_path, changed("data.tiers", tiers))
