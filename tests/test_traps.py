"""Traps that others fell into: adapters that do not learn, the wrong reference of the KL, answers
cut in training, and an end of the answer that is never learnt."""

from __future__ import annotations

import math
from contextlib import chdir
from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import LORA, save_model, training_for, write_recipe
from transformers import TrainerCallback

from data import make
from pipeline import grpo, sft
from pipeline.model.load import load_model
from pipeline.train.loading import load_for_training
from rewards.reward import reward_weights

pytestmark = pytest.mark.slow
#: The KL in nats a token that the SFT model of these tests has from its base is more than this.
APART = 1e-3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recipe with its data and an SFT model that differs from its base."""
    folder = tmp_path_factory.mktemp("small")
    with chdir(folder):
        model = save_model(folder / "model", "qwen3", hidden=64)
        recipe = write_recipe(folder, model, backend="trl")
        make.run(recipe, force=False)
        sft.run(recipe, force=False)
        yield recipe


@pytest.fixture
def tuned(small):
    return small.run.model("sft")


def by_spelling(prompts, completions, **_):
    """Differs between the answers of a model that knows nothing."""
    return [sum(map(ord, completion[0]["content"])) % 7 / 7 for completion in completions]


@pytest.fixture
def trainer_of(small, tmp_path, monkeypatch):
    """A function that builds a stage's trainer, with changes to the recipe; GRPO's pays."""
    functions = [by_spelling] * len(reward_weights(small.reward))
    monkeypatch.setattr(grpo, "reward_functions", lambda *_: functions)

    def build(stage, start=None, settings=(), rows=None, padding=None, **changes):
        # Warming up, the first step would be at a learning rate of 0.
        section = {**getattr(small, stage), "logging_steps": 1, "warmup_steps": 0}
        recipe = replace(small, **{stage: {**section, **dict(settings)}, **changes})
        training = training_for(recipe, stage, start)
        model, tokenizer = load_for_training(training, 256)
        tokenizer.pad_token = padding or tokenizer.pad_token
        module = {"sft": sft, "grpo": grpo}[stage]
        return module.trainer_for(training, rows or training.rows(), model, tokenizer, tmp_path)

    return build


class Gradients(TrainerCallback):
    """The norm of every trainable weight's gradient, by step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
        assert all(weight.grad is not None for weight in trained.values())
        self.steps.append({name: float(weight.grad.norm()) for name, weight in trained.items()})


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize(
    ("named", "bits"), [("attention", None), ("mlp", None), ("all", None), ("all", 4)]
)
def test_every_adapter_learns_and_nothing_else_does(trainer_of, stage, named, bits):
    trainer = trainer_of(stage, lora={**LORA, "target_modules": named}, bits=bits)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    assert len(seen.steps) == 2
    # B begins at 0, so A has no gradient in the first step.
    assert all(norm > 0 for name, norm in seen.steps[0].items() if "lora_B" in name)
    assert all(norm > 0 for norm in seen.steps[1].values())
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, LoraLayer)]
    changed = {
        name
        for name, weight in trainer.model.named_parameters()
        if not torch.equal(weight.detach(), before[name])
    }
    assert len(changed) == 2 * len(layers) > 0
    assert all("lora_" in name and ".default." in name for name in changed)


def kls(trainer):
    trainer.train()
    return [row["kl"] for row in trainer.state.log_history if "kl" in row]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_grpo_begins_at_its_reference_which_is_the_sft_model(tuned, trainer_of, lora):
    # The KL is to that reference, not of the model to itself: it grows in training.
    found = kls(trainer_of("grpo", tuned, {"beta": 0.1, "max_steps": 3}, lora=lora))
    assert abs(found[0]) < 1e-6
    assert found[2] > 1e-5


def test_the_base_as_the_reference_would_be_seen(small, tuned, trainer_of):
    trainer = trainer_of("grpo", tuned, {"beta": 0.1, "max_steps": 1})
    base, _ = load_model(small.model, "float32")
    trainer.ref_model.load_state_dict(base.state_dict())
    assert kls(trainer)[0] > APART


def batch_of(trainer):
    """The first batch that a trainer sees: (tokens, labels), each as lists of rows."""
    batch = next(iter(trainer.get_train_dataloader()))
    return batch["input_ids"].tolist(), batch["labels"].tolist()


def learnt(labels):
    return [label for label in labels if label != -100]


def test_a_long_gold_answer_is_not_cut(small, trainer_of):
    rows = [{**row, "gold": row["gold"] + " x" * 1500} for row in training_for(small).rows()[:2]]
    two = {"per_device_train_batch_size": 2}
    trainer = trainer_of("sft", settings=two, rows=rows)
    tokenizer = trainer.processing_class
    _, labels = batch_of(trainer)
    golds = sorted(tokenizer.decode(learnt(row)) for row in labels)
    assert golds == sorted(row["gold"] + tokenizer.eos_token for row in rows)
    assert min(len(learnt(row)) for row in labels) > 1500
    # TRL's own default would cut at 1,024 tokens, and the answer is what comes last.
    cut = trainer_of("sft", settings={**two, "max_length": 1024}, rows=rows)
    assert {len(row) for row in batch_of(cut)[0]} == {1024}


@pytest.mark.parametrize("padding", ["<|pad|>", "<|end|>"], ids=["pad", "pad is eos"])
def test_the_end_of_an_answer_is_learnt_and_padding_is_not(small, trainer_of, padding):
    settings = {"per_device_train_batch_size": 10}
    trainer = trainer_of("sft", settings=settings, padding=padding)
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token == padding
    ids, labels = batch_of(trainer)
    assert len(ids) == 10
    answers = sorted(tokenizer.decode(learnt(row)) for row in labels)
    assert answers == sorted(row["gold"] + "<|end|>" for row in training_for(small).rows())
    for row, labelled in zip(ids, labels, strict=True):
        assert learnt(labelled).count(tokenizer.eos_token_id) == 1
        assert learnt(labelled)[-1] == tokenizer.eos_token_id
        assert all(label in (token, -100) for token, label in zip(row, labelled, strict=True))
    assert any(row.count(tokenizer.pad_token_id) > 2 for row in ids)
