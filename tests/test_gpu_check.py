"""``make gpu-check``: what real trainers and our sampler hold, beside what ``make plan`` says."""

import shutil
from pathlib import Path

import pytest
from running import python, refusal_of
from tiny import LORA, save_model, write_recipe

from pipeline.gpu_check import DRY_STEPS, measure_training, shortened
from pipeline.model.processes import run_apart
from pipeline.plan import plan_of
from pipeline.train.settings import grpo_config


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Large enough that activations outweigh what no formula counts."""
    return save_model(tmp_path_factory.mktemp("model") / "qwen3", "qwen3", hidden=192, layers=4)


def sized(folder: Path, model: Path, checkpointing: bool = False, **more):
    common = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    grpo = {**common, "num_generations": 4, "max_completion_length": 64}
    return write_recipe(folder, model, **{"backend": "trl", "sft": common, "grpo": grpo, **more})


@pytest.mark.slow
@pytest.mark.parametrize("section", ["sft", "grpo"])
@pytest.mark.parametrize(
    "more",
    [{"dtype": "float32"}, {"dtype": "bfloat16", "lora": LORA, "checkpointing": True}],
    ids=["float32", "bfloat16, LoRA, checkpointing"],
)
def test_the_peak_of_a_real_training_is_near_the_plan(section, more, model, tmp_path):
    recipe = sized(tmp_path, model, **more)
    measured = measure_training(recipe.for_arm(section), section)
    planned = {one.settings.arm: one.allocated for one in plan_of(recipe).stages}
    assert measured.backend == "trl"
    assert measured.seconds > 0
    # Eight prompts of hundreds of tokens and more, twice a step.
    assert measured.tokens * measured.seconds > 16 * 100
    assert planned[section] == pytest.approx(measured.peak, rel=0.1)


@pytest.mark.parametrize(("vllm", "least"), [(True, "min_tokens"), (False, "min_new_tokens")])
def test_a_recipe_changes_in_its_steps_and_the_length_of_answers_alone(vllm, least, tmp_path):
    grpo = {"beta": 0.1, "generation_kwargs": {"top_k": 3}, "use_vllm": vllm}
    recipe = write_recipe(tmp_path, "base", sft={"learning_rate": 1.0}, grpo=grpo)
    short = shortened(recipe, gold=50)
    steps = {"max_steps": DRY_STEPS, "logging_steps": 1, "save_strategy": "no"}
    assert short.sft == {"learning_rate": 1.0, **steps}
    longest = {"max_completion_length": 100, "generation_kwargs": {"top_k": 3, least: 100}}
    assert short.grpo == {**grpo, **steps, **longest}
    assert grpo_config(short, tmp_path).generation_kwargs == longest["generation_kwargs"]


@pytest.mark.slow
def test_each_arm_is_measured_apart_and_one_that_fails_is_named(model, tmp_path):
    """Unsloth refuses DoRA, TRL does not. With random weights the model's config is enough."""
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    arms = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "backend": "unsloth"}}
    recipe = sized(tmp_path, bare, arms=arms, lora={**LORA, "use_dora": True})
    done = python("-m", "pipeline.gpu_check", "--random", "--recipe", recipe.path, cwd=tmp_path)
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith("sft "))
    assert row[1] == "trl"
    assert all(float(cell.rstrip("%")) for cell in row[2:])
    assert done.returncode == 1
    assert done.stderr.startswith("error: grpo: ")
    assert "use_dora" in done.stderr


def test_a_measurement_that_is_killed_says_so_whatever_it_had_said():
    noise = "import os, sys; print('begun', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    refusal_of(lambda: run_apart("-c", noise), "it was killed")
