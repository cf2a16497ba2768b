"""``make plan``: what it reads from config, recipe and data, and what it says of the memory."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from peft import LoraConfig
from rich.console import Console
from running import EMBEDDED, TINY, refusal_of
from tiny import FAMILIES
from transformers import AutoConfig

from data.common.errors import UserError
from data.recipe import Recipe, load_recipe
from pipeline.memory.arithmetic import GIB, Settings, changes, estimate, kv_bytes, weight_bytes
from pipeline.memory.shapes import KNOWN_MODELS, known_model
from pipeline.memory.speed import CARDS, seconds
from pipeline.model.lengths import TokenCounts
from pipeline.model.skeleton import config_of, model_shape
from pipeline.plan import (
    _gpu,
    counts,
    longest_counts,
    longest_rows,
    plan_of,
    print_plan,
    settings_of,
)

TEXTS = TokenCounts(prompt=300, gold=200, both=480)
#: Parameters of the published weights, tied ones once.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096, "llama-3.2-1b": 1_235_814_400, "gemma-3-1b": 999_885_952,
    "llama-3.2-3b": 3_212_749_824, "gemma-3-270m": 268_098_176, "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384, "smollm3-3b": 3_075_098_624,
    "lfm2.5-1.2b": 1_170_340_608,
}  # fmt: skip


def recipe(**sections: object) -> Recipe:
    return replace(load_recipe(TINY), run_name="no-such-run", **sections)


@pytest.fixture(scope="module")
def seven():
    """The shape of a 7B model."""
    return model_shape("qwen2.5-7b", None)[0]


def grpo(**changed: object) -> Settings:
    given = {"rows": 16, "read": 64, "drawn": 64, "group": 8, "lora": 40_000_000, **changed}
    return Settings("grpo", prompt=400, completion=600, **given)


# --- the model -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_parameters_are_counted_right_without_weights(name):
    shape, lora = model_shape(name, None)
    assert lora == 0
    assert shape.parameters == PARAMETERS[name]
    # Embedding, head, norms and biases aside, these models are their linear layers.
    embedding = shape.vocabulary * shape.hidden
    assert shape.quantisable < shape.parameters - embedding < shape.quantisable * 1.2


def test_lora_is_counted_where_peft_puts_it():
    few = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 1, 2])
    assert model_shape("qwen2.5-0.5b", few)[1] == 3 * 8 * (896 + 896 + 896 + 128)
    with pytest.raises(UserError, match="nowhere"):
        model_shape("qwen2.5-0.5b", LoraConfig(target_modules=["nowhere"]))


def test_a_hub_id_names_a_known_model_where_the_hub_is_not_at_hand():
    assert config_of("Qwen/Qwen2.5-Coder-7B-Instruct").hidden_size == 3584
    assert known_model("google/gemma-3-1b-it") == known_model("gemma-3-1b")


@pytest.mark.parametrize("kind", ["nothing_known", "vit"])
def test_a_model_that_is_not_to_be_had_or_no_language_model_is_one_sentence(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    for model in ("no/such/folder", "nobody/no-such-model", str(tmp_path)):
        refusal_of(lambda model=model: model_shape(model, None), model)


#: More families: state space models without heads, and sizes that vary by layer.
MORE = ("falcon_mamba", "rwkv", "xlstm", "gemma3n_text", "gemma4_text", "gemma4")
#: Families whose default config builds no network, or does not say its sizes.
REFUSED = ("lfm2_moe", "blt", "dbrx", "dots1", "nemotron", "reformer", "gemma4_assistant")


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *MORE, *REFUSED])
def test_a_family_by_its_default_config_is_planned_or_refused_in_a_sentence(family, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    if family in REFUSED:
        refusal_of(
            lambda: model_shape(str(tmp_path), None), f"{tmp_path} cannot be ", "config.json"
        )
        return
    shape, _ = model_shape(str(tmp_path), None)
    assert all(type(size) is int for size in vars(shape).values())
    assert estimate(shape, grpo()).total > weight_bytes(shape, 16)


def test_sizes_that_vary_by_layer_are_averaged_and_a_state_has_no_keys(tmp_path):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    heads["layer_types"] = ["sliding_attention", "full_attention"]
    varied = {"intermediate_size": [64, 128], "num_kv_shared_layers": 0}
    for family, more, widths in (
        ("gemma4_text", {**heads, "global_head_dim": 32, "intermediate_size": 64}, (96, 48, 64)),
        ("gemma3n_text", {**heads, **varied}, (64, 32, 96)),
        ("mamba", {"state_size": 4}, (64, 0, 128)),
    ):
        small = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99}
        AutoConfig.for_model(family, **small, **more).save_pretrained(tmp_path)
        shape, _ = model_shape(str(tmp_path), None)
        assert (shape.query, shape.key, shape.mlp) == widths, family
        assert kv_bytes(shape, grpo(), tokens=1) == 2 * 2 * shape.key * 2


# --- text and settings -----------------------------------------------------------------------


def test_texts_are_drawn_and_counted_with_the_tokenizer_at_hand(tmp_path):
    rows = longest_rows(recipe())
    lengths = [len(row["prompt"]) + len(row["gold"]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    (counted, how), (guessed, guess) = (counts(rows, str(at)) for at in (EMBEDDED, tmp_path))
    counted, guessed = longest_counts(counted), longest_counts(guessed)
    assert "the model's tokenizer" in how
    assert "no tokenizer" in guess
    for found in (counted, guessed):
        assert found.prompt < found.both < found.prompt + found.gold + 5


def test_what_the_recipe_says_is_what_is_estimated():
    given = recipe(
        dtype="bfloat16",
        sft={"per_device_train_batch_size": 4, "optim": "adamw_8bit"},
        grpo={
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "beta": 0.04,
            "num_generations": 16, "max_completion_length": 333, "gradient_checkpointing": True,
        },
        eval=replace(recipe().eval, samples=32, rows=100, max_tokens=77, shots=2),
    )  # fmt: skip
    sft, grpo, sampling = settings_of(given, TEXTS)
    assert (sft.rows, sft.length, sft.optim, sft.chunked) == (4, 480, "adamw_8bit", True)
    assert (sft.checkpointing, sft.accumulation, sft.bits) == (False, 1, 16)
    assert (grpo.rows, grpo.accumulation, grpo.drawn, grpo.group) == (8, 4, 32, 16)
    assert (grpo.prompt, grpo.completion, grpo.beta) == (300, 333, 0.04)
    assert (grpo.checkpointing, grpo.chunked) == (True, False)
    assert (sampling.drawn, sampling.read) == (96, 3)
    assert (sampling.prompt, sampling.completion) == (300 + 2 * 480, 77)


def test_arms_of_the_same_size_are_one_and_others_are_not():
    _, grpo, sampling = settings_of(recipe(), TEXTS)
    assert (grpo.completion, sampling.completion) == (400, 400)  # twice the longest gold answer
    arms = recipe().arms
    wide = replace(arms["grpo"], settings={"per_device_train_batch_size": 256})
    same = {**arms, "wide": wide, "again": arms["grpo"]}
    found = [one.arm for one in settings_of(recipe(arms=same), TEXTS)]
    assert found == ["sft", "grpo", "wide", "eval"]


def test_vllm_beside_the_trainer_takes_its_share_and_draws():
    found = settings_of(recipe(grpo={"use_vllm": True}), TEXTS)[1]
    assert found.drawn == 0 < found.vllm < 1


# --- the memory ------------------------------------------------------------------------------


def test_weights_of_7_billion_parameters_take_what_is_published(seven):
    assert weight_bytes(seven, 16) / 1e9 == pytest.approx(15.2, abs=0.1)
    assert 5.0 < weight_bytes(seven, 4) / 1e9 < 6.0  # QLoRA's NF4
    # Qwen2.5-7B: 28 layers, 4 heads of 128 for keys and for values.
    assert kv_bytes(seven, grpo(), tokens=1) == 28 * 2 * 4 * 128 * 2


def test_each_saving_saves(seven):
    def total(**changed):
        return estimate(seven, grpo(**changed)).total

    plain = total()
    assert total(checkpointing=True) < plain
    assert total(rows=8) < plain
    assert total(bits=4) < plain < total(bits=32) < total(lora=0, bits=32)
    assert plain < total(beta=0.1)
    assert total(lora=0, optim="adamw_8bit") < total(lora=0)


def test_a_prompt_that_is_read_once_for_its_group_is_counted_once(seven):
    def total(**changed):
        return estimate(seven, grpo(lora=0, **changed)).total

    assert total(usual=300) < total(usual=600) < total()
    # Checkpoints and chunks read texts whole.
    for whole in ({"checkpointing": True}, {"chunked": True}):
        assert total(usual=300, **whole) == total(**whole)


def test_the_default_recipe_holds_what_its_training_was_measured_to():
    plan = plan_of(recipe(backend="trl"))
    found = {one.settings.arm: one for one in plan.stages}
    assert found["grpo"].settings.usual < found["grpo"].settings.completion
    for arm, measured in (("sft", 1.8), ("grpo", 3.4)):  # GiB, as their logs say
        assert found[arm].total / GIB == pytest.approx(measured, rel=0.15)
    whole = plan_of(recipe(backend="trl", grpo={**recipe().grpo, "gradient_checkpointing": True}))
    assert not [one for one in whole.stages if one.settings.usual]


def test_each_change_saves_on_top_of_those_before_and_keeps_the_step(seven):
    found = list(changes(seven, grpo()))
    totals = [estimate(seven, one).total for one in (grpo(), *(changed for _, changed in found))]
    assert all(more > less for more, less in pairwise(totals))
    assert found[0][0] == "grpo.gradient_checkpointing: true"
    for _, changed in found:
        assert changed.rows * changed.accumulation == 16
        assert changed.drawn % changed.group == 0


# --- what is said ----------------------------------------------------------------------------


def test_a_plan_says_what_is_held_whether_it_fits_and_what_to_change(capsys):
    lora = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}
    given = recipe(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", lora=lora)
    print_plan(plan_of(given), 16.0, Console(width=100, highlight=False))
    said = capsys.readouterr().out
    for part in ("7,615,616,512", "weights", "fits 16 GiB", "NO", "bits: 4"):
        assert part in said


def test_hours_follow_the_card_the_work_and_what_is_trained(seven):
    def hours(card="h100", **changed):
        return seconds(seven, grpo(**{"rounds": 100, **changed}), CARDS[card]) / 3600

    assert hours(rounds=200) == pytest.approx(2 * hours()) == pytest.approx(hours(times=2))
    assert hours("h200") < hours() < hours("rtx4090") < hours("t4")
    assert hours() < hours(checkpointing=True) < hours(lora=0, checkpointing=True, bits=32)
    assert hours(drawn=0, vllm=0.3) < hours(drawn=8), "drawn in one batch, and no launching"
    # As many answers, each trained on twice: twice the training, and no more drawing.
    assert hours() < hours(rounds=200, iterations=2) < hours(rounds=200)
    # 1,000 tokens of 16 answers: 1,000 times through weights of 15.2 GB, at 0.6 of 3.35 TB/s.
    sampling = Settings("sampling", 300, 1000, drawn=16, read=2, group=8, rounds=1)
    assert 7.6 < seconds(seven, sampling, CARDS["h100"]) - 28 * 0.8 < 9


def test_a_card_may_be_named_by_its_number_alone():
    assert _gpu("4090") == _gpu("RTX 4090") == _gpu("rtx-4090") == (24, CARDS["rtx4090"])
    assert _gpu("24") == _gpu("24 GB") == _gpu("24GiB") == (24, None)


def test_hours_and_money_are_said_of_a_named_card_alone(capsys):
    given, console = recipe(model="Qwen/Qwen2.5-0.5B-Instruct"), Console(width=200)
    print_plan(plan_of(given), 80.0, console, CARDS["h100"], 2.0)
    hours, dollars = re.search(
        r"about ([\d.]+), ([\d.]+) dollars", capsys.readouterr().out
    ).groups()
    assert float(dollars) == pytest.approx(2 * float(hours), abs=0.02)
    print_plan(plan_of(given), 80.0, console)
    assert "dollars" not in capsys.readouterr().out


@pytest.mark.parametrize("size", ["0", "-24", "1e-9999", "much", "h10"])
def test_a_size_that_is_none_is_refused_with_the_cards_that_are_known(size, mistake_of):
    said = mistake_of("pipeline.plan", "--recipe", TINY, f"--gpu={size}")
    assert said.startswith("GPU= (--gpu) must be GiB above 0 or a card (")
    assert f"not '{size}'" in said
    assert ("did you mean 'h100'?" in said) == (size == "h10")
