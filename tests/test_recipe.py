"""Recipes: what a good one becomes, and the one sentence that every mistake in one earns."""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from running import refusal_of

from data.common.errors import UserError
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
NAN, INF = float("nan"), float("inf")


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


def refusal(tmp_path: Path, content: dict | str) -> str:
    """What is said of a recipe, after its file's name."""
    text = refusal_of(lambda: load(tmp_path, content))
    assert text.startswith(f"{tmp_path / 'small.yaml'}:")
    return text.removeprefix(f"{tmp_path / 'small.yaml'}:").strip()


# --- good recipes ----------------------------------------------------------------------------


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


# --- arms ------------------------------------------------------------------------------------

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


def test_a_mistake_in_what_is_extended_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"extends: unknown key 'sede'; did you mean 'seed'\?$"):
        extend(tmp_path, {}, {**GOOD, "sede": 3})
    with pytest.raises(UserError, match=r"small\.yaml: extends .*, not 3$"):
        load(tmp_path, {"extends": 3})
    with pytest.raises(UserError, match=r"small\.yaml extends .* exist; did you mean 'below'\?$"):
        load(tmp_path, {"extends": "belov.yaml"})
    (tmp_path / "middle.yaml").write_text("extends: belov")
    with pytest.raises(UserError, match=r"middle\.yaml extends 'belov': recipe .* does not exist"):
        load(tmp_path, {"extends": "middle.yaml"})
    (tmp_path / "middle.yaml").write_text("- seed: 3")
    with pytest.raises(UserError, match=r"middle\.yaml: .* must be a mapping of keys, not \["):
        load(tmp_path, {"extends": "middle.yaml"})
    (tmp_path / "below.yaml").write_text("name: a\nsft: [")
    with pytest.raises(UserError, match=r"below\.yaml:2 is not valid YAML"):
        load(tmp_path, {"extends": "below.yaml"})


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("seed", 3, -1),
        ("eval.samples", 3, "many"),
        ("data.main", "dense", "dens"),
        ("data.tiers", GOOD["data"]["tiers"], {"denze": {}}),
        ("data.tiers", GOOD["data"]["tiers"], {"dense": {"test": 1, "events": [0, 0]}}),
        ("arms", {"sft": {"trainer": "sft"}}, {"sft": {"start": "base"}}),
        ("evals", None, 3),
        ("arms.sft", None, None),
    ],
)
def test_a_mistake_names_the_file_that_holds_it_of_a_recipe_and_what_it_extends(
    tmp_path, key, right, wrong
):
    below, small = tmp_path / "below.yaml", tmp_path / "small.yaml"
    said = refusal_of(lambda: extend(tmp_path, {"name": "above"}, changed(key, wrong)))
    assert said.startswith(f"{below}, which {small} extends: ")
    if right:
        said = refusal_of(lambda: extend(tmp_path, changed(key, wrong), changed(key, right)))
        assert said.startswith(f"{small}: ")
        assert extend(tmp_path, changed(key, right), changed(key, wrong)), "which stands no more"


@pytest.mark.parametrize(
    ("above", "key"),
    [
        ({"data": {"tiers": {"trap": {"train": 1, "val": 1, "test": 1}}}}, "data.main is 'dense'"),
        ({"arms": {"warm": None}}, "arms.paid.start must be an arm before it"),
        ({"sft.max_steps": 3}, "unknown key 'sft.max_steps'"),
    ],
)
def test_a_recipe_that_is_sound_by_itself_is_not_blamed_by_one_that_extends_it(
    tmp_path, above, key
):
    (tmp_path / "middle.yaml").write_text(yaml.safe_dump({"extends": "below.yaml", **above}))
    said = refusal_of(lambda: extend(tmp_path, {"extends": "middle.yaml"}, THREE))
    assert said.startswith(f"{tmp_path / 'middle.yaml'}, which {tmp_path / 'small.yaml'} extends: ")
    assert key in said


