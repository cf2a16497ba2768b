"""Merging: what is written is base + adapter, and what is lost or changes nothing is said."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, LoraModel
from tiny import LORA, RECIPE, TIED, random_model, save_model, write_recipe
from transformers import AutoModelForCausalLM

from data import make
from data.common.errors import UserError
from eval.answers.sampling import sample_arm
from pipeline import sft
from pipeline.model.load import load_model
from pipeline.train import backend
from pipeline.train.trainer import training_rows

IDS = torch.arange(5, 40)[None]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A function that gives the folder of a random model of an architecture."""
    folder = tmp_path_factory.mktemp("models")
    return lambda architecture: save_model(folder / architecture, architecture)


def adapted(architecture, folder, change, **lora):
    """A model with an adapter, saved to ``folder``, whose B is drawn with deviation ``change``."""
    network, _ = random_model(architecture)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **lora}
    network = get_peft_model(network, LoraConfig(**settings))
    torch.manual_seed(1)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=change)
    backend.save_adapter(network, folder)
    return network.eval()


@torch.no_grad()
def logits(network):
    return network(IDS).logits.float()


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3", "smollm3"])
def test_the_merged_model_answers_as_base_and_adapter_did(base_of, tmp_path, architecture):
    network = adapted(architecture, tmp_path / "a", 0.1)
    facts = backend.merge(str(base_of(architecture)), tmp_path / "a", "float32", tmp_path / "m")
    assert facts["modules"] == 2 * 2
    assert facts["change"] > 0.01
    assert facts["rounding"] < 1e-5
    assert not (tmp_path / "m" / "adapter_config.json").exists()
    found, base = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (tmp_path / "m", base_of(architecture))
    )
    torch.testing.assert_close(logits(found), logits(network), rtol=1e-4, atol=1e-5)
    assert (logits(found) - logits(base)).abs().max() > 0.01
    differ = {n for n, w in found.named_parameters() if not w.equal(base.get_parameter(n))}
    assert {name.split(".")[-2] for name in differ} == {"q_proj", "down_proj"}
    head, entry = (found.get_output_embeddings().weight, found.get_input_embeddings().weight)
    assert (head is entry) == TIED[architecture]


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "olora"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_every_kind_of_adapter_is_merged_as_it_was_trained(base_of, tmp_path, lora):
    network = adapted("qwen3", tmp_path / "a", 0.1, **lora)
    backend.merge(str(base_of("qwen3")), tmp_path / "a", "float32", tmp_path / "m")
    found, _ = load_model(str(tmp_path / "m"), "float32")
    torch.testing.assert_close(logits(found.cpu().eval()), logits(network), rtol=1e-4, atol=1e-5)


def test_rounding_to_bfloat16_is_measured(base_of, tmp_path):
    losses = []
    for i, change in enumerate((1.0, 0.001)):
        network = adapted("qwen3", tmp_path / f"a{i}", change).get_base_model()
        folders = tmp_path / f"a{i}", tmp_path / f"m{i}"
        facts = backend.merge(str(base_of("qwen3")), folders[0], "bfloat16", folders[1])
        losses.append(facts["rounding"])
        # The same, by way of the files.
        merged = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.bfloat16)
        base = AutoModelForCausalLM.from_pretrained(base_of("qwen3"), dtype=torch.bfloat16)
        lost = whole = 0.0
        for layer in range(2):
            for part in ("self_attn.q_proj", "mlp.down_proj"):
                name = f"model.layers.{layer}.{part}"
                wanted = network.get_submodule(name).get_delta_weight("default").detach()
                made = merged.get_submodule(name).weight.float()
                made = made - base.get_submodule(name).weight.float()
                lost += float((made - wanted).square().sum())
                whole += float(wanted.square().sum())
        assert facts["rounding"] == pytest.approx((lost / whole) ** 0.5, rel=0.02)
    assert 0 < losses[0] < 0.01 < losses[1] < 0.5


def test_a_change_that_is_all_lost_in_rounding_is_refused(base_of, tmp_path):
    adapted("qwen3", tmp_path / "a", 1e-7)
    with pytest.raises(UserError) as refused:
        backend.merge(str(base_of("qwen3")), tmp_path / "a", "bfloat16", tmp_path / "m")
    assert "changes nothing: 100% of it is lost in rounding to bfloat16" in str(refused.value)
    assert "dtype: float32" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m").exists()
    facts = backend.merge(str(base_of("qwen3")), tmp_path / "a", "float32", tmp_path / "m")
    assert 0 < facts["change"] < 1e-5


