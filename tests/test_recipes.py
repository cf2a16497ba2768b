"""Every recipe of the project: sound, named like its file, and those of known base models fit the
GPU that they are made for."""

from dataclasses import replace

import pytest
from running import EMBEDDED, RECIPES, ROOT
from transformers import AutoConfig

from data import make
from data.recipe import load_recipe
from data.sections import SPLITS
from pipeline.check import check_texts
from pipeline.memory.shapes import KNOWN_MODELS, known_model
from pipeline.plan import plan_of, room_for
from pipeline.train.settings import check_settings

PATHS = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
#: Those that start from a model of the hub; the others run on a CPU.
LARGE = [
    name
    for name, path in PATHS.items()
    if not load_recipe(path).model.startswith(("pipeline/", "runs/", "pypi:"))
]
EMBEDDING = [name for name in PATHS if load_recipe(PATHS[name]).model == "pipeline/embedded"]
GPU = 24


@pytest.mark.parametrize("name", PATHS)
def test_a_recipe_is_sound_and_named_like_its_file(name):
    recipe = load_recipe(PATHS[name])
    check_settings(recipe)
    assert recipe.name == name
    if name in LARGE and name not in ("gpu", "blog-7b"):
        model = recipe.model.rpartition("/")[2].lower()
        shared = name.removesuffix("-base")
        assert model.removesuffix("-instruct").removesuffix("-it").removesuffix("-base") in (
            shared, shared.removesuffix("-instruct")
        )  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_what_is_drawn_at_a_time_goes_into_one_step_so_that_batches_hold_whole_groups(name):
    """Else TRL's mixed batches stand, each of which reads most prompts; a recipe that changes one
    of the two settings inherits the other."""
    grpo = load_recipe(PATHS[name]).grpo
    step = grpo.get("gradient_accumulation_steps", 1)
    assert step % (grpo.get("steps_per_generation") or step) == 0


def test_every_model_whose_architecture_is_known_has_a_recipe():
    assert set(KNOWN_MODELS) <= set(LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDING)
def test_the_texts_of_a_recipe_fit_the_embedded_base(name, tmp_path, monkeypatch):
    recipe = load_recipe(PATHS[name], model=str(EMBEDDED), run="few")
    few = {
        tier: {key: min(value, 3) if key in SPLITS else value for key, value in use.items()}
        for tier, use in recipe.data.tiers.items()
    }
    monkeypatch.chdir(tmp_path)
    recipe = replace(recipe, data=replace(recipe.data, tiers=few))
    make.run(recipe, force=False)
    check_texts(recipe)


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_of_a_large_model_fits_its_gpu(name, tmp_path):
    hub_id = load_recipe(PATHS[name]).model
    AutoConfig.for_model(**known_model(hub_id)).save_pretrained(tmp_path)
    recipe = load_recipe(PATHS[name], model=str(tmp_path), run="no-such-run")
    # Our own tiers stand in for imported ones, whose texts are as long and not at hand.
    tiers = {
        tier: {key: value for key, value in use.items() if key != "source"}
        for tier, use in recipe.data.tiers.items()
    }
    recipe = replace(recipe, data=replace(recipe.data, tiers=tiers))
    for stage in plan_of(recipe).stages:
        assert stage.total <= room_for(stage, GPU), stage.settings.arm
        longest = recipe.max_seq_length
        assert stage.settings.stage == "sft" or stage.settings.length <= longest


def test_the_readme_counts_the_models_that_have_a_recipe():
    count = len(set(LARGE) - {"gpu", "blog-7b"})
    assert f"Recipes for {count} models" in (ROOT / "README.md").read_text()


def test_answers_are_as_long_in_training_as_in_the_evaluation_of_what_was_trained():
    for name in LARGE:
        recipe = load_recipe(PATHS[name])
        assert recipe.grpo["max_completion_length"] == recipe.eval.max_tokens, name