@pytest.mark.parametrize("way", ["small.yaml", "./small.yaml", "{folder}/small.yaml", "below.yaml"])
def test_recipes_that_extend_each_other_are_refused(tmp_path, way):
    (tmp_path / "below.yaml").write_text("extends: small.yaml")
    way = way.replace("{folder}", f"../{tmp_path.name}")
    with pytest.raises(UserError, match=r"\.yaml: extends goes in a circle$"):
        load(tmp_path, {"extends": way})


def test_a_null_leaves_out_an_inherited_tier_or_arm_and_keeps_the_others(tmp_path):
    below = changed("data.tiers.trap", {"test": 1})
    below["arms"] = {"sft": {"trainer": "sft"}, "cold": {"trainer": "grpo"}}
    above = {"data": {"tiers": {"trap": None, "blog": {"test": 2}}}, "arms": {"sft": None}}
    recipe = extend(tmp_path, above, below)
    assert list(recipe.tier_uses) == ["dense", "blog"]
    assert list(recipe.arms) == ["cold"]
    with pytest.raises(UserError, match=r"data\.tiers\.trop .* did you mean 'trap'\?$"):
        extend(tmp_path, {"data": {"tiers": {"trop": None}}}, below)


def test_a_new_tier_is_like_another_one_or_has_attributes_of_its_own(tmp_path):
    tiers = {
        "dense": {"train": 1, "val": 1, "test": 1},
        "short": {"like": "trap", "test": 1, "events": [3, 4]},
        "own": {"test": 1, "window": ["10:00", "14:00"]},
    }
    uses = load(tmp_path, changed("data.tiers", tiers)).tier_uses
    assert uses["short"].tier == replace(TIERS["trap"], events=(3, 4))
    assert uses["own"].tier == Tier(window=("10:00", "14:00"))
    for like in ("trapp", ["trap"], None):
        says = refusal(tmp_path, changed("data.tiers.new", {"like": like, "test": 1}))
        assert says.startswith("unknown tier")


# --- YAML as people write it -----------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("text", "line", "names"),
    [
        ("name: a\nsft: [1\ngrpo: 2\n", 3, ""),
        ("name: a\n\tx: 1\n", 2, ""),
        ("name: a\nsft: {}\nsft: {}\n", 3, "'sft'"),
        ("name: a\nsft:\n  max_steps: 1\n  max_steps: 2\n", 4, "'max_steps'"),
        ("name: !!python/object:os.system x\n", 1, ""),
        ("{[1]: 2}", 1, ""),
        ("sft: !!map [a]\n", 1, ""),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, text, line, names):
    says = refusal(tmp_path, text)
    assert says.startswith(f"{line} is not valid YAML")
    assert names in says


@pytest.mark.parametrize(
    "content",
    [
        b'name: "\\UFFFFFFFF"\n',
        b"\xff\xfe\x00",
        b"name: x\n\x00",
        b"seed: !!int ''\n",
        b"seed: !!bool x",
        b"seed: " + b"9" * 5000,
        b"a: " + b"[" * 2000,
        b"a: " + b"{b: " * 2000,
    ],
)  # no such character, no text, a control character, tags that do not fit, beyond all measure
def test_a_file_that_yaml_cannot_be_is_one_sentence(tmp_path, content):
    path = tmp_path / "small.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"small\.yaml "):
        load_recipe(path)


def test_a_value_that_unfolds_without_end_is_quoted_in_a_few_words(tmp_path):
    more = ", ".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 30))
    text = yaml.safe_dump({**GOOD, "sft": None})
    text = text.replace("sft: null", f"sft: {{x0: &x0 [1], {more}}}\nseed: *x29")
    assert refusal(tmp_path, text).startswith("seed must be a whole number, not [[")


@pytest.mark.parametrize("text", ["", "- 1\n", "tiny\n"])
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path, text):
    assert "mapping" in refusal(tmp_path, text)


