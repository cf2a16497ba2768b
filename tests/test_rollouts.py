"""GRPO's answers are drawn by our own sampler, from the distribution of the library's own."""

from types import SimpleNamespace

import pytest
import torch
from tiny import random_model
from transformers import AutoModelForCausalLM, Lfm2Config, MambaConfig

from data.prompts import messages
from pipeline.train.rollouts import roll_out, rollouts_for

PLAIN = {"top_k": 0, "min_p": None, "repetition_penalty": 1.0}
PROMPTS = [messages("Zoo visit"), messages("Yoga class, then nothing")]


def trainer_of(model, tokenizer, group=3, **changes):
    args = SimpleNamespace(
        max_completion_length=8, temperature=1.0, top_p=1.0, chat_template_kwargs=None, **changes
    )
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


@pytest.mark.parametrize("kind", [MambaConfig, Lfm2Config])
def test_a_model_of_another_state_draws_what_reading_it_all_again_gives(kind):
    tokenizer = random_model("qwen3")[1]
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    mixed = {"layer_types": ["conv", "full_attention"], **heads} if kind is Lfm2Config else {}
    config = kind(pad_token_id=0, **size, **mixed)
    model = AutoModelForCausalLM.from_config(config).eval()
    trainer = trainer_of(model, tokenizer, 2)
    trainer.args.temperature = 0.0
    drawn = roll_out(repeated(PROMPTS[:2], 2), trainer)
    for ids, answer in zip(drawn["prompt_ids"], drawn["completion_ids"], strict=True):
        whole = model(torch.tensor([[*ids, *answer]])).logits[0].argmax(-1).tolist()
        assert whole[len(ids) - 1 : -1] == answer
