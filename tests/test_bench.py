"""The bench's side-by-side runs."""

from dataclasses import replace
from pathlib import Path

from conftest import tier_problems
from tiny import save_model, write_recipe

from data import make
from data.recipe import load_recipe
from eval.bench import bench_grpo, bench_judging, bench_monitor

TINY = Path(__file__).parents[1] / "pipeline" / "recipes" / "tiny.yaml"


def test_a_grpo_step_is_timed_beside_that_of_a_bare_trl_trainer():
    recipe = load_recipe(TINY)
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16}
    recipe = replace(recipe, grpo={**recipe.grpo, **small})
    step, share = bench_grpo(recipe, list(tier_problems("dense", 8)), steps=1, repeats=1)
    assert "GRPO step" in step.what
    assert "stock TRL" in step.beside
    assert 0 <= float(share.figure.rstrip("%")) < 100


def test_a_watched_training_is_timed_beside_one_that_nobody_watches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, save_model(tmp_path / "qwen3", "qwen3"))
    make.run(recipe, force=False, workers=1)
    step, share = bench_monitor(recipe, list(tier_problems("dense", 8)), steps=2, pairs=1)
    assert "unwatched" in step.beside
    assert 0 < float(share.figure.rstrip("%")) < 1000


def test_verdict_rows_are_timed_to_a_verdict():
    [row] = bench_judging(2_000)
    assert "2,000 verdict rows" in row.what
    assert float(row.figure) < 30
