"""Which backend trains, and what of a model it trains."""

import sys
from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import LORA, save_model, write_recipe

from data.common.errors import UserError
from pipeline.model.load import load_model
from pipeline.train import backend

# --- which backend ---------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that makes this machine look like another one: with CUDA or not, packages there
    or not, Unsloth as the source of its ``__init__``."""
    monkeypatch.setattr(backend, "_chosen", {})

    def pretend(cuda=False, installed=(), unsloth=None, late=False):
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
        there = {*installed, *(["unsloth"] if unsloth is not None else [])}
        monkeypatch.setattr(backend, "find_spec", lambda name: name if name in there else None)
        monkeypatch.delitem(sys.modules, "unsloth", raising=False)
        if unsloth is not None:
            (tmp_path / "site" / "unsloth").mkdir(parents=True, exist_ok=True)
            (tmp_path / "site" / "unsloth" / "__init__.py").write_text(unsloth)
            monkeypatch.syspath_prepend(tmp_path / "site")
        if not late:
            for name in backend._PATCHED:
                monkeypatch.delitem(sys.modules, name, raising=False)

    yield pretend
    sys.modules.pop("unsloth", None)


SOUND, BROKEN = "name = 'sound'", "raise RuntimeError('no kernel for\\n  this chip')"


@pytest.mark.parametrize(
    ("wanted", "given", "name", "why"),
    [
        ("trl", {"cuda": True, "unsloth": SOUND}, "trl", "as asked for"),
        ("auto", {"unsloth": SOUND}, "trl", "there is no CUDA GPU"),
        ("auto", {"cuda": True, "unsloth": SOUND}, "unsloth", "there is a CUDA GPU"),
        ("unsloth", {"unsloth": SOUND}, "unsloth", "as asked for"),
        ("auto", {"cuda": True}, "trl", "Unsloth is not installed"),
        (
            "auto",
            {"cuda": True, "unsloth": BROKEN},
            "trl",
            "Unsloth cannot be used here: RuntimeError: no kernel for this chip",
        ),
        (
            "auto",
            {"cuda": True, "unsloth": "import nonesuch"},
            "trl",
            "Unsloth cannot be used here: ModuleNotFoundError: No module named 'nonesuch'",
        ),
        (
            "auto",
            {"cuda": True, "unsloth": "import os; os._exit(3)"},
            "trl",
            "Unsloth cannot be used here: its import ends with 3",
        ),
        (
            "auto",
            {"cuda": True, "unsloth": SOUND, "late": True},
            "trl",
            "Unsloth cannot be used here: transformers, peft, trl had been imported before it",
        ),
    ],
)
def test_a_backend_is_chosen_for_a_reason_that_is_said(machine, wanted, given, name, why):
    import trl  # noqa: F401  so that all three are there where it is late

    machine(**given)
    assert backend.choose(wanted) == backend.Choice(name, why)
    assert ("unsloth" in sys.modules) == (name == "unsloth")
    # What was chosen stays: Unsloth cannot be unloaded again.
    machine(cuda=False)
    assert backend.choose(wanted) == backend.Choice(name, why)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"cuda": True},
            "backend: unsloth is not installed; `make setup` does that, or BACKEND=trl",
        ),
        (
            {"cuda": True, "unsloth": BROKEN},
            "backend: unsloth cannot be used here: RuntimeError: no kernel for this chip; "
            "BACKEND=trl goes without",
        ),
        (
            {"unsloth": SOUND, "late": True},
            "backend: unsloth cannot be used here: transformers, peft, trl had been imported "
            "before it; BACKEND=trl goes without",
        ),
    ],
)
def test_unsloth_asked_for_by_name_and_not_to_be_had_is_one_sentence(machine, given, says):
    import trl  # noqa: F401

    machine(**given)
    with pytest.raises(UserError) as refused:
        backend.choose("unsloth")
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("changes", "given", "says"),
    [
        (
            {"fast_inference": True},
            {"cuda": True},
            "fast_inference needs vllm, which is not installed; `.venv/bin/pip install vllm`, or "
            "leave the key out",
        ),
        (
            {"fast_inference": True},
            {"cuda": True, "installed": ["vllm"]},
            "fast_inference is Unsloth's, and the backend is trl (Unsloth is not installed); take "
            "grpo.use_vllm with it, or neither",
        ),
        (
            {"fast_inference": True},
            {"installed": ["vllm"]},
            "fast_inference needs a CUDA GPU; leave the key out without one",
        ),
        (
            {"grpo": {"use_vllm": True}},
            {},
            "grpo.use_vllm needs vllm, which is not installed; `.venv/bin/pip install vllm`, or "
            "leave the key out",
        ),
        (
            {"sft": {"use_liger_kernel": True}},
            {"cuda": True},
            "sft.use_liger_kernel needs liger_kernel, which is not installed; `.venv/bin/pip "
            "install liger-kernel`, or leave the key out",
        ),
        (
            {"grpo": {"optim": "paged_adamw_8bit"}},
            {"installed": ["bitsandbytes"]},
            "grpo.optim: paged_adamw_8bit needs a CUDA GPU; leave the key out without one",
        ),
        (
            {"sft": {"optim": "adamw_bnb_8bit"}},
            {"cuda": True},
            "sft.optim: adamw_bnb_8bit needs bitsandbytes, which is not installed; `.venv/bin/pip "
            "install bitsandbytes`, or leave the key out",
        ),
        (
            {"bits": 4, "lora": LORA},
            {"cuda": True},
            "bits: 4 needs bitsandbytes, which is not installed; `.venv/bin/pip install "
            "bitsandbytes`, or leave the key out",
        ),
    ],
)
def test_an_option_that_this_machine_has_not_is_one_sentence(
    machine, tmp_path, changes, given, says
):
    recipe = write_recipe(tmp_path, "anything", **changes)
    machine(**given)
    with pytest.raises(UserError) as refused:
        backend.start(recipe)
    assert str(refused.value) == f"{recipe.path}: {says}"


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"bits": 4, "lora": LORA}, {"installed": ["bitsandbytes"]}),
        ({"sft": {"optim": "adamw_8bit"}}, {"cuda": True, "installed": ["bitsandbytes"]}),
        ({"grpo": {"use_vllm": True}}, {"cuda": True, "installed": ["vllm"]}),
    ],
)
def test_an_option_that_this_machine_has_is_taken(machine, tmp_path, changes, given):
    recipe = write_recipe(tmp_path, "anything", **changes)
    machine(**given)
    assert backend.start(recipe).name == "trl"


# --- what is trained -------------------------------------------------------------------------

LAYERS = {
    "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj"},
}
LAYERS["all"] = LAYERS["attention"] | LAYERS["mlp"]


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A function that loads a model of an architecture for training by TRL."""
    monkeypatch.setattr(backend, "_chosen", {})

    def load(architecture="qwen3", lora=LORA, **changes):
        model = save_model(tmp_path / architecture, architecture)
        recipe = replace(write_recipe(tmp_path, model), lora=lora, backend="trl", **changes)
        return backend.load_for_training(recipe, "sft", str(model), 256)[0]

    return load


