"""GRPO's answers are drawn by our own sampler, from the distribution of the library's own."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from running import rows_in
from tiny import RECIPE, random_model, write_recipe

from data.prompts import messages
from data.sections import SamplingSection
from pipeline import grpo
from pipeline.train import rollouts
from pipeline.train.rollouts import LEAST, Dynamic, roll_out, rollouts_for
from rewards.reward import _FUNCTIONS

PLAIN = {"top_k": 0, "min_p": None, "repetition_penalty": 1.0}
PROMPTS = [messages("Zoo visit"), messages("Yoga class, then nothing")]


def trainer_of(model, tokenizer, group=3, **changes):
    args = SimpleNamespace(max_completion_length=8, temperature=1.0, top_p=1.0, **changes)
    return SimpleNamespace(
        args=args,
        processing_class=tokenizer,
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        num_generations=group,
        num_generations_eval=group,
    )


def repeated(prompts, group=3):
    return [prompt for prompt in prompts for _ in range(group)]


def test_every_prompt_of_a_group_gets_an_answer_of_its_own_and_the_mode_stays():
    model, tokenizer = random_model("qwen3")
    model.train()
    torch.manual_seed(0)
    drawn = roll_out(repeated(PROMPTS), trainer_of(model, tokenizer))
    assert model.training
    assert [len(drawn[key]) for key in ("prompt_ids", "completion_ids")] == [6, 6]
    assert len(set(map(tuple, drawn["prompt_ids"]))) == 2
    assert len(set(map(tuple, drawn["completion_ids"]))) > 2
    assert all(1 <= len(answer) <= 8 for answer in drawn["completion_ids"])


def test_the_same_state_of_torchs_stream_draws_the_same_answers():
    model, tokenizer = random_model("qwen3")
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(roll_out(repeated(PROMPTS), trainer_of(model, tokenizer))["completion_ids"])
    assert answers[0] == answers[1] != answers[2]


def test_the_first_token_comes_from_the_models_own_distribution():
    model, tokenizer = random_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight *= 40  # few likely tokens
    group = 2000
    trainer = trainer_of(model, tokenizer, group)
    trainer.args.max_completion_length = 1
    torch.manual_seed(0)
    drawn = roll_out(repeated(PROMPTS[:1], group), trainer)
    with torch.no_grad():
        logits = model(torch.tensor(drawn["prompt_ids"][:1])).logits[0, -1]
    likely = logits.softmax(-1)
    token = int(likely.argmax())
    share = sum(answer == [token] for answer in drawn["completion_ids"]) / group
    # Four standard deviations.
    slack = 4 * float(likely[token] * (1 - likely[token]) / group) ** 0.5
    assert share == pytest.approx(float(likely[token]), abs=slack)


@pytest.mark.parametrize(
    "setting",
    [{"top_k": 20}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"use_vllm": True}],
    ids=str,
)
def test_a_setting_that_the_sampler_does_not_have_leaves_drawing_to_the_trainer(setting):
    assert rollouts_for(SimpleNamespace(**PLAIN)) is roll_out
    assert rollouts_for(SimpleNamespace(**{**PLAIN, **setting})) is None


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_a_model_of_another_state_draws_what_reading_it_all_again_gives(family):
    model, tokenizer = random_model(family)
    trainer = trainer_of(model, tokenizer, 2)
    trainer.args.temperature = 0.0
    drawn = roll_out(repeated(PROMPTS, 2), trainer)
    for ids, answer in zip(drawn["prompt_ids"], drawn["completion_ids"], strict=True):
        whole = model(torch.tensor([[*ids, *answer]])).logits[0].argmax(-1).tolist()
        assert whole[len(ids) - 1 : -1] == answer


# --- a sampling section ----------------------------------------------------------------------

#: The problems, of twenty, that are never or always solved, so that their answers are paid alike.
FLAT = {*range(6), *range(16, 20)}


@pytest.fixture
def asked(monkeypatch):
    """Ask ``Dynamic`` for the problems of a step; answers and pay are made up by problem."""
    drawn = []

    def draw(prompts, trainer):
        drawn.append([int(prompt[-1]["content"]) for prompt in prompts])
        ids = [[place] for place in drawn[-1]]
        return {"prompt_ids": ids, "completion_ids": ids, "logprobs": None}

    def pay(texts, problems, completion_ids):
        alike = [int(problem) in FLAT for problem in problems]
        return [float(one or i % 4 == 0) for i, one in enumerate(alike)]

    monkeypatch.setattr(rollouts, "roll_out", draw)
    rows = [
        {"id": f"r{i}", "prompt": f"{i}", "tier": "easy" if i > 9 else "hard",
         "problem": SimpleNamespace(text=f"{i}")}
        for i in range(20)
    ]  # fmt: skip
    trainer = SimpleNamespace(
        num_generations=4,
        reward_funcs=[pay, lambda texts, problems, completion_ids: [None] * len(texts)],
        reward_weights=torch.tensor([1.0, 0.0]),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: list(map(str, ids))),
        _metrics={"train": {}},
    )

    def ask(chooser, *places):
        found = chooser(repeated([messages(f"{place}") for place in places], 4), trainer)
        answered = [ids[0] for ids in found["prompt_ids"]]
        assert found["completion_ids"] == found["prompt_ids"]
        assert list(map(int, found["problem"])) == answered
        logged = {
            key.partition("/")[2]: value for key, [value] in trainer._metrics["train"].items()
        }
        return answered[::4], logged

    torch.manual_seed(0)
    return SimpleNamespace(ask=ask, rows=rows, drawn=drawn)


def test_groups_that_are_paid_alike_give_way_to_others_and_their_answers_are_counted(asked):
    chooser = Dynamic(SamplingSection(redraws=9), asked.rows)
    answered, logged = asked.ask(chooser, 0, 7, 16, 8)
    assert answered[1::2] == [7, 8]
    assert not FLAT & set(answered)
    assert len(set(answered)) == 4
    first, *again = asked.drawn
    others = [place for one in again for place in one[::4]]
    assert first[::4] == [0, 7, 16, 8]
    assert not {0, 7, 16, 8} & set(others)  # none is asked twice
    assert logged == {"drawn": 16 + 4 * len(others), "thrown_away": 4 * len(others)}


def test_rounds_end_at_their_number_where_no_problem_is_left_and_at_the_most_answers(asked):
    chooser = Dynamic(SamplingSection(redraws=1), asked.rows)
    assert asked.ask(chooser, 0, 1, 2, 3)[1] == {"drawn": 32, "thrown_away": 16}
    few = Dynamic(SamplingSection(redraws=9), asked.rows[:5])
    assert asked.ask(few, 0, 1, 2)[1] == {"drawn": 20, "thrown_away": 8}
    assert sorted(asked.drawn[-1][::4]) == [3, 4]
    bound = Dynamic(SamplingSection(redraws=9, answers=21), asked.rows)
    assert asked.ask(bound, 0, 1, 2)[1] == {"drawn": 20, "thrown_away": 8}


def test_problems_that_taught_nothing_are_drawn_less_but_not_never(asked):
    chooser = Dynamic(SamplingSection(by_success=True), asked.rows)
    for _ in range(30):
        asked.ask(chooser, 0, 1, 2)
    asked.drawn.clear()
    for _ in range(400):
        asked.ask(chooser, 0, 1, 2)
    times = Counter(place for one in asked.drawn for place in one[::4])
    flat = sum(times[place] for place in FLAT) / len(FLAT)
    others = sum(times[place] for place in set(range(20)) - FLAT) / (20 - len(FLAT))
    assert min(times.values()) > 0
    assert flat / others == pytest.approx(LEAST, rel=0.4)


def test_a_problem_that_was_never_asked_counts_as_its_tier(asked):
    chooser = Dynamic(SamplingSection(by_success=True), asked.rows)
    chooser.flat = {"easy": 1.0}
    chosen = [chooser._choose(1, ())[0] for _ in range(600)]
    easy = sum(place > 9 for place in chosen)
    assert easy / (600 - easy) == pytest.approx(LEAST, rel=0.3)


# --- a training with one ---------------------------------------------------------------------


@pytest.fixture
def train(folder, monkeypatch):
    """Train GRPO from the base; returns the rows of its log, and its weights as bytes."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(grpo, "gate", lambda *_: None)

    def train(sampling, **changes):
        recipe = write_recipe(
            folder, folder / "qwen3", arms={"grpo": {"trainer": "grpo"}}, sampling=sampling,
            grpo={**RECIPE["grpo"], "warmup_steps": 2, "max_steps": 8, **changes},
            monitor={"every": 0, "kl_every": 0},
        )  # fmt: skip
        grpo.run(recipe, force=True)
        rows = rows_in(recipe.run.folder / "grpo" / "log.jsonl")
        weights = recipe.run.folder / "grpo" / "model" / "model.safetensors"
        return [row for row in rows if "loss" in row], weights.read_bytes()

    return train


