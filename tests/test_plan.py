"""``make plan``: what it reads from config, recipe and data, and what it says."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_shapes import PARAMETERS
from transformers import AutoConfig

from data.common.errors import UserError
from data.draw import make_problem
from data.prompts import prompt
from data.recipe import Recipe, load_recipe
from pipeline import plan
from pipeline.memory.arithmetic import GIB, Settings, lora_parameters, trained
from pipeline.memory.shapes import SHAPES, config_of
from pipeline.model.lengths import TEXTS
from pipeline.plan import (
    Lengths,
    adapters_of,
    kinds_of,
    lengths_of,
    plan_of,
    print_plan,
    read_config,
    settings_of,
    shape_of,
    skeleton,
    to_json,
)

ROOT = Path(__file__).parents[1]
TINY = ROOT / "pipeline" / "recipes" / "tiny.yaml"
LENGTHS = Lengths(prompt=300, gold=200, both=480, source="given")


def recipe(**sections: object) -> Recipe:
    return replace(load_recipe(TINY), **sections)


def folder(tmp_path: Path, name: str = "qwen2.5-7b", **changes: object) -> str:
    """A model folder that holds a config and no weights."""
    config = {**config_of(name).to_diff_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def by_arm(found: list[Settings]) -> dict[str, Settings]:
    return {settings.arm: settings for settings in found}


# --- the model -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_counted_right_without_weights(name, tmp_path):
    config = read_config(folder(tmp_path, name))
    (hidden, mlp, layers, heads, key_heads), rest = SHAPES[name]
    shape = shape_of(config, skeleton(config), name)
    assert shape.parameters == PARAMETERS[name]
    assert (shape.hidden, shape.mlp) == (hidden, mlp)
    assert len(shape.windows) == shape.layers == layers
    head = rest.get("head_dim") or hidden // heads
    assert (shape.query, shape.key) == (head * heads, head * key_heads)
    # Embedding, head, norms and biases aside, these models are their linear layers.
    assert shape.quantisable < shape.parameters - shape.embedding < shape.quantisable * 1.2


def test_a_sliding_window_is_seen_where_the_config_has_one(tmp_path):
    config = read_config(folder(tmp_path, "gemma-3-1b"))
    windows = shape_of(config, skeleton(config)).windows
    assert (windows.count(512), windows.count(None)) == (22, 4)
    config = read_config(folder(tmp_path, "qwen2.5-0.5b", sliding_window=4096))
    assert set(shape_of(config, skeleton(config)).windows) == {None}


def test_experts_count_all_in_weights_and_the_active_ones_in_width():
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    network = skeleton(config)
    shape = shape_of(config, network)
    assert (shape.mlp, shape.gated) == (64, True)
    assert shape.parameters > 2 * 8 * 3 * 64 * 32


def test_lora_goes_where_peft_puts_it(tmp_path):
    config = read_config(folder(tmp_path, "qwen2.5-0.5b"))
    lora = {"r": 8, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1, 2]}
    adapters, rank, extra = adapters_of(recipe(lora=lora), skeleton(config))
    assert {(one.name, one.count) for one in adapters} == {("q_proj", 3), ("v_proj", 3)}
    assert (rank, extra) == (8, 0)
    saved = {**lora, "modules_to_save": ["lm_head"]}
    again, _, extra = adapters_of(recipe(lora=saved), skeleton(config))
    assert (again, extra) == (adapters, 151_936 * 896)
    assert lora_parameters(adapters, 8) == 3 * 8 * (896 + 896 + 896 + 128)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("all", None),
    ],
)
def test_layers_named_together_are_planned_as_they_are_trained(targets, expected, tmp_path):
    config = read_config(folder(tmp_path, "qwen2.5-0.5b"))
    every = set(shape_of(config, skeleton(config)).linears)
    adapters, _, extra = adapters_of(recipe(lora={"target_modules": targets}), skeleton(config))
    assert set(adapters) == {one for one in every if not expected or one.name in expected}
    assert extra == 0


def test_a_target_that_the_model_lacks_is_one_sentence(tmp_path):
    config = read_config(folder(tmp_path, "qwen2.5-0.5b"))
    with pytest.raises(UserError, match="peft refuses lora for this model"):
        adapters_of(recipe(lora={"target_modules": ["nowhere"]}), skeleton(config))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("./no/such/folder", "does not exist or has no config.json"),
        ("nobody/no-such-model", "nor to be had from the hub just now"),
    ],
)
def test_a_model_that_is_not_to_be_had_is_one_sentence(model, said):
    with pytest.raises(UserError, match=said) as refused:
        read_config(model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ['{"model_type": "nothing_known"}', "{", "{}"])
def test_a_config_that_cannot_be_read_is_one_sentence(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json of .* cannot be loaded") as refused:
        read_config(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_model_that_writes_no_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="no language model"):
        skeleton(read_config(str(tmp_path)))


# --- the text --------------------------------------------------------------------------------


def test_lengths_are_counted_with_the_tokenizer_at_hand():
    from transformers import AutoTokenizer

    from pipeline.model.decode import render

    given = recipe(run="no-such-run", model=str(ROOT / "pipeline" / "embedded"))
    found = lengths_of(given, None, None)
    assert "the model's tokenizer" in found.source
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    for name, use in given.tier_uses.items():
        text = prompt(make_problem(given.seed, "plan", name, use.tier, 3))
        ids = tokenizer(render(tokenizer, text), add_special_tokens=False)["input_ids"]
        assert len(ids) <= found.prompt


def test_where_make_data_counted_its_lengths_are_taken(monkeypatch):
    def tier(prompt: int, gold: int, both: int) -> dict:
        longest = zip(TEXTS, (prompt, gold, both), strict=True)
        return {"all": {"problems": 1500, **{text: {"longest": n} for text, n in longest}}}

    facts = {"tiers": {"dense": tier(300, 100, 390), "trap": tier(200, 150, 340)}}
    monkeypatch.setattr(plan, "known", lambda recipe: facts)
    source = "longest of 3,000 problems, counted with the model's tokenizer"
    assert lengths_of(recipe(), None, None) == Lengths(300, 150, 390, source)
    assert lengths_of(recipe(), 900, None) == Lengths(900, 150, 1050, "as given")


def test_without_a_tokenizer_the_assumption_is_said(tmp_path):
    found = lengths_of(recipe(run="no-such-run", model=folder(tmp_path)), None, None)
    assert "characters taken for a token" in found.source
    assert 100 < found.prompt < 2000
    assert found.both <= found.prompt + found.gold
    given = lengths_of(recipe(run="no-such-run", model=folder(tmp_path)), 900, 300)
    assert (given.prompt, given.gold, given.both, given.source) == (900, 300, 1200, "as given")


# --- the settings ----------------------------------------------------------------------------


def test_what_the_recipe_says_is_what_is_estimated():
    given = recipe(
        dtype="bfloat16",
        sft={"per_device_train_batch_size": 4, "max_length": 400, "optim": "adamw_8bit"},
        grpo={
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 4,
            "num_generations": 16,
            "max_completion_length": 333,
            "gradient_checkpointing": True,
            "beta": 0.04,
        },
        eval=replace(recipe().eval, samples=32, rows=100, max_tokens=77, shots=2),
    )
    found = by_arm(settings_of(given, "trl", LENGTHS))
    sft, grpo, sampling = found["sft"], found["grpo"], found["eval"]
    assert (sft.rows, sft.length, sft.optim, sft.loss) == (4, 400, "adamw_8bit", "chunked")
    assert (sft.checkpointing, sft.accumulation, sft.bits) == (False, 1, 16)
    assert (grpo.rows, grpo.accumulation, grpo.generated, grpo.group) == (8, 4, 32, 16)
    assert (grpo.prompt, grpo.completion, grpo.beta) == (300, 333, 0.04)
    assert grpo.checkpointing
    assert (sampling.rows, sampling.prompts) == (96, 3)
    assert (sampling.prompt, sampling.completion) == (300 + 2 * 480, 77)


def test_where_the_recipe_is_silent_answers_may_be_twice_the_longest_gold():
    found = by_arm(settings_of(recipe(), "trl", LENGTHS))
    assert (found["grpo"].completion, found["eval"].completion) == (400, 400)
    assert found["sft"].length == 480


def test_what_is_checkpointed_is_the_recipes_word_and_unsloth_offloads_it():
    said = {**recipe().grpo, "gradient_checkpointing": True}
    for grpo, checkpointing in ((recipe().grpo, False), (said, True)):
        for kind, offload in (("trl", False), ("unsloth", checkpointing)):
            found = by_arm(settings_of(recipe(grpo=grpo), kind, LENGTHS))["grpo"]
            assert (found.checkpointing, found.offload) == (checkpointing, offload)


def test_arms_of_the_same_size_are_one_and_others_are_not():
    ablation = load_recipe(TINY.with_name("ablation.yaml"))
    assert len(ablation.all_arms) > 3
    found = settings_of(ablation, "trl", LENGTHS)
    assert len({(s.stage, s.rows, s.group) for s in found}) == len(found)
    arms = recipe().arms
    wide = replace(arms["grpo"], settings={"per_device_train_batch_size": 256})
    names = [s.arm for s in settings_of(recipe(arms={**arms, "wide": wide}), "trl", LENGTHS)]
    assert names == ["sft", "grpo", "wide", "eval"]


def test_a_backend_is_planned_where_the_recipe_may_train_with_it():
    arms = recipe().arms
    mixed = {"sft": replace(arms["sft"], backend="trl"), "grpo": arms["grpo"]}
    for sections, expected in (
        ({}, ["trl", "unsloth"]),
        ({"backend": "unsloth"}, ["unsloth"]),
        ({"backend": "unsloth", "arms": mixed}, ["trl", "unsloth"]),
        ({"backend": "trl", "arms": mixed}, ["trl"]),
        ({"fast_inference": True}, ["unsloth"]),
    ):
        assert kinds_of(recipe(**sections)) == expected
    given = recipe(backend="unsloth", arms=mixed)
    assert [s.arm for s in settings_of(given, "trl", LENGTHS)] == ["sft", "eval"]
    assert [s.arm for s in settings_of(given, "unsloth", LENGTHS)] == ["grpo", "eval"]


def test_weights_that_are_trained_are_not_quantised():
    with pytest.raises(UserError, match="give a lora: section"):
        settings_of(recipe(bits=4), "trl", LENGTHS)


def test_vllm_needs_to_know_the_gpu():
    given = recipe(grpo={**recipe().grpo, "use_vllm": True, "vllm_gpu_memory_utilization": 0.4})
    with pytest.raises(UserError, match="--gpu"):
        settings_of(given, "trl", LENGTHS)
    found = by_arm(settings_of(given, "trl", LENGTHS, gpu=24.0))["grpo"]
    assert (found.vllm, found.generated) == (0.4, 0)


def test_fast_inference_is_vllm_beside_the_trainer():
    given = recipe(fast_inference=True)
    with pytest.raises(UserError, match="--gpu"):
        settings_of(given, "unsloth", LENGTHS)
    found = by_arm(settings_of(given, "unsloth", LENGTHS, gpu=24.0))["grpo"]
    assert found.vllm > 0
    assert found.generated == 0


# --- what is said ----------------------------------------------------------------------------


LORA = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}


def seven(tmp_path: Path, **sections: object) -> Recipe:
    given = dict(model=folder(tmp_path), dtype="bfloat16", lora=LORA, run="no-such-run")
    return recipe(**{**given, **sections})


def test_a_config_alone_is_enough_and_the_page_says_what_to_change(tmp_path, capsys):
    plan = plan_of(seven(tmp_path), gpu=24.0, prompt_tokens=500, gold_tokens=300)
    print_plan(plan, Console(width=100, highlight=False))
    said = capsys.readouterr().out
    assert "7,615,616,512 parameters" in said
    for word in ("TRL", "Unsloth", "weights", "KV cache", "CUDA context", "fits 24 GiB", "NO"):
        assert word in said
    assert "1. grpo.gradient_checkpointing: true" in said
    assert max(map(len, said.splitlines())) < 200


def test_advice_that_is_followed_fits(tmp_path):
    given = seven(tmp_path, backend="trl")
    plan = plan_of(given, gpu=24.0, prompt_tokens=500, gold_tokens=300)
    grpo = next(one for one in plan.estimates["trl"] if one.settings.stage == "grpo")
    steps, after = plan.advice(grpo)
    assert plan.fits(after)
    changes = {}
    for step in steps:
        for part in step.change.partition(" (")[0].split(", "):
            key, _, value = part.partition(": ")
            changes[key.removeprefix("grpo.")] = json.loads(value)
    again = plan_of(
        replace(given, grpo={**given.grpo, **changes}),
        gpu=24.0,
        prompt_tokens=500,
        gold_tokens=300,
    )
    grpo = next(one for one in again.estimates["trl"] if one.settings.stage == "grpo")
    assert again.fits(grpo)
    assert grpo.peak.total == after.peak.total


def test_a_well_known_model_is_planned_where_the_hub_is_not_at_hand(capsys):
    given = recipe(model="Qwen/Qwen2.5-7B-Instruct", lora=LORA, run="no-such-run")
    found = plan_of(given, 24.0)
    assert found.shape.parameters == 7_615_616_512
    print_plan(found, Console(width=100))
    assert "pipeline.memory.shapes, the hub not being at hand" in capsys.readouterr().out
    with pytest.raises(UserError, match="nor to be had from the hub"):
        plan_of(recipe(model="Qwen/Qwen2.5-8B"), 24.0)


def test_what_cannot_fit_is_said(tmp_path, capsys):
    print_plan(plan_of(seven(tmp_path, backend="trl"), gpu=2.0), Console(width=100))
    assert "take a smaller model or a larger GPU" in capsys.readouterr().out


def test_without_a_gpu_there_is_no_verdict(tmp_path, capsys):
    plan = plan_of(seven(tmp_path))
    print_plan(plan, Console(width=100))
    said = capsys.readouterr().out
    assert "GPU=24 says whether it fits" in said
    assert "NO" not in said
    assert {row["fits"] for row in to_json(plan)["stages"]} == {None}


def test_four_bits_need_less_and_a_quantised_config_says_them_itself(tmp_path):
    plain = plan_of(seven(tmp_path), 24.0)
    four = plan_of(seven(tmp_path, bits=4), 24.0)
    held = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised := tmp_path / "quantised").mkdir()
    model = folder(quantised, quantization_config=held)
    own = plan_of(seven(tmp_path, model=model), 24.0)
    weights = [p.estimates["unsloth"][0].peak.parts["weights"] for p in (plain, four, own)]
    assert weights[1] == weights[2] < 0.4 * weights[0]


def test_the_embedded_model_is_planned_from_the_command_line():
    command = [sys.executable, "-m", "pipeline.plan", "--recipe", str(TINY), "--gpu", "8", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(run.stdout)
    assert found["gpu_gib"] == 8
    assert {(row["backend"], row["stage"]) for row in found["stages"]} == {
        (backend, stage) for backend in ("trl", "unsloth") for stage in ("sft", "grpo", "sampling")
    }
    for row in found["stages"]:
        totals = [phase["total"] for phase in row["phases"]]
        assert row["total"] == max(totals)
        assert row["fits"] == (row["total"] <= 8 * GIB)
        assert all(phase["allocated"] == sum(phase["parts"].values()) for phase in row["phases"])


@pytest.mark.parametrize("value", ["0", "-3", "much"])
def test_a_gpu_without_memory_is_refused(value):
    command = [sys.executable, "-m", "pipeline.plan", "--recipe", str(TINY), "--gpu", value]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert "must be a number above 0" in run.stderr


def test_trained_parameters_are_all_or_the_adapters(tmp_path):
    full = plan_of(seven(tmp_path, lora=None)).estimates["trl"][0].settings
    plan = plan_of(seven(tmp_path))
    assert trained(plan.shape, full) == plan.shape.parameters
    assert trained(plan.shape, plan.estimates["trl"][0].settings) == 80_740_352