@pytest.mark.parametrize("named", LAYERS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3", "smollm3"])
def test_exactly_the_layers_of_a_name_get_adapters_and_only_these_train(
    training, architecture, named
):
    network = training(architecture, {**LORA, "target_modules": named})
    found = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    assert {name.rpartition(".")[2] for name in found} == LAYERS[named]
    assert len(found) == len(LAYERS[named]) * 2
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(found)
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_stay_frozen_below_their_adapters(training, bits):
    network = training(bits=bits)
    kinds = {w.dtype for n, w in network.named_parameters() if "base_layer" in n}
    assert kinds == {torch.uint8 if bits == 4 else torch.int8}
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert len(trained) == 7 * 2 * 2
    assert all("lora_" in name for name in trained)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_looking_at_quantised_weights_does_not_spoil_their_gradients(training):
    """bitsandbytes 0.50 repacks weights on a CPU for a forward pass in eval mode; the backward pass
    through what it packed was wrong by more than the gradient itself."""
    network = training(bits=4)
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
        (
            {"target_modules": ["q_proj", "v_porj"]},
            "lora.target_modules has 'v_porj', which {model} has not; its linear layers are "
            "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
        ),
        (
            {"target_modules": ["wq"]},
            "lora.target_modules has 'wq', which {model} has not; its linear layers are ",
        ),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["head"]},
            "lora.modules_to_save has 'head', which {model} has not; its linear layers are ",
        ),
        (
            {"target_modules": "atention"},
            "lora does not fit {model}: Target modules atention not found in the base model",
        ),
        (
            {"target_modules": "attention", "layers_to_transform": [7]},
            "lora does not fit {model}: Target modules ",
        ),
        ({"r": 0}, "lora does not fit {model}: `r` should be a positive integer"),
    ],
)
def test_an_adapter_that_does_not_fit_its_model_is_one_sentence(training, tmp_path, lora, says):
    with pytest.raises(UserError) as refused:
        training(lora=lora)
    model = tmp_path / "qwen3"
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'small.yaml'}: {says.format(model=model)}")
    assert "\n" not in text


def test_a_model_with_other_names_for_its_layers_gets_no_half_an_adapter(training, tmp_path):
    # PEFT itself would attach o_proj, the one of the four that is called so there.
    with pytest.raises(UserError) as refused:
        training("phi3", {"target_modules": "attention"})
    assert str(refused.value) == (
        f"{tmp_path / 'small.yaml'}: lora.target_modules has 'k_proj', which {tmp_path / 'phi3'} "
        "has not; its linear layers are down_proj, gate_up_proj, lm_head, o_proj, qkv_proj"
    )
    assert training("phi3", {"target_modules": ["qkv_proj", "o_proj"]})


def test_a_model_without_a_trainable_weight_is_refused(training, monkeypatch):
    frozen = backend._attach_with_trl

    def attach(*arguments):
        network = frozen(*arguments)
        for weight in network.parameters():
            weight.requires_grad = False
        return network

    monkeypatch.setattr(backend, "_attach_with_trl", attach)
    with pytest.raises(UserError, match="has no trainable weights; look at lora:"):
        training()


def test_what_a_backend_did_not_quantise_is_not_taken_for_quantised(training, monkeypatch):
    """Unsloth goes on with whole weights where it cannot quantise."""
    whole = load_model
    monkeypatch.setattr(backend, "_load_with_trl", lambda recipe, model: whole(model, "float32"))
    says = r"cannot load .* in 8 bits on this machine; BITS=4 or BACKEND=trl"
    with pytest.raises(UserError, match=says):
        training(bits=8)
