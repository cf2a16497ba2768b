"""What a model in training is measured by: right numbers, and no trace in the training."""

import json
import math
import os
import random
from types import SimpleNamespace

import pytest
import torch
from tiny import random_model, save_model, write_recipe

from data import make
from data.recipe import load_recipe
from pipeline.model.decode import Sample, render
from pipeline.watch import val as yardsticks
from pipeline.watch.val import Encoded, Yardsticks, kl_from, scores, undisturbed, val_rows


def held(model):
    """As much of a trainer as is asked for."""
    return SimpleNamespace(
        model=model,
        args=SimpleNamespace(per_device_train_batch_size=4),
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    place = tmp_path_factory.mktemp("yardsticks")
    tiers = {name: {"train": 2, "val": 6, "test": 2} for name in ("dense", "trap")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        found = write_recipe(
            place,
            save_model(place / "qwen3", "qwen3"),
            data={"main": "dense", "tiers": tiers},
            monitor={"problems": 4, "samples": 2, "sampled": ["sft", "grpo"]},
            arms={"sft": {"trainer": "sft"}, "trapped": {"trainer": "sft", "tiers": ["trap"]}},
        )
        make.run(found, force=False, workers=1)
    return found


@pytest.fixture
def sticks(recipe, monkeypatch, tmp_path):
    """A function that makes them, of a model with random weights."""
    monkeypatch.chdir(recipe.path.parent)
    model, tokenizer = random_model("qwen3")

    def build(kind="sft"):
        rows = val_rows(recipe, "sft")
        return Yardsticks(recipe, kind, held(model), tokenizer, rows, tmp_path)

    return build


# --- val ---------------------------------------------------------------------------------------


def test_the_val_problems_are_always_the_same_and_of_every_tier(recipe, monkeypatch):
    monkeypatch.chdir(recipe.path.parent)
    rows = val_rows(recipe, "sft")
    assert [row["tier"] for row in rows] == ["dense", "dense", "trap", "trap"]
    assert [row["id"] for row in rows] == [row["id"] for row in val_rows(recipe, "sft")]
    assert {row["tier"] for row in val_rows(recipe, "trapped")} == {"trap"}
    many = load_recipe(recipe.path)
    object.__setattr__(many.monitor, "problems", 100)
    assert len({row["id"] for row in val_rows(many, "sft")}) == 12


def test_val_says_what_the_verdicts_and_the_reward_say(sticks, monkeypatch):
    made = sticks("grpo")
    right = [Sample(row["gold"], "stop", 9) for row in made.rows]
    wrong = Sample("I do not know.", "stop", 9)
    single = []
    for row in made.rows:
        event = row["problem"].events[0]
        text = make.answer((event,), None)
        single.append(Sample(text, "stop", 9))
    drawn = [[one, wrong] for one in right[:2]] + [[one, wrong] for one in single[2:]]
    monkeypatch.setattr(Yardsticks, "_draw", lambda self, model: drawn)
    found = made.val()
    del found["val/entropy"]
    assert found == {
        "val/optimal": 2 / 8,
        "val/feasible": 4 / 8,
        "val/reward": pytest.approx((2 * 1.0 + 2 * 0.1) / 8),
    }


def test_the_entropy_on_val_is_what_the_model_has_a_token(sticks):
    made = sticks("grpo")
    head = made.trainer.model.get_output_embeddings().weight
    before = head.detach().clone()
    with torch.no_grad():
        head.zero_()  # every token is as likely
    assert made.val()["val/entropy"] == pytest.approx(math.log(len(head)))
    with torch.no_grad():
        head.copy_(100 * before)  # hardly any but one
    assert made.val()["val/entropy"] < 0.5 * math.log(len(head))


def test_val_draws_the_same_answers_from_the_same_model(sticks):
    made = sticks()
    with undisturbed(made.trainer) as model:
        first = made._draw(model)
        torch.manual_seed(99)
        assert made._draw(model) == first
    assert [len(group) for group in first] == [2] * 4


def test_val_loss_is_that_of_the_gold_answers_with_their_end(sticks):
    made = sticks()
    expected, model, tokenizer = [], made.trainer.model, made.tokenizer
    for row in made.rows:
        prompt = tokenizer(render(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["gold"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")
        expected += loss.tolist()
    found = made.val()["val/loss"]
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)


# --- KL ----------------------------------------------------------------------------------------


def test_the_estimator_is_the_kl_from_now_to_the_start():
    """Every token as often as the start draws it: then the mean is the sum over the vocabulary."""
    start, now = [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]
    tokens = [0, 0, 1, 2]
    found = kl_from(
        [math.log(start[token]) for token in tokens], [math.log(now[token]) for token in tokens]
    )
    assert found == pytest.approx(sum(p * math.log(p / q) for p, q in zip(now, start, strict=True)))
    assert found != pytest.approx(sum(q * math.log(q / p) for p, q in zip(now, start, strict=True)))


def test_the_estimator_is_right_on_average_and_never_below_zero():
    rng = random.Random(0)
    start, now = [0.7, 0.2, 0.1], [0.4, 0.4, 0.2]
    tokens = rng.choices(range(3), start, k=20_000)
    each = [kl_from([math.log(start[t])], [math.log(now[t])]) for t in tokens]
    kl = sum(p * math.log(p / q) for p, q in zip(now, start, strict=True))
    assert min(each) >= 0
    assert sum(each) / len(each) == pytest.approx(kl, rel=0.05)


def test_the_kl_is_zero_at_the_start_grows_with_the_distance_and_survives_a_restart(sticks):
    made = sticks()
    assert made.kl() == {}
    assert sorted(made.begin(fresh=True)) == sorted(made.val())
    assert made.kl() == {"kl_start": 0.0}
    found = [0.0]
    for _ in range(2):
        with torch.no_grad():
            for weight in made.trainer.model.parameters():
                weight.mul_(1.1)
        found.append(made.kl()["kl_start"])
    assert found == sorted(set(found))
    again = Yardsticks(
        made.recipe, "sft", made.trainer, made.tokenizer, made.rows, made.path.parent
    )
    assert again.begin(fresh=False) == {}
    assert again.kl() == {"kl_start": found[-1]}
    made.path.unlink()
    assert (again.begin(fresh=False), sticks().kl()) == ({}, {})


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": [1], "answer": [2]}',
        '{"prompt": [1], "answer": [2, 3], "scores": [-0.5]}',
        '{"prompt": [1], "answer": [10000000], "scores": [-0.5]}',
        '{"prompt": [-1], "answer": [2], "scores": [-0.5]}',
        '{"prompt": [], "answer": [2], "scores": [-0.5]}',
        '{"prompt": [1], "answer": [2], "scores": [NaN]}',
        '{"prompt": "a", "answer": [2], "scores": [-0.5]}',
        "[]",
        '{"prompt": [1',
    ],
)
def test_spoilt_answers_of_the_start_leave_the_kl_out_and_that_is_said(sticks, row, capsys):
    made = sticks()
    good = '{"prompt": [1], "answer": [2], "scores": [-0.5]}\n'
    made.path.write_text(good)
    assert made.begin(fresh=False) == {}
    assert set(made.kl()) == {"kl_start"}
    assert capsys.readouterr().out == ""
    made = sticks()
    made.path.write_text(f"{good}{row}\n{good}")
    assert made.begin(fresh=False) == {}
    assert made.kl() == {}
    said = capsys.readouterr().out
    assert f"{made.path}:2 " in said
    assert said.endswith(": kl_start is not measured from here on\n")


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize("most", [2**26, 30_000], ids=["together", "one by one"])
def test_scores_are_those_of_each_text_by_itself(architecture, most, monkeypatch):
    monkeypatch.setattr(yardsticks, "_LOGITS", most)
    model, _ = random_model(architecture)
    rng = random.Random(0)
    texts = [
        Encoded(*([rng.randrange(500) for _ in range(count)] for count in (asked, answered)))
        for asked, answered in ((40, 7), (9, 1), (23, 12), (9, 30))
    ]
    with torch.no_grad():
        found = scores(model, texts)
        for text, each in zip(texts, found, strict=True):
            logits = model(input_ids=torch.tensor([text.prompt + text.answer])).logits[0]
            alone = logits.log_softmax(-1)[len(text.prompt) - 1 : -1]
            alone = alone.gather(-1, torch.tensor(text.answer)[:, None])[:, 0]
            assert torch.allclose(each, alone, atol=1e-5)
    batches = list(yardsticks._batches(texts, model.config.vocab_size))
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]
    assert len(batches) == (1 if most > 10**6 else 4)


# --- no trace ----------------------------------------------------------------------------------


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


def test_what_is_kept_of_the_start_is_its_own_answers(sticks):
    made = sticks()
    made.begin(fresh=True)
    rows = [json.loads(line) for line in made.path.read_text().splitlines()]
    assert len(rows) == 4
    with undisturbed(made.trainer) as model:
        drawn = made._draw(model)
    for row, prompt, group in zip(rows, made.prompts, drawn, strict=True):
        assert row["prompt"] == made.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        text = made.tokenizer.decode(row["answer"], skip_special_tokens=True)
        assert text == group[0].completion
        assert len(row["scores"]) == len(row["answer"])
