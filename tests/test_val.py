"""A model in training is measured rightly, and without a trace in the training."""

import math
import os
from contextlib import chdir
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny import random_model, save_model, write_recipe

from data import make
from data.prompts import answer
from pipeline.model.decode import Sample, render
from pipeline.model.decoding import Decoding
from pipeline.watch.val import Yardsticks, generated, kl_from, undisturbed, val_rows

slow = pytest.mark.slow


def held(model, tokenizer=None, output=None):
    """As much of a trainer as is used."""
    return SimpleNamespace(
        model=model,
        processing_class=tokenizer,
        args=SimpleNamespace(
            per_device_train_batch_size=4,
            steps_per_generation=1,
            max_completion_length=12,
            output_dir=output,
        ),
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe and its val problems of two tiers."""
    place = tmp_path_factory.mktemp("yardsticks")
    tiers = {name: {"train": 2, "val": 6, "test": 2} for name in ("dense", "trap")}
    with chdir(place):
        made = write_recipe(
            place,
            save_model(place / "qwen3", "qwen3"),
            data={"main": "dense", "tiers": tiers},
            monitor={"problems": 4, "samples": 2},
        )
        make.run(made, force=False)
        yield made


@pytest.fixture
def sticks(recipe, tmp_path):
    """A function that makes Yardsticks of a model with random weights."""
    model, tokenizer = random_model("qwen3")

    def build(kind="grpo"):
        return Yardsticks(held(model, tokenizer, tmp_path), recipe, kind, kind)

    return build


def test_the_val_problems_are_always_the_same_and_of_every_tier(recipe):
    run = recipe.run
    rows = val_rows(run, (), 4)
    assert [row["tier"] for row in rows] == ["dense", "dense", "trap", "trap"]
    assert rows == val_rows(run, (), 4)
    assert {row["tier"] for row in val_rows(run, ("trap",), 4)} == {"trap"}
    assert len({row["id"] for row in val_rows(run, (), 100)}) == 12


@slow
def test_val_counts_verdicts_and_pays_by_the_reward(sticks, monkeypatch):
    made = sticks()
    wrong = Sample("I do not know.", "stop", 9)
    texts = [row["gold"] for row in made.rows[:2]]
    texts += [answer(row["problem"].events[:1], None) for row in made.rows[2:]]
    drawn = [[Sample(text, "stop", 9), wrong] for text in texts]
    monkeypatch.setattr(Yardsticks, "_draw", lambda self, model: drawn)
    measured = made.val()
    del measured["val/entropy"]
    assert measured == {
        "val/optimal": 2 / 8,
        "val/feasible": 4 / 8,
        "val/reward": pytest.approx((2 * 1.0 + 2 * 0.1) / 8),
    }


@slow
def test_the_entropy_on_val_is_that_of_a_token(sticks):
    made = sticks()
    head = made.trainer.model.get_output_embeddings().weight
    before = head.detach().clone()
    with torch.no_grad():
        head.zero_()  # every token is as likely
        assert made.val()["val/entropy"] == pytest.approx(math.log(len(head)))
        head.copy_(100 * before)  # hardly any but one
        assert made.val()["val/entropy"] < 0.5 * math.log(len(head))


@slow
def test_val_loss_is_that_of_the_gold_answers_with_their_end(sticks):
    made = sticks("sft")
    expected, model, tokenizer = [], made.trainer.model, made.tokenizer
    for row in made.rows:
        prompt = tokenizer(render(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["gold"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")
        expected += loss.tolist()
    assert made.val()["val/loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_the_estimator_is_the_kl_from_now_to_the_start():
    """Every token as often as the start draws it: then the mean is the sum over the vocabulary."""
    start, now, tokens = [0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0, 0, 1, 2]
    kl = sum(p * math.log(p / q) for p, q in zip(now, start, strict=True))
    logs = [[math.log(model[token]) for token in tokens] for model in (start, now)]
    assert kl_from(*logs) == pytest.approx(kl)
    assert kl_from(*reversed(logs)) != pytest.approx(kl)


@slow
def test_the_kl_is_zero_at_the_start_grows_with_the_distance_and_survives_a_restart(sticks):
    made = sticks()
    assert made.kl() == {}
    assert sorted(made.begin(fresh=True)) == sorted(made.val())
    measured = [made.kl()["kl_start"]]
    assert measured == [0.0]
    for _ in range(2):
        with torch.no_grad():
            for weight in made.trainer.model.parameters():
                weight.mul_(1.1)
        measured.append(made.kl()["kl_start"])
    assert measured == sorted(set(measured))
    again = sticks()
    assert again.begin(fresh=False) == {}
    assert again.kl() == {"kl_start": measured[-1]}
    made.path.unlink()
    lost = sticks()
    assert (lost.begin(fresh=False), lost.kl()) == ({}, {})


@slow
def test_the_librarys_way_of_drawing_leaves_out_the_habits_of_a_models_own_config():
    model, tokenizer = random_model("qwen3")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)
    trainer = SimpleNamespace(model_wrapped=model, accelerator=Accelerator(cpu=True))

    def drawn() -> list[list[Sample]]:
        return generated(trainer, tokenizer, ["Plan.", "Plan the day."], 2, Decoding(12), 1)

    before = drawn()
    model.generation_config.update(repetition_penalty=3.0, top_k=1)
    assert drawn() == before
    assert [len(group) for group in before] == [2, 2]


@slow
def test_model_and_random_streams_are_as_before_even_after_an_error(monkeypatch):
    monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")
    model, _ = random_model("qwen3")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    def use():
        with undisturbed(held(model)) as same:
            assert not any(module.training for module in same.modules())
            assert not torch.is_grad_enabled()
            assert "UNSLOTH_RETURN_HIDDEN_STATES" not in os.environ
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] == "1"
    assert torch.is_grad_enabled()
