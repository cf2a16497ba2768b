"""vLLM as GRPO's sampler: when it draws, which arguments it knows, and what it is told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from running import refusal_of
from tiny import random_model, training_for, write_recipe

from pipeline import gpu_check, grpo, plan
from pipeline.model.decode import count_tokens, render
from pipeline.model.lengths import TokenCounts
from pipeline.plan import longest_rows, settings_of
from pipeline.train import backend
from pipeline.train.settings import check_settings
from pipeline.train.vllm import with_vllm

TEXTS = TokenCounts(prompt=300, gold=200, both=480)
DRAWS = {"use_vllm": True}


@pytest.fixture
def installed(monkeypatch):
    """A machine that says it has a GPU and vLLM."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(backend, "find_spec", lambda name: name if name == "vllm" else None)


def small(folder, **grpo):
    """A recipe whose ``grpo`` section has these keys more."""
    recipe = write_recipe(folder, "anything", backend="trl")
    return replace(recipe, grpo={**recipe.grpo, **grpo})


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A function that gives the arguments that GRPO's trainer is built with, and their length."""
    monkeypatch.setattr(
        "pipeline.train.prompt_once.trainer_class",
        lambda *_: lambda **given: SimpleNamespace(**given),
    )
    model, tokenizer = random_model("qwen3")

    def build(grpo_section, context=4096, **changes):
        recipe = replace(small(tmp_path, **grpo_section), **changes)
        model.config.max_position_embeddings = context
        model.generation_config.eos_token_id = [3, 5]
        rows = longest_rows(recipe)[:6]
        args = grpo.trainer_for(training_for(recipe, "grpo"), rows, model, tokenizer, tmp_path).args
        longest = max(count_tokens(tokenizer, [render(tokenizer, row["prompt"]) for row in rows]))
        return args, longest + args.max_completion_length

    return build


# --- what it is told -----------------------------------------------------------------------


def test_vllm_is_told_every_token_that_ends_an_answer_here(told):
    assert told(DRAWS)[0].generation_kwargs == {"stop_token_ids": [3, 5]}
    given = {"min_tokens": 2, "stop_token_ids": [9, 3]}
    more = told({**DRAWS, "generation_kwargs": given})[0]
    assert more.generation_kwargs == {"min_tokens": 2, "stop_token_ids": [3, 5, 9]}
    assert told({})[0].generation_kwargs is None


def test_vllm_makes_room_for_the_longest_text_and_not_for_the_models_whole_context(told):
    args, longest = told(DRAWS)
    assert args.vllm_max_model_length == longest < 4096
    assert told(DRAWS, max_seq_length=700)[0].vllm_max_model_length == 700
    assert told(DRAWS, max_seq_length=9000)[0].vllm_max_model_length == 4096
    said = {**DRAWS, "vllm_max_model_length": 800}
    assert told(said, max_seq_length=700)[0].vllm_max_model_length == 800
    assert told({})[0].vllm_max_model_length is None


# --- its arguments -------------------------------------------------------------------------


def test_generation_kwargs_are_those_of_the_library_that_draws(tmp_path):
    for known, section in (
        ({"stop_token_ids": [7], "min_tokens": 3, "bad_words": ["x"]}, DRAWS),
        ({"min_new_tokens": 3, "no_repeat_ngram_size": 2}, {}),
    ):
        check_settings(small(tmp_path, **section, generation_kwargs=known))
        other = {} if section else DRAWS
        first = next(iter(known))
        refusal_of(
            lambda known=known, other=other: check_settings(
                small(tmp_path, **other, generation_kwargs=known)
            ),
            f"unknown key 'grpo.generation_kwargs.{first}'",
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [("stop_token_ids", 7), ("stop_token_ids", ["<|im_end|>"]), ("n", 2), ("min_tokens", -1)],
)
def test_values_that_vllm_would_fail_on_late_are_refused(tmp_path, key, value):
    recipe = small(tmp_path, **DRAWS, generation_kwargs={key: value})
    refusal_of(lambda: check_settings(recipe), f"grpo.generation_kwargs.{key} must be ")


# --- whether it draws ----------------------------------------------------------------------


def test_where_vllm_is_installed_plan_check_and_training_look_at_the_same_sampler(
    tmp_path, installed, monkeypatch
):
    monkeypatch.setattr("pipeline.train.settings.no_gpu", lambda: True)  # TRL would ask for it
    recipe = small(tmp_path)
    assert settings_of(recipe, TEXTS)[1].drawn == 0, "make plan"
    check_settings(replace(recipe, grpo={**recipe.grpo, "generation_kwargs": {"min_tokens": 1}}))
    assert with_vllm(recipe, False).grpo["use_vllm"] is True
    seen = {}
    monkeypatch.setattr(plan, "counts", lambda *_: ([TEXTS], "counted"))
    monkeypatch.setattr(gpu_check, "counts", lambda *_: ([TEXTS], "counted"))

    def stop(training, length):
        seen.update(training.recipe.grpo)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "load_for_training", stop)
    monkeypatch.setattr("pipeline.train.training.processes.prepare_devices", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.measure_training(recipe, "grpo")
    assert seen["use_vllm"] is True
    assert seen["generation_kwargs"] == {"min_tokens": 12}


@pytest.mark.parametrize(
    "said", [{"use_vllm": False}, {"generation_kwargs": {"min_new_tokens": 3}}], ids=str
)
def test_vllm_does_not_draw_where_the_recipe_says_no_or_has_arguments_of_transformers(
    tmp_path, installed, said
):
    recipe = small(tmp_path, **said)
    assert with_vllm(recipe, False) is recipe


def test_several_processes_train_by_trl_which_hands_vllm_no_quantised_weights(
    tmp_path, installed, monkeypatch
):
    monkeypatch.setattr(backend, "find_spec", lambda name: name)
    assert backend.is_unsloth_wanted("auto")
    recipe = write_recipe(tmp_path, "anything", bits=4, lora={"r": 4})
    assert with_vllm(recipe, backend.is_unsloth_wanted("auto")).grpo["use_vllm"] is True
    monkeypatch.setattr("pipeline.model.processes.count", lambda: 2)
    assert not backend.is_unsloth_wanted("auto")
    assert with_vllm(recipe, backend.is_unsloth_wanted("auto")) is recipe