def test_a_missing_recipe_is_answered_with_the_nearest_name(tmp_path):
    for name in ("tiny", "blog-7b"):
        (tmp_path / f"{name}.yaml").write_text("")
    for name, near in (("tinny", "; did you mean 'tiny'?"), ("quite-another", ""), ("x/tiny", "")):
        says = refusal_of(lambda name=name: load_recipe(tmp_path / f"{name}.yaml"))
        assert says.endswith(f"{name}.yaml does not exist{near}")


def test_a_recipe_that_ships_goes_by_its_bare_name(tmp_path):
    for name in ("qwen2.5-7b", "qwen2.5-7b.yaml", "pipeline/recipes/qwen2.5-7b"):
        assert load_recipe(Path(name)).name == "qwen2.5-7b"
    assert load(tmp_path, {"extends": "tiny", "name": "above"}).data.main == "busy"
    for name, end in (("Qwen2.5-7B", "did you mean 'qwen2.5-7b'?"), ("zzz", "thinking, tiny")):
        assert refusal_of(lambda name=name: load_recipe(Path(name))).endswith(end)


# --- keys and types --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("modle", "; did you mean 'model'?"),
        ("rewards", "; did you mean 'reward'?"),
        ("data.tires", "; did you mean 'tiers'?"),
        ("data.tiers.dense.trian", "; did you mean 'train'?"),
        ("data.tiers.dense.evnts", "; did you mean 'events'?"),
        ("eval.temprature", "; did you mean 'temperature'?"),
        ("arms.warm.strat", "; did you mean 'start'?"),
        ("arms.paid.reward.shap", "; did you mean 'shape'?"),
        ("conclusion.margins.gian", "; did you mean 'gain'?"),
        ("max_steps", "; `max_steps` belongs under `sft` or under `grpo`"),
        ("temperature", "; `temperature` belongs under `eval` or under `grpo`"),
        ("data.trap", "; `trap` belongs under `data.tiers`"),
        ("reasoned", "; `reasoned` belongs under `data` or under `arms.NAME`"),
        ("events", "; `events` belongs under `data.tiers.NAME`"),
        ("data.seed", "; `seed` belongs at the top"),
        ("data.num_generations", "; `num_generations` belongs under `grpo`"),
        ("conclusion.gain", "; `gain` belongs under `conclusion.margins`"),
        ("every", "; `every` belongs under `monitor`"),
        (
            "samples",
            "; `samples` belongs under `eval` or under `monitor`, or did you mean 'sampling'?",
        ),
        ("arms.paid.learning_rate", "; `learning_rate` belongs under `arms.paid.settings`"),
        (
            "arms.paid.temperature",
            "; `temperature` belongs under `arms.paid.eval` or under `arms.paid.settings` where "
            "the trainer is grpo",
        ),
        (
            "arms.paid.eval.beta",
            "; `beta` belongs under `arms.paid.settings` where the trainer is grpo",
        ),
        ("arms.paid.shape", "; `shape` belongs under `arms.paid.reward`"),
        ("arms.paid.eval.lora", "; `lora` belongs at the top"),
        # Fields of a recipe that no file may set.
        ("path", ""),
        ("run", ""),
        ("data.tiers.dense.tier", ""),
    ],
)
def test_an_unknown_key_is_answered_with_where_it_belongs_or_the_nearest_right_one(
    tmp_path, key, near
):
    assert refusal(tmp_path, changed(key, 1, of=THREE)) == f"unknown key {key!r}{near}"


@pytest.mark.parametrize(
    "key", ["name", "model", "data", "sft", "grpo", "data.main", "data.tiers", "arms.paid.trainer"]
)
def test_a_missing_key_is_named(tmp_path, key):
    assert refusal(tmp_path, changed(key, of=THREE)) == f"key {key!r} is missing"


