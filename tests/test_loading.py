"""What of a model is trained: exactly the layers that a recipe names, and no half an adapter."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from running import refusal_of
from tiny import LORA, save_model, training_for, write_recipe

from pipeline.model.load import load_model
from pipeline.train import loading
from pipeline.train.loading import check_model, load_for_training

pytestmark = pytest.mark.slow
LAYERS = {
    "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj"},
}
LAYERS["all"] = LAYERS["attention"] | LAYERS["mlp"]


@pytest.fixture
def loaded(tmp_path):
    """A function that loads a model of an architecture for training by TRL."""

    def load(architecture="qwen3", lora=LORA, **changes):
        model = save_model(tmp_path / architecture, architecture)
        recipe = replace(write_recipe(tmp_path, model), lora=lora, backend="trl", **changes)
        return load_for_training(training_for(recipe), 256)[0]

    return load


def trained(network):
    return {name for name, weight in network.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("named", LAYERS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text", "smollm3"])
def test_exactly_the_named_layers_get_adapters_and_only_these_train(loaded, architecture, named):
    network = loaded(architecture, {**LORA, "target_modules": named})
    layers = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    assert {name.rpartition(".")[2] for name in layers} == LAYERS[named]
    assert len(layers) == len(LAYERS[named]) * 2
    assert len(trained(network)) == 2 * len(layers)
    assert all("lora_" in name for name in trained(network))


def test_quantised_weights_stay_frozen_below_their_adapters(loaded):
    network = loaded(bits=4)
    kinds = {w.dtype for n, w in network.named_parameters() if "base_layer" in n}
    assert kinds == {torch.uint8}
    assert len(trained(network)) == 7 * 2 * 2
    assert all("lora_" in name for name in trained(network))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_evaluating_quantised_weights_does_not_spoil_their_gradients(loaded):
    """bitsandbytes 0.50 repacks weights on a CPU for a forward pass in eval mode; the backward pass
    through the packed ones was wrong by more than the gradient itself."""
    network = loaded(bits=4)
    ids = torch.arange(5, 40)[None]

    def gradient():
        network.zero_grad()
        network.train()(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([w.grad.flatten() for w in network.parameters() if w.requires_grad])

    before = gradient()
    with torch.no_grad():
        network.eval()(input_ids=ids)
    torch.testing.assert_close(gradient(), before)
    assert before.abs().max() > 0


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"target_modules": ["q_proj", "v_porj"]}, ["target_modules has 'v_porj'", "q_proj, up_"]),
        ({"modules_to_save": ["head"]}, ["modules_to_save has 'head'"]),
        ({"target_modules": "atention"}, ["lora does not fit", "atention"]),
        ({"trainable_token_indices": [5]}, ["lora.trainable_token_indices", "left out", "merged"]),
        ({"target_modules": ["q_proj", "lm_head"]}, ["adapter of lm_head", "merged"]),
        ({"target_parameters": ["experts.up"]}, ["has 'experts.up'", "parameters of experts"]),
    ],
)
def test_an_adapter_that_does_not_fit_or_cannot_be_merged_is_refused(loaded, tmp_path, lora, says):
    said = refusal_of(lambda: loaded(lora={**LORA, **lora}), *says)
    assert said.startswith(f"{tmp_path / 'small.yaml'}: ")


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_what_a_model_lacks_is_said_from_its_config_alone(tmp_path, architecture):
    folder = save_model(tmp_path / architecture, architecture)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    recipe = write_recipe(tmp_path, folder)
    check_model(recipe)
    every = {**LORA, "target_modules": "all-linear"}
    for first in (True, "pissa", "olora"):
        check_model(replace(recipe, lora={**every, "init_lora_weights": first}))
    other = {**LORA, "target_modules": ["qkv_proj"]}
    its_own = "c_attn, c_fc" if architecture == "gpt2" else "q_proj, up_proj"
    refusal_of(lambda: check_model(replace(recipe, lora=other)), "has 'qkv_proj'", its_own)


def test_a_model_with_other_names_for_its_layers_gets_no_half_an_adapter(loaded):
    # PEFT itself would attach o_proj, the one of the four that is called so there.
    its_own = "gate_up_proj, lm_head, o_proj, qkv_proj"
    refusal_of(lambda: loaded("phi3", {"target_modules": "attention"}), "'k_proj'", its_own)
    assert loaded("phi3", {"target_modules": ["qkv_proj", "o_proj"]})


def test_a_model_without_a_trainable_weight_is_refused(loaded, monkeypatch):
    attach, name = loading._attach_with_trl, "_attach_with_trl"
    monkeypatch.setattr(loading, name, lambda *given: attach(*given).requires_grad_(False))
    refusal_of(loaded, "no trainable weights")


def test_whole_weights_are_not_taken_for_quantised_ones(loaded, monkeypatch):
    """Unsloth goes on with whole weights where it cannot quantise."""
    monkeypatch.setattr(
        loading, "_load_with_trl", lambda training, _: load_model(training.start, "float32")
    )
    refusal_of(lambda: loaded(bits=4), "4 bits", "BACKEND=trl")
