"""Loading a model: a good one comes back as it was, a bad one is one sentence."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from running import change_json, refusal_of
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, random_model, save_model
from tokenizers.processors import TemplateProcessing

from data.prompts import messages
from data.recipe import DTYPES
from pipeline import grpo
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import render, stop_ids
from pipeline.model.load import (
    check_template,
    is_local,
    load_model,
    read_config,
    read_stops,
    read_tokenizer,
    write_model,
)
from tests.architectures import outcome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "good", "qwen3")


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A good model folder that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(model: str | Path, dtype: str = "float32") -> str:
    text = refusal_of(lambda: load_model(str(model), dtype))
    assert len(text) < 600
    return text


# --- a good model --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_comes_back_as_it_was_saved_in_safetensors_alone(tmp_path, architecture):
    network, tokenizer = random_model(architecture)
    write_model(network, tokenizer, tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((tmp_path / "m").glob("*.bin"))
    again, tokens = load_model(str(tmp_path / "m"), "float32")
    assert type(again) is type(network)
    found, expected = again.cpu().state_dict(), network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    chat = tokenizer.apply_chat_template(messages("Zoo visit at 09:05"), tokenize=False)
    assert tokens(chat)["input_ids"] == tokenizer(chat)["input_ids"]
    assert tokens.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_have_the_dtype_asked_for(saved, dtype):
    network, _ = load_model(str(saved), dtype)
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}


def test_padding_falls_back_on_the_end_token(model):
    change_json(model / "tokenizer_config.json", pad_token=None)
    _, tokenizer = load_model(str(model), "float32")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


def test_a_model_bigger_than_its_tokenizer_is_fine(tmp_path):
    network, tokenizer = random_model("qwen3")
    network.resize_token_embeddings(len(tokenizer) + 64)
    write_model(network, tokenizer, tmp_path / "m")
    assert load_model(str(tmp_path / "m"), "float32")[0].config.vocab_size == len(tokenizer) + 64


# --- a bad one -----------------------------------------------------------------------------


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
    shutil.rmtree(model)
    assert refusal(model) == f"model folder {model} does not exist"


@pytest.mark.parametrize(
    ("name", "file", "says"),
    [
        ("m.gguf", None, "GGUF"),
        ("folder", "m.gguf", "GGUF"),
        ("folder", "adapter_config.json", "adapter"),
        ("m.bin", None, "is a file"),
        ("gone", "", "does not exist"),
    ],
)
def test_what_is_no_model_folder_is_told_whoever_reads_it(tmp_path, name, file, says):
    path = tmp_path / name
    if file:
        path.mkdir()
    if file != "":
        (path / file if file else path).write_text("{}")
    for reads in (read_config, read_tokenizer, lambda model: load_model(model, "float32")):
        refusal_of(lambda reads=reads: reads(str(path)), says)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
CORRUPT, UNREADABLE = "the weights of {} are corrupt (", "model folder {} cannot be loaded: "


@pytest.mark.parametrize(
    ("file", "spoil", "says"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2], CORRUPT),
        ("model.safetensors", lambda content: content[:-1], CORRUPT),
        ("model.safetensors", lambda content: b"", CORRUPT),
        ("model.safetensors", lambda content: LFS, CORRUPT),
        ("config.json", lambda content: b'{"model_type":', UNREADABLE),
        ("config.json", lambda content: b'{"model_type": "nope"}', UNREADABLE),
        ("config.json", lambda content: b'{"model_type": "vit"}', UNREADABLE),
        ("tokenizer.json", lambda content: b'{"version": "1.0", "added_', UNREADABLE),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(model, file, spoil, says):
    path = model / file
    path.write_bytes(spoil(path.read_bytes()))
    assert refusal(model).startswith(says.format(model))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 64}, ""),
        ({"num_hidden_layers": 10**6}, "it asks for 1,000,000 layers, and there"),
        (
            {"num_hidden_layers": 5000, "layer_types": ["full_attention"] * 5000},
            "it asks for 5,000 layers, and there",
        ),
    ],
    ids=["another width", "more layers", "more layers, each with its type"],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(model, changes, says):
    change_json(model / "config.json", **{"layer_types": None, **changes})
    named = f"the weights of {model} do not fit its config.json: {says}"
    assert refusal(model).startswith(named)


def test_missing_weights_are_refused_and_not_made_up(model):
    path = model / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.layers.0.self_attn.q_proj.weight and 0 others" in refusal(model)


def test_a_tokenizer_that_does_not_fit_the_model_or_the_pipeline_is_refused(model):
    tokenizer = build_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(model)
    assert f"has {size + 2} tokens, its model only {size}:" in refusal(model)


def test_a_special_token_that_no_conversation_shows_need_not_be_known_to_the_model(model):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad2>"})
    tokenizer.save_pretrained(model)
    network, tokenizer = load_model(str(model), "float32")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < network.config.vocab_size
    tokenizer.chat_template = "{{ '<image>' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    assert "do not belong together" in refusal(model)


@pytest.mark.parametrize("habit", [{"top_p": 0.6}, {"min_p": 0.9}, {"early_stopping": True}])
def test_of_a_models_own_way_of_sampling_the_tokens_alone_are_kept(model, tmp_path, habit):
    change_json(model / "generation_config.json", **habit, temperature=0.9, eos_token_id=[2, 5])
    network, tokenizer = load_model(str(model), "float32")
    assert {*network.generation_config.to_diff_dict()} <= {
        "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id",
    }  # fmt: skip
    write_model(network, tokenizer, tmp_path / "again")
    assert load_model(str(tmp_path / "again"), "float32")[0].generation_config.eos_token_id == [
        2,
        5,
    ]


def test_a_template_that_writes_the_date_asks_the_same_on_every_day(model):
    path = model / "chat_template.jinja"
    path.write_text("{{ strftime_now('%H:%M:%S.%f') }}\n" + path.read_text())
    network, tokenizer = load_model(str(model), "float32")
    asked = render(tokenizer, "Plan.")
    assert asked == render(tokenizer, "Plan.")
    write_model(network, tokenizer, model)
    assert load_model(str(model), "float32")[1].chat_template == tokenizer.chat_template


def test_a_base_that_begins_every_text_with_a_token_is_asked_with_it(model):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.bos_token = tokenizer.pad_token
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first[0]} $A", special_tokens=[first]
    )
    check_template(tokenizer, "m")
    asked = tokenizer(render(tokenizer, "Plan."), add_special_tokens=False)["input_ids"]
    assert asked[0] == tokenizer.bos_token_id not in asked[1:]


def test_a_base_without_a_chat_template_takes_turns_in_plain_text(model):
    for path in model.glob("chat_template*"):
        path.unlink()
    network, tokenizer = load_model(str(model), "float32")
    text = tokenizer.apply_chat_template(messages("Plan.", "Nothing fits."), tokenize=False)
    assert text == f"User:\nPlan.\n\nAssistant:\nNothing fits.{tokenizer.eos_token}\n\n"
    asked = tokenizer.apply_chat_template(
        messages("Plan."), tokenize=False, add_generation_prompt=True
    )
    assert text.startswith(asked)
    write_model(network, tokenizer, model)
    assert read_tokenizer(str(model)).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("own", [True, False], ids=["own file", "config alone"])
def test_the_ends_of_an_answer_are_known_without_the_weights(model, own):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|unknown|>"
    tokenizer.save_pretrained(model)
    change_json(model / "config.json", eos_token_id=9)
    if own:
        change_json(model / "generation_config.json", eos_token_id=[7, 9])
    else:
        (model / "generation_config.json").unlink()
    network, loaded = load_model(str(model), "float32")
    ends = stop_ids(network.generation_config, loaded)
    assert tokenizer.eos_token_id in ends
    assert ends == read_stops(str(model), read_tokenizer(str(model)))


def test_weights_quantised_already_are_refused_for_the_whole_ones(model, tmp_path, monkeypatch):
    change_json(model / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    refusal_of(
        lambda: read_config(str(model)), "quantised already (bitsandbytes)", "made from, and"
    )
    snapshots = tmp_path / "hub" / "models--unsloth--m-unsloth-bnb-4bit"
    shutil.copytree(model, snapshots / "snapshots" / "0")
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    named = "made from, unsloth/m by its name"
    refusal_of(lambda: read_config("unsloth/m-unsloth-bnb-4bit"), named)


@pytest.mark.parametrize("reads", [load_model, lambda model, _: read_tokenizer(model)])
def test_code_that_comes_with_a_model_is_not_run_whoever_says_yes(model, monkeypatch, reads):
    marked = model / "ran"
    (model / "evil.py").write_text(f"open({str(marked)!r}, 'w').close()\nclass Evil: pass\n")
    own = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    change_json(model / "config.json", model_type="evil", architectures=["Evil"], auto_map=own)
    own = {"AutoTokenizer": ["evil.Evil", ""]}
    change_json(model / "tokenizer_config.json", auto_map=own, tokenizer_class="Evil")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    refusal_of(lambda: reads(str(model), "float32"))
    assert not marked.exists()


# --- families --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "way"),
    [
        ("gpt2", "LoRA"),
        ("mixtral", "whole"),
        ("granitemoehybrid", "LoRA"),
        ("falcon_h1", "whole"),
        ("recurrent_gemma", "whole"),
    ],
)
def test_a_model_of_another_kind_goes_all_the_way(tmp_path, monkeypatch, family, way):
    monkeypatch.setattr(grpo, "gate", lambda *_: None)  # the audit asks no model
    assert outcome(family, way, tmp_path) == "works"


def test_a_model_that_lora_does_not_fit_is_refused_before_anything_is_made(tmp_path):
    said = outcome("mamba", "LoRA", tmp_path)
    assert said.startswith("refused in check: small.yaml: lora does not fit base: ")
    assert "lora: null" in said


@pytest.mark.parametrize("asked", [True, False])
def test_experts_are_written_and_read_without_the_logits_of_their_router(tmp_path, asked):
    network, tokenizer = random_model("mixtral")
    network.config.output_router_logits = True
    if asked:
        write_model(network, tokenizer, tmp_path / "m")
    else:
        network.save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
    assert read_config(str(tmp_path / "m")).output_router_logits is not asked
    assert load_model(str(tmp_path / "m"), "float32")[0].config.output_router_logits is False


# --- the hub -------------------------------------------------------------------------------


def test_a_hub_id_that_is_not_available_is_one_sentence(monkeypatch, tmp_path):
    # Read when the library is imported, so the variable of the environment would be too late.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "Qwen/Qwen3-0.6B"
    assert refusal(name).startswith(f"model {name!r} is neither a local folder nor available ")


@pytest.mark.parametrize(
    ("model", "local"),
    [
        ("Qwen/Qwen3-0.6B", False),
        ("gpt2", False),
        ("./gpt2", True),
        ("~/gpt2", True),
        ("runs/tiny/sft/model", True),
        ("owner/name", True),
        ("smollm2.gguf", True),
    ],
)
def test_a_hub_id_is_distinguished_from_a_folder(model, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)  # a folder that exists is local whatever its name
    assert is_local(model) == local
