"""The bench's side-by-side runs."""

from dataclasses import replace
from pathlib import Path

from conftest import tier_problems

from data.recipe import load_recipe
from eval.bench import bench_grpo, bench_judging

TINY = Path(__file__).parents[1] / "pipeline" / "recipes" / "tiny.yaml"


def test_a_grpo_step_is_timed_beside_that_of_a_bare_trl_trainer():
    recipe = load_recipe(TINY)
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16}
    recipe = replace(recipe, grpo={**recipe.grpo, **small})
    step, share = bench_grpo(recipe, list(tier_problems("dense", 8)), steps=1, repeats=1)
    assert "GRPO step" in step.what
    assert "stock TRL" in step.beside
    assert 0 <= float(share.figure.rstrip("%")) < 100


def test_verdict_rows_are_timed_to_a_verdict():
    [row] = bench_judging(2_000)
    assert "2,000 verdict rows" in row.what
    assert float(row.figure) < 30
