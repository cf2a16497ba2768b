"""The stages end to end, on tiny models of several architectures with random weights."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from data import make
from data.errors import UserError
from data.files import read_jsonl
from data.recipe import load_recipe
from eval import report
from eval.sample import sample_arm, samples_path, trained_arms
from pipeline import grpo, sft
from pipeline.tokens import build_tokenizer

RECIPE = {
    "name": "small",
    "seed": 3,
    "model": "filled in",
    "data": {
        "main": "dense",
        "tiers": {
            "dense": {"train": 8, "val": 1, "test": 3, "events": [3, 4]},
            "blog": {"train": 2, "test": 2, "grid": 5},
        },
    },
    "rewards": {"format": 0.1, "optimal": 0.9},
    "sft": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01},
    "grpo": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 0.01,
        "logging_steps": 1,
    },
    "eval": {"samples": 4, "max_tokens": 12, "resamples": 200},
}


def _save_model(folder, architecture):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    size = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    if architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=8, tie_word_embeddings=True, **size))
    else:
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    """A function that writes a recipe, with changes, for a model of an architecture."""
    monkeypatch.chdir(tmp_path)

    def write(architecture="qwen3", **changes):
        folder = tmp_path / architecture
        if not folder.is_dir():
            _save_model(folder, architecture)
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "model": str(folder), **changes}))
        return load_recipe(path)

    return write


def _weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def _differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_the_whole_pipeline_runs_on_a_model_of_another_architecture(
    recipe_of, architecture, capsys
):
    recipe = recipe_of(architecture)
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    grpo.run(recipe, force=False)
    assert trained_arms(recipe) == ["base", "sft", "grpo"]
    for arm in trained_arms(recipe):
        sample_arm(recipe, arm, force=False)
    report.run(recipe, force=False)
    found = json.loads((recipe.folder / "eval" / "report.json").read_text())
    assert found["arms"] == ["base", "sft", "grpo"]
    assert list(found["tiers"]) == ["dense", "blog"]
    assert found["tiers"]["dense"]["problems"] == 3
    for arm in ("base", "sft", "grpo"):
        rows = [row for _, row in read_jsonl(recipe.folder / "eval" / arm / "verdicts.jsonl")]
        assert len(rows) == 5 * 4
        assert {row["arm"] for row in rows} == {arm}
    assert (recipe.folder / "eval" / "passk.png").stat().st_size > 10_000
    base, tuned, final = (
        _weights(folder)
        for folder in (recipe.model, recipe.folder / "sft/model", recipe.folder / "grpo/model")
    )
    assert _differ(base, tuned)
    assert base.keys() == tuned.keys() == final.keys()
    steps = [row for _, row in read_jsonl(recipe.folder / "grpo" / "log.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert {"rewards/format/mean", "rewards/optimal/mean", "entropy", "grad_norm"} <= steps[
        0
    ].keys()
    manifest = json.loads((recipe.folder / "grpo" / "manifest.json").read_text())
    assert manifest["trained_with"]["num_generations"] == 4
    assert manifest["trainable_parameters"] > 0

    capsys.readouterr()
    sft.run(recipe, force=False)
    grpo.run(recipe, force=False)
    sample_arm(recipe, "base", force=False)
    report.run(recipe, force=False)
    said = capsys.readouterr().out
    assert said.count("up to date") == 4


def test_lora_trains_and_is_merged_into_a_model_that_differs_from_its_base(recipe_of):
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    recipe = recipe_of(lora=lora)
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    folder = recipe.folder / "sft" / "model"
    assert not (folder / "adapter_config.json").exists()
    base, tuned = _weights(recipe.model), _weights(folder)
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed
    assert all(any(t in name for t in lora["target_modules"]) for name in changed)


def test_grpo_can_start_from_the_base_without_sft(recipe_of):
    recipe = recipe_of(init="base")
    make.run(recipe, force=False, workers=1)
    grpo.run(recipe, force=False)
    assert trained_arms(recipe) == ["base", "grpo"]


def test_grpo_without_its_sft_model_says_what_to_run(recipe_of):
    recipe = recipe_of()
    make.run(recipe, force=False, workers=1)
    with pytest.raises(UserError, match="run `make sft` first"):
        grpo.run(recipe, force=False)


def test_training_without_data_says_what_is_missing(recipe_of):
    with pytest.raises(UserError, match="does not exist"):
        sft.run(recipe_of(), force=False)


def test_sampling_goes_on_where_it_was_interrupted_and_ends_with_the_same_samples(recipe_of):
    recipe = recipe_of()
    make.run(recipe, force=False, workers=1)
    sample_arm(recipe, "base", force=False)
    path = samples_path(recipe, "base")
    whole = path.read_text()
    manifest = json.loads(path.with_name("manifest.json").read_text())

    # As a kill in the middle of a write leaves it: rows of two problems, then half a line.
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:20])
    path.with_name("manifest.json").unlink()
    key = {name: manifest[name] for name in ("stage", "settings", "inputs")}
    path.with_name("begun.json").write_text(json.dumps(key))
    sample_arm(recipe, "base", force=False)
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def test_training_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(
    recipe_of, monkeypatch, capsys
):
    recipe = recipe_of(sft={**RECIPE["sft"], "max_steps": 4, "save_steps": 2})
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    whole = _weights(recipe.folder / "sft" / "model")
    shutil.rmtree(recipe.folder / "sft")

    from pipeline.log import Log

    def stop(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Log, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        sft.run(recipe, force=False)
    monkeypatch.undo()
    monkeypatch.chdir(recipe.path.parent)
    capsys.readouterr()
    sft.run(recipe, force=False)
    assert "going on from" in capsys.readouterr().out
    assert not _differ(whole, _weights(recipe.folder / "sft" / "model"))
