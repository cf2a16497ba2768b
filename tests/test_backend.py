"""Loading and saving models: a good one comes back as it was, a bad one is one sentence."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, LORA, random_model, save_model, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.errors import UserError
from data.prompts import messages
from pipeline import backend, lengths
from pipeline.tokens import build_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    backend.save(*random_model("qwen3"), folder)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A good model folder that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(model: str | Path, dtype: str = "float32") -> str:
    with pytest.raises(UserError) as refused:
        backend.load(str(model), dtype)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- a good model --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_comes_back_as_it_was_saved(tmp_path, architecture):
    network, tokenizer = random_model(architecture)
    backend.save(network, tokenizer, tmp_path / "m")
    again, tokens = backend.load(str(tmp_path / "m"), "float32")
    assert type(again) is type(network)
    found, expected = again.cpu().state_dict(), network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    chat = tokenizer.apply_chat_template(messages("Zoo visit at 09:05"), tokenize=False)
    assert tokens(chat)["input_ids"] == tokenizer(chat)["input_ids"]
    assert tokens.chat_template == tokenizer.chat_template


def test_any_hugging_face_tool_can_read_what_is_saved(saved):
    network = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert network.get_input_embeddings().num_embeddings == len(tokenizer)
    assert [path.name for path in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(saved.glob("*.bin"))


@pytest.mark.parametrize("dtype", backend.DTYPES)
def test_the_weights_have_the_dtype_asked_for(saved, dtype):
    network, _ = backend.load(str(saved), dtype)
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}


def test_padding_falls_back_on_the_end_token(model):
    path = model / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["pad_token"]
    path.write_text(json.dumps(content))
    _, tokenizer = backend.load(str(model), "float32")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


# --- what is missing -----------------------------------------------------------------------


def test_a_missing_folder_is_one_sentence(tmp_path):
    assert refusal(tmp_path / "nope") == f"model folder {tmp_path / 'nope'} does not exist"
    assert refusal("./nope") == "model folder nope does not exist"
    assert refusal("runs/no/such/model") == "model folder runs/no/such/model does not exist"


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("config.json", "has no config.json"),
        ("*.safetensors", "has no weights (*.safetensors)"),
        ("tokenizer*", "has no tokenizer (tokenizer.json)"),
    ],
)
def test_what_a_model_folder_lacks_is_named(model, gone, says):
    for path in model.glob(gone):
        path.unlink()
    assert refusal(model) == f"model folder {model} {says}"


def test_an_empty_folder_lacks_its_config(tmp_path):
    assert refusal(tmp_path) == f"model folder {tmp_path} has no config.json"


def test_a_tokenizer_without_a_chat_template_is_refused(model):
    for path in model.glob("chat_template*"):
        path.unlink()
    assert refusal(model) == (
        f"the tokenizer of {model} has no chat template; use an instruct model"
    )


# --- what is corrupt -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:4],
        lambda content: b"",
        lambda content: b"\x00" * len(content),
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    ],
    ids=["half", "a byte short", "no header", "empty", "zeros", "a pointer of Git LFS"],
)
def test_corrupt_weights_are_one_sentence(model, spoil):
    path = model / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    text = refusal(model)
    assert text.startswith(f"the weights of {model} are corrupt (")
    assert text.endswith("copy them again")


@pytest.mark.parametrize(
    "config", ['{"model_type":', "{}", '{"model_type": "nope"}', '{"model_type": "vit"}']
)
def test_a_config_that_is_no_language_models_is_one_sentence(model, config):
    (model / "config.json").write_text(config)
    assert refusal(model).startswith(f"model folder {model} cannot be loaded: ")


def test_a_config_that_contradicts_itself_is_one_sentence(model):
    set_config(model, num_hidden_layers=3)
    assert refusal(model).startswith(f"model folder {model} cannot be loaded: ")


def test_a_corrupt_tokenizer_is_one_sentence(model):
    path = model / "tokenizer.json"
    path.write_text(path.read_text()[:1000])
    assert refusal(model).startswith(f"model folder {model} cannot be loaded: ")


# --- what does not belong together ---------------------------------------------------------


def test_weights_of_another_shape_are_refused(model):
    set_config(model, hidden_size=64)
    assert refusal(model).startswith(f"the weights of {model} do not fit its config.json: ")


def test_missing_weights_are_refused_and_not_made_up(model):
    path = model / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert refusal(model) == (
        f"the weights of {model} do not fit its config.json: "
        "model.layers.0.self_attn.q_proj.weight and 0 others are missing or of another shape"
    )


def test_a_tokenizer_bigger_than_its_model_is_refused(model):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(model)
    size = len(build_tokenizer())
    assert refusal(model) == (
        f"the tokenizer of {model} has {size + 2} tokens, its model only {size}: "
        "they do not belong together"
    )


def test_a_model_bigger_than_its_tokenizer_is_fine(tmp_path):
    network, tokenizer = random_model("qwen3")
    network.resize_token_embeddings(len(tokenizer) + 64)
    backend.save(network, tokenizer, tmp_path / "m")
    assert backend.load(str(tmp_path / "m"), "float32")[0].config.vocab_size == len(tokenizer) + 64


def test_an_unknown_dtype_is_refused(saved):
    assert refusal(saved, "int8") == "dtype must be one of float32, bfloat16, float16, not 'int8'"


# --- the hub -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "nonesuch", "with blank/in it"])
def test_a_hub_id_that_cannot_be_had_is_one_sentence(monkeypatch, tmp_path, name):
    # Read when the library is imported, so the variable of the environment would be too late.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = refusal(name)
    assert text.startswith(
        f"model {name!r} is neither a local folder nor to be had from the hub just now"
    )
    assert "is there a network" in text


@pytest.mark.parametrize(
    ("model", "local"),
    [
        ("Qwen/Qwen3-0.6B", False),
        ("gpt2", False),
        ("./gpt2", True),
        ("/models/gpt2", True),
        ("~/gpt2", True),
        ("../models/gpt2", True),
        ("runs/tiny/sft/model", True),
    ],
)
def test_a_hub_id_is_told_from_a_folder(model, local):
    assert backend.is_local(model) == local


def test_a_folder_that_exists_is_local_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not backend.is_local("owner/name")
    Path("owner/name").mkdir(parents=True)
    assert backend.is_local("owner/name")


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
    machine, saved, tmp_path, changes, given, says
):
    recipe = write_recipe(tmp_path, saved, **changes)
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
def test_an_option_that_this_machine_has_is_taken(machine, saved, tmp_path, changes, given):
    recipe = write_recipe(tmp_path, saved, **changes)
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
    whole = backend.load
    monkeypatch.setattr(backend, "_load_with_trl", lambda recipe, model: whole(model, "float32"))
    says = r"cannot load .* in 8 bits on this machine; BITS=4 or BACKEND=trl"
    with pytest.raises(UserError, match=says):
        training(bits=8)


# --- a model's own code ----------------------------------------------------------------------


@pytest.mark.parametrize("reads", [backend.load, lambda m, _: lengths.read_tokenizer(m)])
def test_code_that_comes_with_a_model_is_not_run_whoever_says_yes(model, monkeypatch, reads):
    marked = model / "ran"
    (model / "evil.py").write_text(f"open({str(marked)!r}, 'w').close()\nclass Evil: pass\n")
    own = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    set_config(model, model_type="evil", architectures=["Evil"], auto_map=own)
    path = model / "tokenizer_config.json"
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **tokenizer}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError) as refused:
        reads(str(model), "float32")
    assert "\n" not in str(refused.value)
    assert not marked.exists()
