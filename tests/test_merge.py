"""Merging: the result is base + adapter, and a change that is lost or none is said."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, LoraModel
from running import refusal_of
from safetensors.torch import load_file
from tiny import LORA, RECIPE, TIED, random_model, save_model, write_recipe
from transformers import AutoModelForCausalLM

from data import make
from data.common.errors import UserError
from data.common.files import stage_facts
from eval.answers.sampling import sample_arm
from pipeline import sft
from pipeline.model.load import load_model
from pipeline.train.merging import merge, save_adapter

pytestmark = pytest.mark.slow
IDS = torch.arange(5, 40)[None]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A function that gives the folder of a random model of an architecture."""
    folder = tmp_path_factory.mktemp("models")
    return lambda architecture: str(save_model(folder / architecture, architecture))


def adapted(architecture, folder, change, **lora):
    """A model with an adapter, saved to ``folder``. B, and A where PEFT makes it 0, are drawn with
    deviation ``change``, so that it changes the model."""
    network, _ = random_model(architecture)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **lora}
    network = get_peft_model(network, LoraConfig(**settings))
    torch.manual_seed(1)
    for name, weight in network.named_parameters():
        if "lora_B" in name or ("lora_" in name and not weight.any()):
            torch.nn.init.normal_(weight, std=change)
    save_adapter(network, folder)
    return network.eval()


def read(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits(network):
    return network(IDS).logits.float()


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text", "smollm3"])
def test_the_merged_model_answers_as_base_and_adapter_did(base_of, tmp_path, architecture):
    network = adapted(architecture, tmp_path / "a", 0.1)
    merged = merge(base_of(architecture), tmp_path / "a", "float32", tmp_path / "m")
    assert merged["modules"] == 2 * 2
    assert merged["change"] > 0.01
    assert merged["rounding"] < 1e-5
    assert not (tmp_path / "m" / "adapter_config.json").exists()
    found, base = read(tmp_path / "m"), read(base_of(architecture))
    torch.testing.assert_close(logits(found), logits(network), rtol=1e-4, atol=1e-5)
    assert (logits(found) - logits(base)).abs().max() > 0.01
    differ = {n for n, w in found.named_parameters() if not w.equal(base.get_parameter(n))}
    assert {name.split(".")[-2] for name in differ} == {"q_proj", "down_proj"}
    head, entry = (found.get_output_embeddings().weight, found.get_input_embeddings().weight)
    assert (head is entry) == (architecture in TIED)


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.parametrize(
    ("architecture", "layers", "lora"),
    [
        ("qwen3", 2 * 2, {"use_dora": True}),
        ("qwen3", 2 * 2, {"init_lora_weights": "olora"}),
        ("qwen3", 2 * 2, {"init_lora_weights": "pissa"}),
        ("qwen3", 2 * 2, {"init_lora_weights": "mica"}),
        ("qwen3", 2 * 2, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}}),
        ("qwen3", 2 * 2, {"modules_to_save": ["lm_head"]}),
        # Layers that are not linear.
        ("gpt2", 2 * 4, {"target_modules": ["c_attn", "c_fc", "c_proj"]}),
        ("gpt2", 2, {"target_modules": ["c_attn"], "use_dora": True}),
        ("mixtral", 2 * 3, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
        ("llama", 2 + 1, {"target_modules": ["q_proj", "embed_tokens"]}),
    ],
)
def test_every_kind_of_adapter_is_merged_as_it_was_trained(
    base_of, tmp_path, architecture, layers, lora
):
    network = adapted(architecture, tmp_path / "a", 0.1, **lora)
    merged = merge(base_of(architecture), tmp_path / "a", "float32", tmp_path / "m")
    assert merged["modules"] == layers
    assert merged["change"] > 0.01
    found, _ = load_model(str(tmp_path / "m"), "float32")
    found = logits(found.cpu().eval())
    torch.testing.assert_close(found, logits(network), rtol=1e-4, atol=1e-5)
    assert (found - logits(read(base_of(architecture)))).abs().max() > 0.01


