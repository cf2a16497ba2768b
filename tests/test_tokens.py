"""The embedded base model's tokenizer: any text survives it, and the task's texts are short."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import tier_problems
from transformers import AutoTokenizer

from data.names import EVENT_NAMES
from data.prompts import messages, prompt
from data.rows import gold_answer
from pipeline.corpus.tokens import ASSISTANT, END, PAD, USER, build_tokenizer, lexicon

TOKENIZER = build_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def gold(problem) -> str:
    return gold_answer(problem, "computed")


def texts(count: int = 20) -> list[str]:
    problems = [p for tier in ("blog", "dense", "trap") for p in tier_problems(tier, count)]
    return [text for p in problems for text in (prompt(p), gold(p))]


PIECES = st.sampled_from([*lexicon(), "<", ">", " ", "\n", "▁", "é", "<0x0A>"])


@given(st.text(max_size=200), st.lists(PIECES, max_size=12).map("".join))
def test_any_text_and_any_chain_of_pieces_survive_the_round_trip(text, chain):
    assert TOKENIZER.decode(ids(text)) == text
    assert TOKENIZER.decode(ids(chain)) == chain


def test_prompts_and_answers_survive_the_round_trip_without_bytes():
    unknown = TOKENIZER.convert_tokens_to_ids("<|unknown|>")
    for text in texts():
        found = ids(text)
        assert TOKENIZER.decode(found) == text
        assert unknown not in found
        assert not any(t.startswith("<0x") for t in TOKENIZER.convert_ids_to_tokens(found))


def test_a_dense_problem_and_its_computed_answer_take_less_than_160_tokens():
    problems = tier_problems("dense", 100)
    lengths = [len(ids(prompt(p))) + len(ids(gold(p))) for p in problems]
    assert sum(lengths) / len(lengths) < 160


def test_no_piece_stands_in_the_lexicon_twice():
    assert len(set(lexicon())) == len(lexicon())
    assert len(TOKENIZER) == len(TOKENIZER.get_vocab()) == len(lexicon()) + 256 + 5


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "smollm3", None])
def test_a_saved_tokenizer_gives_the_same_tokens_beside_any_models_config(tmp_path, model_type):
    TOKENIZER.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*texts(5), "Straße\x00 at 09:07", "<|user|>a<|end|>"]:
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids(text)
        assert loaded.decode(ids(text)) == text
    assert loaded.chat_template == TOKENIZER.chat_template
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == (PAD, END, "left")


def test_event_names_and_special_tokens_are_one_token_each():
    assert all(len(ids(name)) == 1 for name in EVENT_NAMES)
    for token in (PAD, USER, ASSISTANT, END):
        assert ids(token) == [TOKENIZER.convert_tokens_to_ids(token)]
    assert TOKENIZER.decode(ids(f"a{END}b{PAD}"), skip_special_tokens=True) == "ab"


def test_the_template_asks_marks_the_answer_and_ends_it():
    """Trainers mask the prompt by its length in tokens, or by the template's own mark."""
    for problem in tier_problems("dense", 20):
        asked, said = messages(prompt(problem)), gold(problem)
        waiting = TOKENIZER.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        assert waiting == f"{USER}{prompt(problem)}{END}{ASSISTANT}"
        whole = TOKENIZER.apply_chat_template(
            messages(prompt(problem), said), return_dict=True, return_assistant_tokens_mask=True
        )
        assert whole["input_ids"] == [*ids(waiting), *ids(said), TOKENIZER.eos_token_id]
        assert whole["assistant_masks"] == [0] * len(ids(waiting)) + [1] * (len(ids(said)) + 1)