@pytest.mark.parametrize(
    ("must_be", "values"),
    [
        ("text", {"name": 5, "model": None, "data.tiers.dense.window": [540, 1020]}),
        ("text", {"data.tiers.dense.kinds": [1], "arms.warm.trainer": None}),
        ("a whole number", {"seed": True, "eval.samples": "4", "arms.warm.seeds": [True]}),
        ("a whole number", {"seed": 1.0, "data.tiers.dense.train": "many"}),
        ("true or false", {"data.tiers.dense.binding": 1}),
        ("a mapping of keys", {"data.tiers": ["dense"], "sft": None, "data": 3, "lora": "q_proj"}),
        ("a mapping of keys", {"arms.warm": 3, "arms.paid.reward": "binary"}),
        ("a mapping", {"data.tiers.dense": 3}),
        ("a list of 2 values", {"data.tiers.dense.overlap": 0.5, "data.tiers.dense.window": "9"}),
        ("a list of 3 values", {"data.tiers.dense.durations": [60, 120]}),
        ("a list", {"data.tiers.dense.kinds": "gap", "arms.warm.seeds": 3}),
        ("a number", {"reward.weights.optimal": True, "eval.top_p": None}),
        ("a number", {"eval.temperature": NAN, "reward.weights.optimal": INF}),
        ("a number", {"eval.temperature": 10**400}),
        ("a whole number", {"seed": [[[[[[[[["deep"]]]]]]]]]}),
        ("the name of a recipe", {"extends": "a\0b"}),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(tmp_path, must_be, values):
    for key, value in values.items():
        says = refusal(tmp_path, changed(key, value, of=THREE))
        assert says.startswith(f"{key} must be {must_be}")


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values", "names"),
    [
        ("model", ["a\0b", "x" * 5000], "plain text"),
        ("seed", [-1, 2**32], "4294967295"),
        ("dtype", ["float8"], "float32, bfloat16, float16"),
        ("eval.samples", [0], "1"),
        ("eval.temperature", [-0.1], "0"),
        ("eval.top_p", [0, 1.1], "1"),
        ("data.main", ["dens"], "dense"),
        ("data.tiers.dense.train", [-1], "0"),
        ("data.tiers.published.grid", [5], "imported"),
        ("data.tiers.published.source", [""], "hub id"),
        ("data.tiers.overall", [{"test": 1, "source": "{split}.jsonl"}], "name"),
        ("arms.warm.trainer", ["dpo"], "sft, grpo, rejection, none"),
        ("arms.warm.reasoned", [1.5, -0.1], "share"),
        ("arms.warm.sampling", [{"redraws": 2}], "sft"),
        ("arms.warm.reward", [{"shape": "binary"}], "sft"),
        ("arms.eval", [{"trainer": "sft"}], "folder"),
        ("arms.paid.reasoned", [0.5], "gold answers"),
        ("arms.warm.seeds", [[1, 1]], "different"),
        ("arms.warm.seeds", [[-1]], "4294967295"),
        ("arms.warm.tiers", [["trap"], ["untrained"]], "train problems"),
        ("arms.paid.start", ["warm", "cold", "paid"], "(base, warm.3, warm.4)"),
        ("conclusion.margins.gain", [1.5], "share"),
        ("conclusion.margins.new", [0.1], "conclusion.margins.reach (0.05)"),
        ("conclusion.margins.level", [1.0], "0.5"),
        ("conclusion.margins.luck", [0.03], "0.02"),
        ("conclusion.margins.lift", [0], "1"),
        ("conclusion.margins.correction", ["bonferroni"], "holm"),
        ("conclusion.fresh", [0], "1"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_key(tmp_path, key, values, names):
    recipe = copy.deepcopy(THREE)
    imported = {"source": "{split}.jsonl", "test": 1}
    recipe["data"]["tiers"] |= {"published": imported, "untrained": imported}
    for value in values:
        says = refusal(tmp_path, changed(key, value, of=recipe))
        assert says.startswith(key)
        assert names in says


def test_an_arm_cannot_show_reasoning_that_the_recipe_has_not(tmp_path):
    taught = changed("arms.warm.reasoned", 0.5, of=THREE)
    assert load(tmp_path, taught).for_arm("warm.3").data.reasoned == 0.5
    assert "data.reasoning" in refusal(tmp_path, changed("data.reasoning", "none", of=taught))


def test_the_likeliest_answers_are_those_to_the_bare_prompt(tmp_path):
    asked = changed("conclusion.likeliest", True, of=THREE)
    assert load(tmp_path, asked).conclusion.likeliest
    assert "eval.shots" in refusal(tmp_path, changed("eval.shots", 2, of=asked))


def test_the_main_tier_needs_problems_of_every_split(tmp_path):
    says = refusal(tmp_path, changed("data.tiers.dense.val", 0))
    assert "'dense' needs val problems" in says


def test_an_unknown_tier_is_answered_with_the_nearest_one(tmp_path):
    says = refusal(tmp_path, changed("data.tiers.trapp", {"test": 1}))
    assert says.startswith("unknown tier 'trapp'")
    assert says.endswith("; did you mean 'trap'?")
    assert ", ".join(TIERS) in says


@pytest.mark.parametrize(("key", "value"), [("window", ["17:00", "09:00"]), ("binding", True)])
def test_an_impossible_tier_is_refused_before_anything_runs(tmp_path, key, value):
    says = refusal(tmp_path, changed(f"data.tiers.dense.{key}", value))
    assert says.startswith(f"tier 'dense': {key} ")


SFT, SEEDED = {"trainer": "sft"}, {"trainer": "grpo", "seeds": [1, 2]}


@pytest.mark.parametrize(
    ("arms", "conclusion", "key", "names"),
    [
        ({}, {"arms": ["gpro"]}, "arms", "'gpro'"),
        ({}, {"base_best": "best"}, "base_best", "'best'"),
        ({"sft": SFT}, {"base_best": "sft"}, "base_best", "'sft'"),
        ({"cool": {"trainer": "none", "seeds": [1]}}, {"base_best": "cool"}, "base_best", "'cool'"),
        ({}, {"format_only": "grpo"}, "format_only", "'grpo'"),
        ({"form": {**SEEDED, "seeds": [3]}}, {"format_only": "form"}, "format_only", "'form'"),
    ],
)
def test_an_arm_without_a_place_in_the_conclusion_is_refused(
    tmp_path, arms, conclusion, key, names
):
    content = {**GOOD, "arms": {"grpo": SEEDED, **arms}, "conclusion": conclusion}
    says = refusal(tmp_path, content)
    assert says.startswith(f"conclusion.{key}")
    assert names in says


@pytest.mark.parametrize("name", ["base", "data", "eval", "a.1", "a/b", "..", "-x", "a" * 101])
def test_an_arm_has_a_folder_name_of_its_own(tmp_path, name):
    assert refusal(tmp_path, changed("arms", {name: SFT})).startswith(f"arms.{name} cannot be")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "with blank", "r" * 101])
def test_a_run_is_a_plain_folder_name(tmp_path, name):
    assert refusal(tmp_path, {**GOOD, "name": name}).startswith(f"name {name!r:.80} must be")
    if name:
        with pytest.raises(UserError, match=r"^run name .* must be"):
            load(tmp_path, GOOD, run=name)


# --- whose run it is -------------------------------------------------------------------------


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
    for given in ({"path": "copy.yaml"}, {"model": "an/other", "run": "small"}):
        with pytest.raises(UserError, match=r"belongs to the recipe mine\.yaml .* RUN=name"):
            asked(**given)
    asked("copy.yaml", force=True)  # changes hands
    assert asked("copy.yaml").run == first
    with pytest.raises(UserError, match=r"belongs to the recipe copy\.yaml"):
        asked()
    with pytest.raises(UserError, match=r"does not exist; .*; did you mean 'small'\?"):
        asked("copy.yaml", begins=False, run="smal")
