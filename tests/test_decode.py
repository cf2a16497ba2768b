import math

import pytest
import torch
from running import refusal_of
from tiny import spread_model

from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import reasoning_prefix, render, sample
from pipeline.model.decoding import Decoding
from pipeline.model.sampler import draw_tokens

pytestmark = pytest.mark.slow

PROMPTS = [
    "Zoo visit",
    "Zoo visit, Vet visit and Yoga class at 09:00",
    "10:00 - 11:00\n- Swim meet",
]


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text"])
@pytest.mark.parametrize("attention", ["sdpa", "grouped"])
def test_greedy_decoding_equals_generate_for_unlike_prompts(architecture, attention):
    model, tokenizer = spread_model(architecture)
    model.set_attn_implementation("sdpa")
    prompts = [render(tokenizer, p) for p in PROMPTS]
    expected = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        out = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            do_sample=False, max_new_tokens=90,
        )  # fmt: skip
        new = out[0, inputs["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    model.set_attn_implementation(attention)
    decoding = Decoding(temperature=0, max_tokens=90)
    found = dict(sample(model, tokenizer, prompts, 3, decoding, [1, 2, 3], rows=9))
    assert found.keys() == {0, 1, 2}
    for i, group in found.items():
        assert [one.completion for one in group] == [expected[i]] * 3


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_prompts_beside_it():
    model, tokenizer = spread_model()
    prompts = [render(tokenizer, p) for p in PROMPTS]
    decoding = Decoding(max_tokens=40)
    together = dict(sample(model, tokenizer, prompts, 4, decoding, [5, 6, 7], rows=12))
    alone = dict(sample(model, tokenizer, prompts, 4, decoding, [5, 6, 7], rows=4))
    assert together == alone
    assert together != dict(sample(model, tokenizer, prompts, 4, decoding, [8, 6, 7], rows=12))
    assert len({one.completion for one in together[0]}) > 1


def test_tokens_are_drawn_by_their_probability():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -20.0]).expand(40_000, 5)
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw_tokens(logits, temperature, 1.0, uniforms)
        share = torch.bincount(drawn, minlength=5) / 40_000
        expected = torch.softmax(logits[0] / temperature, -1)
        assert torch.allclose(share, expected, atol=0.01)


def test_top_p_draws_from_the_smallest_set_that_reaches_p_and_no_other():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    shuffled = probabilities[[2, 0, 3, 1]]
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(shuffled.log().expand(20_000, 4), 1.0, 0.65, uniforms)
    share = torch.bincount(drawn, minlength=4) / 20_000
    assert torch.allclose(share, torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=0.015)
    assert share[0] == 0
    assert share[2] == 0
    only = draw_tokens(shuffled.log().expand(100, 4), 1.0, 0.01, uniforms[:100])
    assert set(only.tolist()) == {1}


def test_an_answer_that_does_not_end_is_cut_off_and_says_so():
    model, tokenizer = spread_model()
    asked = [render(tokenizer, PROMPTS[0])]
    ((_, found),) = sample(model, tokenizer, asked, 32, Decoding(max_tokens=5), [0], rows=32)
    assert {"length"} <= {one.finish_reason for one in found} <= {"stop", "length"}
    for one in found:
        assert one.tokens <= 5
        assert one.finish_reason == "stop" or one.tokens == 5


@pytest.mark.parametrize("spoilt", ["embed_tokens", "layers.1.mlp", "lm_head"])
def test_weights_that_are_no_numbers_are_one_sentence_and_no_answers(spoilt):
    model, tokenizer = spread_model("llama")
    next(p for name, p in model.named_parameters() if spoilt in name).data.fill_(math.nan)
    asked = (model, tokenizer, PROMPTS, 2, Decoding(max_tokens=4), [1, 2, 3], 6)
    refusal_of(lambda: list(sample(*asked)), "probabilities of its next token", "not numbers")


def test_what_becomes_no_number_only_in_the_middle_of_an_answer_is_noticed():
    model, tokenizer = spread_model()
    model.model.rotary_emb.register_forward_hook(
        lambda module, inputs, found: tuple(
            f * (math.nan if inputs[1].min() > 20 else 1.0) for f in found
        )
    )
    asked = (model, tokenizer, PROMPTS, 2, Decoding(max_tokens=60), [1, 2, 3], 6)
    refusal_of(lambda: list(sample(*asked)), "not numbers")


def test_a_template_that_opens_the_reasoning_is_recognised(tokenizer):
    assert reasoning_prefix(tokenizer) == ""
    other = build_tokenizer()
    for mark in ("<think>", "[THINK]", "<seed:think>"):
        other.chat_template = tokenizer.chat_template.replace(
            "{{ '<|assistant|>' }}", f"{{{{ '<|assistant|>{mark}\n' }}}}"
        )
        assert reasoning_prefix(other) == mark