def test_a_merge_that_is_not_base_plus_adapter_is_noticed(base_of, tmp_path, monkeypatch):
    adapted("qwen3", tmp_path / "a", 0.1)
    merge = LoraModel.merge_and_unload
    for wrong in ("unload", "merge_twice"):
        if wrong == "unload":  # the published trap: the adapter is dropped, the base is saved
            monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
        else:

            def twice(model):
                for layer in model.modules():
                    if isinstance(layer, LoraLayer):
                        layer.scaling["default"] *= 2
                return merge(model)

            monkeypatch.setattr(LoraModel, "merge_and_unload", twice)
        with pytest.raises((AssertionError, UserError), match=r"not base|changes nothing"):
            backend.merge(str(base_of("qwen3")), tmp_path / "a", "float32", tmp_path / "m")
        assert not (tmp_path / "m").exists()


# --- by the stage ----------------------------------------------------------------------------


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """A function that makes the data of a recipe with a LoRA section, with changes."""
    monkeypatch.chdir(tmp_path)

    def prepare(**changes):
        model = save_model(tmp_path / "model", "qwen3", hidden=64)
        recipe = write_recipe(tmp_path, model, **{"lora": LORA, **changes})
        make.run(recipe, force=False, workers=1)
        return recipe

    return prepare


def test_training_that_changes_nothing_is_said(run_of, capsys):
    recipe = run_of(sft={**RECIPE["sft"], "learning_rate": 0.0})
    capsys.readouterr()
    sft.run(recipe, force=False)
    assert (
        "sft: training changed nothing, so the model is the one that it" in capsys.readouterr().out
    )
    manifest = json.loads((recipe.run.folder / "sft" / "manifest.json").read_text())
    assert manifest["merge"] == {"modules": 14, "change": 0.0, "rounding": 0.0}


def test_a_change_of_which_most_is_lost_in_rounding_is_said(run_of, capsys):
    recipe = run_of(sft={**RECIPE["sft"], "learning_rate": 1e-4}, dtype="bfloat16")
    capsys.readouterr()
    sft.run(recipe, force=False)
    manifest = json.loads((recipe.run.folder / "sft" / "manifest.json").read_text())
    lost = manifest["merge"]["rounding"]
    assert lost > 0.5
    said = (
        f"sft: merging lost {lost:.0%} of the adapter's change in rounding; dtype: float32 keeps it"
    )
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_of_quantised_weights_is_merged_into_whole_ones_and_sampled(
    run_of, bits, tmp_path
):
    recipe = run_of(bits=bits, backend="trl")
    sft.run(recipe, force=False)
    manifest = json.loads((recipe.run.folder / "sft" / "manifest.json").read_text())
    assert {"int8", "uint8"} & set(manifest["held"]["dtype"])
    # In bfloat16, which TRL would have, small steps are lost.
    assert manifest["held"]["trainable_dtype"] == ["float32"]
    assert manifest["merge"]["modules"] == 14
    assert manifest["merge"]["change"] > 1e-3
    folder = recipe.run.folder / "sft" / "model"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    base, merged = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).state_dict()
        for each in (recipe.model, folder)
    )
    assert {weight.dtype for weight in merged.values()} == {torch.float32}
    # Not weights that were quantised and made whole again: what has no adapter is as it was.
    same = {name for name in base if base[name].equal(merged[name])}
    assert len(same) == len(base) - 14
    from safetensors.torch import load_file

    adapter = load_file(recipe.run.folder / "sft" / "adapter" / "adapter_model.safetensors")
    for name in set(base) - same:
        a, b = (
            adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"].float()
            for x in "AB"
        )
        torch.testing.assert_close(merged[name], base[name] + 2 * b @ a, rtol=1e-4, atol=1e-6)
    sample_arm(recipe, "sft", force=False)
    assert recipe.run.samples("sft").stat().st_size > 0


def test_what_cannot_be_merged_is_refused_before_training(run_of):
    recipe = run_of(backend="trl")
    rows = training_rows(recipe, "sft")
    assert rows
    for lora, says in (
        ({"lora_bias": True}, r"lora\.lora_bias cannot be merged into a model"),
        ({"trainable_token_indices": [5]}, r"lora\.trainable_token_indices cannot be merged"),
        ({"target_modules": ["embed_tokens"]}, "an adapter of embed_tokens cannot be merged"),
        ({"target_modules": ["q_proj", "lm_head"]}, "an adapter of lm_head cannot be merged"),
    ):
        with pytest.raises(UserError, match=says):
            backend.load_for_training(
                replace(recipe, lora={**LORA, **lora}), "sft", recipe.model, 256
            )
