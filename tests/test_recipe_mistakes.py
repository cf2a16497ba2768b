"""Recipes: the one sentence that every mistake in one earns."""

import copy
from pathlib import Path

import pytest
import yaml
from running import refusal_of
from test_recipe import GOOD, THREE, changed, extend, load

from data.recipe import load_recipe
from data.tiers import TIERS

NAN, INF = float("nan"), float("inf")
SFT, SEEDED = {"trainer": "sft"}, {"trainer": "grpo", "seeds": [1, 2]}


def refusal(tmp_path: Path, content: dict | str) -> str:
    """What is said of a recipe, after its file's name."""
    text = refusal_of(lambda: load(tmp_path, content))
    assert text.startswith(f"{tmp_path / 'small.yaml'}:")
    return text.removeprefix(f"{tmp_path / 'small.yaml'}:").strip()


# --- the file --------------------------------------------------------------------------------


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
        # No such character, no text, a control character, tags that do not fit.
        b'name: "\\UFFFFFFFF"\n', b"\xff\xfe\x00", b"name: x\n\x00", b"seed: !!int ''\n",
        b"seed: !!bool x",
        # Beyond all measure.
        b"seed: " + b"9" * 5000, b"a: " + b"[" * 2000, b"a: " + b"{b: " * 2000,
    ],
)  # fmt: skip
def test_a_file_that_yaml_cannot_be_is_one_sentence(tmp_path, content):
    path = tmp_path / "small.yaml"
    path.write_bytes(content)
    refusal_of(lambda: load_recipe(path), "small.yaml ")


def test_a_value_that_unfolds_without_end_is_quoted_in_a_few_words(tmp_path):
    more = ", ".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 30))
    text = yaml.safe_dump({**GOOD, "sft": None})
    text = text.replace("sft: null", f"sft: {{x0: &x0 [1], {more}}}\nseed: *x29")
    assert refusal(tmp_path, text).startswith("seed must be a whole number, not [[")


@pytest.mark.parametrize("value", ["null", "true", "[null, false]"])
def test_a_wrong_value_is_quoted_as_yaml_has_it(tmp_path, value):
    text = yaml.safe_dump({**GOOD, "seed": 1}).replace("seed: 1", f"seed: {value}")
    assert refusal(tmp_path, text).endswith(f"not {value}")


@pytest.mark.parametrize("text", ["", "- 1\n", "tiny\n"])
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path, text):
    assert "mapping" in refusal(tmp_path, text)


def test_a_missing_recipe_is_answered_with_the_nearest_name(tmp_path):
    for name in ("tiny", "blog-7b"):
        (tmp_path / f"{name}.yaml").write_text("")
    for name, near in (("tinny", "; did you mean 'tiny'?"), ("quite-another", ""), ("x/tiny", "")):
        says = refusal_of(lambda name=name: load_recipe(tmp_path / f"{name}.yaml"))
        assert says.endswith(f"{name}.yaml does not exist{near}")


# --- recipes on top of others ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("extends", "below", "named"),
    [
        ("below.yaml", "sede: 3", ["extends: unknown key 'sede'; did you mean 'seed'?"]),
        (3, "", ["small.yaml: extends ", ", not 3"]),
        ("belov.yaml", "", ["small.yaml extends ", " exist; did you mean 'below'?"]),
        ("below.yaml", "extends: belov", ["below.yaml extends 'belov': recipe ", "not exist"]),
        ("below.yaml", "- seed: 3", ["below.yaml: ", " must be a mapping of keys, not ["]),
        ("below.yaml", "name: a\nsft: [", ["below.yaml:2 is not valid YAML"]),
    ],
)
def test_a_mistake_in_what_is_extended_is_one_sentence(tmp_path, extends, below, named):
    (tmp_path / "below.yaml").write_text(below)
    refusal_of(lambda: load(tmp_path, {**GOOD, "extends": extends}), *named)


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
    said = refusal_of(lambda: load(tmp_path, {"extends": way}))
    assert said.endswith(".yaml: extends goes in a circle")


# --- keys and values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("modle", "model"), ("rewards", "reward"), ("data.tires", "tiers"),
        ("data.tiers.dense.trian", "train"), ("data.tiers.dense.evnts", "events"),
        ("eval.temprature", "temperature"), ("arms.warm.strat", "start"),
        ("arms.paid.reward.shap", "shape"), ("conclusion.margins.gian", "gain"),
        # Fields of a recipe that no file may set.
        ("path", None), ("run", None), ("data.tiers.dense.tier", None),
    ],
)  # fmt: skip
def test_an_unknown_key_is_answered_with_the_nearest_right_one(tmp_path, key, near):
    said = refusal(tmp_path, changed(key, 1, of=THREE))
    assert said == f"unknown key {key!r}" + (f"; did you mean {near!r}?" if near else "")


OF_GRPO = "under `arms.paid.settings` where the trainer is grpo"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("max_steps", "under `sft` or under `grpo`"),
        ("temperature", "under `eval` or under `grpo`"),
        ("data.trap", "under `data.tiers`"),
        ("reasoned", "under `data` or under `arms.NAME`"),
        ("events", "under `data.tiers.NAME`"),
        ("data.seed", "at the top"),
        ("data.num_generations", "under `grpo`"),
        ("conclusion.gain", "under `conclusion.margins`"),
        ("every", "under `monitor`"),
        ("samples", "under `eval` or under `monitor`, or did you mean 'sampling'?"),
        ("arms.paid.learning_rate", "under `arms.paid.settings`"),
        ("arms.paid.temperature", f"under `arms.paid.eval` or {OF_GRPO}"),
        ("arms.paid.eval.beta", OF_GRPO),
        ("arms.paid.shape", "under `arms.paid.reward`"),
        ("arms.paid.eval.lora", "at the top"),
    ],
)
def test_a_key_in_another_place_is_answered_with_where_it_belongs(tmp_path, key, place):
    name = key.rpartition(".")[2]
    said = refusal(tmp_path, changed(key, 1, of=THREE))
    assert said == f"unknown key {key!r}; `{name}` belongs {place}"


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
    for like in ("trapp", ["trap"], None):
        says = refusal(tmp_path, changed("data.tiers.new", {"like": like, "test": 1}))
        assert says.startswith("unknown tier")


@pytest.mark.parametrize(("key", "value"), [("window", ["17:00", "09:00"]), ("binding", True)])
def test_an_impossible_tier_is_refused_before_anything_runs(tmp_path, key, value):
    says = refusal(tmp_path, changed(f"data.tiers.dense.{key}", value))
    assert says.startswith(f"tier 'dense': {key} ")


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
        said = refusal_of(lambda: load(tmp_path, GOOD, run=name), " must be")
        assert said.startswith("run name ")