@pytest.mark.slow
def test_a_training_ends_at_its_answers_whichever_were_thrown_away(train):
    rows, _ = train({"redraws": 2, "answers": 60})  # all are wrong, so every group is drawn again
    assert [row["sampling/drawn"] for row in rows] == [24, 48, 60]
    assert [row["sampling/thrown_away"] for row in rows] == [16, 32, 36]
    assert [row["step"] for row in rows] == [1, 2, 3]
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == 0
    # Warmed up after 2 of 8 steps, so after 15 of 60 answers, and falling to 0 at the last one.
    assert rates[1:] == pytest.approx([0.01 * (60 - done) / 45 for done in (24, 48)])


@pytest.mark.slow
def test_a_bound_that_all_steps_reach_changes_no_byte(train, monkeypatch):
    def pay(problems, texts):
        return [float(place % 2) for place in range(len(texts))]

    monkeypatch.setitem(_FUNCTIONS, "optimal", pay)
    rows, weights = train({}, max_steps=3)
    bound, same = train({"answers": 24}, max_steps=3)
    assert weights == same
    assert rows[-1]["grad_norm"] > 0
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in bound]


@pytest.mark.slow
def test_the_trainer_rewards_the_problems_that_were_answered(train, monkeypatch):
    def pay(problems, texts):
        flat = [sum(map(ord, problem)) % 2 for problem in problems]
        return [float(one or i % 2) for i, one in enumerate(flat)]

    monkeypatch.setitem(_FUNCTIONS, "optimal", pay)
    rows, _ = train({"redraws": 9, "by_success": True}, max_steps=4)
    assert rows[-1]["sampling/thrown_away"] > 0
    assert [row["frac_reward_zero_std"] for row in rows] == [0] * 4


@pytest.mark.slow
def test_answers_used_for_several_steps_are_used_for_all_of_them_at_the_end_too(train):
    rows, _ = train({"answers": 17}, num_iterations=2, max_steps=4)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("sampling/drawn") for row in rows] == [8, None, 16, None]