def test_rounding_to_bfloat16_is_measured(base_of, tmp_path):
    losses = []
    for i, change in enumerate((1.0, 0.001)):
        adapted("qwen3", tmp_path / f"a{i}", change)
        merged = merge(base_of("qwen3"), tmp_path / f"a{i}", "bfloat16", tmp_path / f"m{i}")
        losses.append(merged["rounding"])
    assert 0 < losses[0] < 0.01 < losses[1] < 0.5


def test_a_change_that_is_all_lost_in_rounding_is_refused(base_of, tmp_path):
    adapted("qwen3", tmp_path / "a", 1e-7)
    rounded = (base_of("qwen3"), tmp_path / "a", "bfloat16", tmp_path / "m")
    refusal_of(lambda: merge(*rounded), "100%", "lost in rounding to bfloat16")
    assert not (tmp_path / "m").exists()
    merged = merge(base_of("qwen3"), tmp_path / "a", "float32", tmp_path / "m")
    assert 0 < merged["change"] < 1e-5


def twice(model):
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] *= 2
    return model._unload_and_optionally_merge(merge=True)


@pytest.mark.parametrize("wrong", [LoraModel.unload, twice], ids=["the base", "twice"])
def test_a_merge_that_is_not_base_plus_adapter_is_noticed(base_of, tmp_path, monkeypatch, wrong):
    """The published trap: the adapter is dropped, and the base is saved."""
    adapted("qwen3", tmp_path / "a", 0.1)
    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises((AssertionError, UserError), match=r"not base|changes nothing"):
        merge(base_of("qwen3"), tmp_path / "a", "float32", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    """A function that trains a recipe with a LoRA section, with changes: the run, the manifest and
    what was said."""
    monkeypatch.chdir(tmp_path)

    def train(**changes):
        model = save_model(tmp_path / "model", "qwen3", hidden=64)
        recipe = write_recipe(tmp_path, model, lora=LORA, **changes)
        make.run(recipe, force=False)
        sft.run(recipe, force=False)
        return recipe, stage_facts(recipe.run.stage("sft")), capsys.readouterr().out

    return train


def test_training_that_changes_nothing_is_said(trained):
    # One step of the warmup, at a rate of 0.
    _, manifest, said = trained(sft={**RECIPE["sft"], "max_steps": 1})
    assert "sft: training changed nothing" in said
    assert manifest["merge"] == {"modules": 14, "change": 0.0, "rounding": 0.0}


def test_a_change_of_which_most_is_lost_in_rounding_is_said(trained):
    _, manifest, said = trained(sft={**RECIPE["sft"], "learning_rate": 1e-4}, dtype="bfloat16")
    lost = manifest["merge"]["rounding"]
    assert lost > 0.5
    assert f"sft: merging lost {lost:.0%} of the adapter's change" in said


def test_an_adapter_of_quantised_weights_is_merged_into_whole_ones_and_sampled(trained):
    recipe, manifest, _ = trained(bits=4, backend="trl")
    assert "uint8" in manifest["held"]["dtype"]
    # In TRL's bfloat16 small steps would be lost.
    assert manifest["held"]["trainable_dtype"] == ["float32"]
    assert manifest["merge"]["modules"] == 14
    assert manifest["merge"]["change"] > 1e-3
    folder = recipe.run.stage("sft") / "model"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    base, merged = (read(each).state_dict() for each in (recipe.model, folder))
    # Not weights that were quantised and made whole again: layers without an adapter are as before.
    same = {name for name in base if base[name].equal(merged[name])}
    assert len(same) == len(base) - 14
    adapter = load_file(recipe.run.adapter("sft") / "adapter_model.safetensors")
    for name in set(base) - same:
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (adapter[f"{layer}.lora_{x}.weight"].float() for x in "AB")
        torch.testing.assert_close(merged[name], base[name] + 2 * b @ a, rtol=1e-4, atol=1e-6)
    sample_arm(recipe, "sft", force=False)
    assert recipe.run.samples("sft").stat().st_size > 0
