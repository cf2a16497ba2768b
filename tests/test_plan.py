"""``make plan``: what it reads from config, recipe and data, and what it says."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig
from rich.console import Console
from transformers import AutoConfig

from data.common.errors import UserError
from data.recipe import Recipe, load_recipe
from pipeline.memory.arithmetic import GIB, Settings, lora_parameters
from pipeline.memory.shapes import KNOWN_MODELS, known_model
from pipeline.model.skeleton import adapters_on, config_of, shape_of, skeleton
from pipeline.plan import (
    Lengths,
    lengths_of,
    longest_rows,
    plan_of,
    print_plan,
    settings_of,
)
from pipeline.train.settings import TARGETS

ROOT = Path(__file__).parents[1]
TINY = ROOT / "pipeline" / "recipes" / "tiny.yaml"
LENGTHS = Lengths(prompt=300, gold=200, both=480, source="given")
LORA = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}
#: Parameters of the published weights, tied ones once.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096, "llama-3.2-1b": 1_235_814_400, "gemma-3-1b": 999_885_952,
    "smollm3-3b": 3_075_098_624,
}  # fmt: skip


def recipe(**sections: object) -> Recipe:
    return replace(load_recipe(TINY), **sections)


def known(name: str, **sizes: object):
    """The config of a well-known model."""
    return AutoConfig.for_model(**{**known_model(name), **sizes})


def seven(tmp_path: Path, quantised: dict | None = None, **sections: object) -> Recipe:
    """A recipe of a 7B model of which there is a config and no weights."""
    config = known("qwen2.5-7b", **({"quantization_config": quantised} if quantised else {}))
    (tmp_path / "config.json").write_text(json.dumps(config.to_diff_dict()))
    given = dict(model=str(tmp_path), dtype="bfloat16", lora=LORA, run_name="no-such-run")
    return recipe(**{**given, **sections})


def by_arm(given: Recipe, backend: str = "trl", **more: object) -> dict[str, Settings]:
    return {one.arm: one for one in settings_of(given, backend, LENGTHS, **more)}


def printed(plan, capsys) -> str:
    print_plan(plan, Console(width=100, highlight=False))
    return capsys.readouterr().out


# --- the model -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_parameters_are_counted_right_without_weights(name):
    fields = known_model(name)
    shape = shape_of(skeleton(known(name)), name)
    assert shape.parameters == PARAMETERS[name]
    assert (shape.hidden, shape.mlp) == (fields["hidden_size"], fields["intermediate_size"])
    assert len(shape.windows) == shape.layers == fields["num_hidden_layers"]
    heads = fields["num_attention_heads"]
    head = fields.get("head_dim") or shape.hidden // heads
    assert (shape.query, shape.key) == (head * heads, head * fields["num_key_value_heads"])
    # Embedding, head, norms and biases aside, these models are their linear layers.
    assert shape.quantisable < shape.parameters - shape.embedding < shape.quantisable * 1.2


def test_a_hub_id_names_a_known_model_and_others_are_refused_with_the_nearest():
    assert known_model("Qwen/Qwen2.5-Coder-7B-Instruct") == known_model("qwen2.5-7b")
    assert known_model("google/gemma-3-1b-it") == known_model("gemma-3-1b")
    with pytest.raises(UserError, match=r"'Qwen/Qwen2.5-9B'.*'qwen2.5-7b'"):
        known_model("Qwen/Qwen2.5-9B")


def test_a_sliding_window_is_seen_where_the_config_has_one():
    windows = shape_of(skeleton(known("gemma-3-1b"))).windows
    assert (windows.count(512), windows.count(None)) == (22, 4)
    assert set(shape_of(skeleton(known("qwen2.5-0.5b", sliding_window=4096))).windows) == {None}


def test_experts_count_all_in_weights_and_the_active_ones_in_width():
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=100, hidden_size=64, moe_intermediate_size=32, num_experts=8,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16,
    )  # fmt: skip
    shape = shape_of(skeleton(config))
    assert (shape.mlp, shape.gated) == (64, True)
    assert shape.parameters > 2 * 8 * 3 * 64 * 32


def test_lora_goes_where_peft_puts_it():
    def on(**given):
        config = LoraConfig(r=8, task_type="CAUSAL_LM", **given)
        return adapters_on(skeleton(known("qwen2.5-0.5b")), config)

    few = {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1, 2]}
    adapters, rank, extra = on(**few)
    assert {(one.name, one.count) for one in adapters} == {("q_proj", 3), ("v_proj", 3)}
    assert (rank, extra) == (8, 0)
    assert on(**few, modules_to_save=["lm_head"]) == (adapters, 8, 151_936 * 896)
    assert lora_parameters(adapters, 8) == 3 * 8 * (896 + 896 + 896 + 128)
    every = shape_of(skeleton(known("qwen2.5-0.5b"))).linears
    assert set(on(target_modules=list(TARGETS["all"]))[0]) == set(every)
    with pytest.raises(UserError, match="peft refuses"):
        on(target_modules=["nowhere"])


@pytest.mark.parametrize("model", ["./no/such/folder", "nobody/no-such-model", "Qwen/Qwen2.5-8B"])
def test_a_model_that_is_not_to_be_had_is_one_sentence(model):
    with pytest.raises(UserError, match=model) as refused:
        config_of(model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["nothing_known", "vit"])
def test_a_config_of_which_no_language_model_can_be_made_is_one_sentence(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError) as refused:
        skeleton(config_of(str(tmp_path))[0])
    assert "\n" not in str(refused.value)


# --- the text --------------------------------------------------------------------------------


def test_texts_are_drawn_where_there_are_none_and_counted_with_the_tokenizer_at_hand(tmp_path):
    rows, source = longest_rows(recipe(run_name="no-such-run"))
    texts = [len(row["prompt"]) + len(row["gold"]) for row in rows]
    assert texts == sorted(texts, reverse=True)
    counted = lengths_of(rows, source, str(ROOT / "pipeline" / "embedded"))
    guessed = lengths_of(rows, source, str(tmp_path))
    assert "the model's tokenizer" in counted.source
    assert "no tokenizer" in guessed.source
    for found in (counted, guessed):
        assert found.prompt < found.both <= found.prompt + found.gold


# --- the settings ----------------------------------------------------------------------------


def test_what_the_recipe_says_is_what_is_estimated():
    given = recipe(
        dtype="bfloat16",
        sft={"per_device_train_batch_size": 4, "max_length": 400, "optim": "adamw_8bit"},
        grpo={
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "beta": 0.04,
            "num_generations": 16, "max_completion_length": 333, "gradient_checkpointing": True,
        },
        eval=replace(recipe().eval, samples=32, rows=100, max_tokens=77, shots=2),
    )  # fmt: skip
    arms = by_arm(given)
    sft, grpo, sampling = arms["sft"], arms["grpo"], arms["eval"]
    assert (sft.rows, sft.length, sft.optim, sft.loss) == (4, 400, "adamw_8bit", "chunked")
    assert (sft.checkpointing, sft.accumulation, sft.bits) == (False, 1, 16)
    assert (grpo.rows, grpo.accumulation, grpo.generated, grpo.group) == (8, 4, 32, 16)
    assert (grpo.prompt, grpo.completion, grpo.beta) == (300, 333, 0.04)
    assert (grpo.checkpointing, grpo.offload) == (True, False)
    assert by_arm(given, "unsloth")["grpo"].offload
    assert (sampling.rows, sampling.prompts) == (96, 3)
    assert (sampling.prompt, sampling.completion) == (300 + 2 * 480, 77)


def test_arms_of_the_same_size_are_one_and_others_are_not():
    silent = by_arm(recipe())  # then answers may be twice the longest gold one
    assert (silent["grpo"].completion, silent["eval"].completion) == (400, 400)
    arms = recipe().arms
    wide = replace(arms["grpo"], settings={"per_device_train_batch_size": 256})
    assert list(by_arm(recipe(arms={**arms, "wide": wide}))) == ["sft", "grpo", "wide", "eval"]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ["trl", "unsloth"]),
        ({"backend": "unsloth"}, ["unsloth"]),
        ({"backend": "unsloth", "mixed": True}, ["trl", "unsloth"]),
        ({"backend": "trl", "mixed": True}, ["trl"]),
        ({"fast_inference": True}, ["unsloth"]),
    ],
)
def test_a_backend_is_planned_where_the_recipe_may_train_with_it(sections, expected):
    arms = dict(recipe().arms)
    if sections.pop("mixed", False):
        arms["sft"] = replace(arms["sft"], backend="trl")
    given = recipe(arms=arms, **sections)
    assert list(plan_of(given, 24.0, LENGTHS).estimates) == expected
    trained = {arm for backend in expected for arm in by_arm(given, backend, gpu=24.0)}
    assert trained == {"sft", "grpo", "eval"}


@pytest.mark.parametrize("way", [{"fast_inference": True}, {"grpo": {"use_vllm": True}}])
def test_vllm_beside_the_trainer_needs_to_know_the_gpu(way):
    given = recipe(**way, backend="unsloth")
    with pytest.raises(UserError, match="--gpu"):
        settings_of(given, "unsloth", LENGTHS)
    grpo = by_arm(given, "unsloth", gpu=24.0)["grpo"]
    assert grpo.vllm > 0 == grpo.generated


# --- what is said ----------------------------------------------------------------------------


def test_a_well_known_model_is_planned_where_the_hub_is_not_at_hand(capsys):
    given = recipe(model="Qwen/Qwen2.5-7B-Instruct", lora=LORA, run_name="no-such-run")
    said = printed(plan_of(given, 24.0), capsys)
    for part in ("7,615,616,512", "pipeline.memory.shapes", "TRL", "Unsloth", "fits 24 GiB", "NO",
                 "grpo.gradient_checkpointing: true saves"):  # fmt: skip
        assert part in said


def test_four_bits_need_less_and_a_quantised_config_says_them_itself(tmp_path):
    held = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    ways = ({}, {"bits": 4}, {"quantised": held})
    plans = [plan_of(seven(tmp_path, **way), 24.0, LENGTHS) for way in ways]
    weights = [p.estimates["unsloth"][0].peak.parts["weights"] for p in plans]
    assert weights[1] == weights[2] < 0.4 * weights[0]
    with pytest.raises(UserError, match="give a lora: section"):
        plan_of(seven(tmp_path, bits=4, lora=None), 24.0, LENGTHS)


@pytest.mark.slow
def test_the_embedded_model_is_planned_from_the_command_line():
    command = [sys.executable, "-m", "pipeline.plan", "--recipe", str(TINY), "--gpu", "8", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    plan = json.loads(run.stdout)
    assert plan["gpu_gib"] == 8
    assert {(row["backend"], row["stage"]) for row in plan["stages"]} == {
        (backend, stage) for backend in ("trl", "unsloth") for stage in ("sft", "grpo", "sampling")
    }
    for row in plan["stages"]:
        assert row["total"] == max(phase["total"] for phase in row["phases"])
        assert row["fits"] == (row["total"] <= 8 * GIB)
        assert all(phase["allocated"] == sum(phase["parts"].values()) for phase in row["phases"])


@pytest.mark.parametrize(
    "flags", [["--gpu", "0"], ["--gpu", "much"], ["--gold-tokens", "9"], ["--gold-tokens", "1.5"]]
)
def test_a_size_that_is_none_is_refused(flags):
    command = [sys.executable, "-m", "pipeline.plan", "--recipe", str(TINY), *flags]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert flags[0] in run.stderr
