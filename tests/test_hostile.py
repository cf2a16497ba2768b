"""The hostile world: whatever file is broken, the command line answers in one sentence.

What stands elsewhere stays there: recipes in ``test_recipe``, the flags of every stage in
``test_command_line``, models in ``test_models``, contexts in ``test_lengths`` and ``test_try``,
kills and full disks in ``test_resume``. Here broken files meet the stages that read them, and
copies that were spoilt at random whatever reads them (``fuzzing``).
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, day, within
from fuzzing import TARGETS, accept_sound, try_one
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_command_line import ending
from test_parse import MEGABYTE
from tiny import RECIPE, random_model, save_model, write_recipe
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from data import make
from data.common.errors import UserError
from data.common.files import MANIFEST, read_jsonl
from data.run import OWNER
from data.sections import RewardSection
from eval import judge as report
from eval.answers.sampling import sample_arm
from pipeline import sft
from pipeline.corpus.tokens import CHAT_TEMPLATE
from pipeline.model.load import check_tokenizer, load_model
from pipeline.watch.log import Log
from rewards.reward import SHAPES, totals

pytestmark = pytest.mark.slow  # nearly all meet a world with a trained model


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model, its recipe, data, an SFT arm, the base's answers and their report."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        write_recipe(Path(), save_model(Path("model"), "qwen3"), arms={"sft": {"trainer": "sft"}})
        recipe = write_recipe(
            Path(), Path("model"), conclusion={**RECIPE["conclusion"], "arms": ["sft"]}
        )
        make.run(recipe, force=False)
        sft.run(recipe, force=False)
        for arm in ("base", "sft"):
            sample_arm(recipe, arm, force=False)
        report.run(recipe, force=False)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A copy of it that a test may spoil, as the working folder."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def says(monkeypatch):
    """A function that runs a stage on the recipe of the working folder and returns its sentence."""

    def run(stage: str, *arguments: object) -> str:
        said = ending(stage, monkeypatch, "--recipe", "small.yaml", *arguments)
        assert 20 < len(said) < 1_250
        assert said.isprintable()
        return said

    return run


# --- models ----------------------------------------------------------------------------------


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_config(folder: Path) -> None:
    random_model("llama", hidden=48)[0].config.save_pretrained(folder)


def another_shape(folder: Path) -> None:
    network, _ = random_model("qwen3", hidden=16)
    weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_tokenizer(**changes: object):
    def spoil(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


#: How a model's folder is spoilt, and what the sentence must name.
MODELS = {
    "truncated weights": (lambda f: half(f / "model.safetensors"), "weights"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "other shapes": (another_shape, "config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "another's config": (another_config, "config.json"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("token*")], "tokenizer.json"),
    "truncated tokenizer": (lambda f: half(f / "tokenizer.json"), "tokenizer"),
    "truncated template": (lambda f: half(f / "chat_template.jinja"), "conversation"),
    "a template without the question": (
        lambda f: (f / "chat_template.jinja").write_text("{{ '<|user|>' }}"), "user",
    ),
    "a length in words": (set_tokenizer(model_max_length="long"), "tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_broken_base_model_is_one_sentence_where_training_starts_from_it(here, says, case):
    spoil, named = MODELS[case]
    spoil(here / "model")
    said = says("pipeline.sft", "--force", "--model", "model")
    assert named in said
    assert "model" in said
    # Nothing that was there is lost to a training that cannot begin.
    assert (here / "runs/small/sft" / MANIFEST).is_file()


@pytest.mark.parametrize("stage", [("pipeline.grpo",), ("eval.sample", "--arm", "sft")])
@pytest.mark.parametrize("case", ["truncated weights", "no config", "other shapes"])
def test_a_broken_trained_model_is_one_sentence_with_the_way_to_train_it_again(
    here, says, stage, case
):
    spoil, named = MODELS[case]
    spoil(here / "runs/small/sft/model")
    write_recipe(here, Path("model"), reward={"unsound": True})  # with GRPO
    said = says(*stage)
    for part in (named, "runs/small/sft/model", "`make sft RECIPE="):
        assert part in said


def test_a_config_that_asks_for_more_layers_than_there_are_is_refused_before_they_are_made(
    tmp_path,
):
    folder = save_model(tmp_path / "m", "qwen3")
    config = json.loads((folder / "config.json").read_text())
    layers = {"num_hidden_layers": 5000, "layer_types": ["full_attention"] * 5000}
    (folder / "config.json").write_text(json.dumps({**config, **layers}))
    with pytest.raises(UserError, match=r"it asks for 5,000 layers, and there"):
        load_model(str(folder), "float32")


def test_an_id_beyond_the_embeddings_is_found_though_there_are_few_tokens():
    words = Tokenizer(WordLevel({"<|unknown|>": 0, "a": 1, "b": 5000}, unk_token="<|unknown|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b", unk_token="a")
    tokenizer.chat_template = CHAT_TEMPLATE
    network, _ = random_model("qwen3")
    with pytest.raises(UserError, match=r"of x has 5001 tokens, its model only \d+: they do not"):
        check_tokenizer(network, tokenizer, "x")


# --- data ------------------------------------------------------------------------------------


def row_with(**changes: object):
    return lambda line: json.dumps({**json.loads(line), **changes})


def problem_with(**changes: object):
    def spoil(line: str) -> str:
        row = json.loads(line)
        return json.dumps({**row, "problem": {**row["problem"], **changes}})

    return spoil


#: How a line of the problems is spoilt, and the key that the sentence must name, if any.
LINES = {
    "half a line": (lambda line: line[:40], ""),
    "no gold": (
        lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != "gold"}),
        "'gold'",
    ),
    "a prompt that is a list": (row_with(prompt=["a"]), "'prompt'"),
    "no number for a number": (problem_with(optimum=math.nan), '"optimum"'),
    "a number of too many digits": (lambda line: '{"id": ' + "9" * 5000 + "}", ""),
    "another optimum": (problem_with(optimum=5), '"optimum" is 5'),
    "half a character": (row_with(gold="\ud83d"), "'gold'"),
    "nesting": (lambda line: "[" * 100_000, ""),
    "bytes of no text": (lambda line: "\udcff", ""),
}


@pytest.mark.parametrize("case", LINES)
def test_an_edited_line_of_the_training_data_is_named_before_anything_is_trained(here, says, case):
    spoil, key = LINES[case]
    path = here / "runs/small/data/train.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = spoil(lines[1])
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    said = says("pipeline.sft")
    assert said.startswith("runs/small/data/train.jsonl:2")
    assert key in said
    assert (here / "runs/small/sft/model/model.safetensors").is_file()


# --- answers and verdicts --------------------------------------------------------------------

#: How a row of answers or verdicts is spoilt, and the key that the sentence must name, if any.
ROWS = {
    "half a line": (lambda line: line[:20], ""),
    "no object": (lambda line: "7", ""),
    "another's problem": (row_with(id="test-dense-99999"), '"id"'),
    "no text for an id": (row_with(id=["a"]), '"id"'),
    "another sample": (row_with(sample=3), '"sample" is 3'),
    "a reason that is no text": (row_with(finish_reason=["x"]), '"finish_reason"'),
}
SAMPLES = ROWS | {
    "no completion": (row_with(completion=None), '"completion"'),
    "a number for a completion": (row_with(completion=3), '"completion"'),
    "no reason": (row_with(finish_reason=None), '"finish_reason"'),
    "no number of tokens": (row_with(tokens=math.nan), '"tokens"'),
}
VERDICTS = ROWS | {
    "no status": (row_with(status="splendid"), '"status"'),
    "one violation": (row_with(violations="overlap"), '"violations"'),
    "no number for a ratio": (row_with(ratio=math.nan), '"ratio"'),
    "a ratio in words": (row_with(ratio="1"), '"ratio"'),
}


def spoil_row(path: Path, spoil) -> None:
    lines = path.read_text().splitlines()
    lines[1] = spoil(lines[1])
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("case", SAMPLES)
def test_a_broken_answer_is_named_with_the_way_to_have_it_drawn_again(here, says, case):
    spoil, key = SAMPLES[case]
    spoil_row(here / "runs/small/eval/base/samples.jsonl", spoil)
    said = says("eval.judge")
    assert said.startswith("runs/small/eval/base/samples.jsonl:2")
    assert key in said
    assert "delete samples.jsonl" in said


@pytest.mark.parametrize("stage", ["eval.elicitation", "eval.report"])
@pytest.mark.parametrize("case", VERDICTS)
def test_a_broken_verdict_is_named_with_the_way_to_have_it_judged_again(here, says, stage, case):
    spoil, key = VERDICTS[case]
    spoil_row(here / "runs/small/eval/base/verdicts.jsonl", spoil)
    said = says(stage)
    assert said.startswith("runs/small/eval/base/verdicts.jsonl:2")
    assert key in said
    assert "delete verdicts.jsonl" in said


def test_verdicts_that_end_early_are_not_counted(here, says):
    path = here / "runs/small/eval/base/verdicts.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    said = says("eval.elicitation")
    assert "verdicts.jsonl" in said
    assert "`make eval RECIPE=" in said


@pytest.mark.parametrize("line", ["{", "7", "[" * 9999, '{"loss": 1}', '{"step": "2"}', "\udcff"])
def test_a_training_goes_on_with_the_rows_of_its_log_before_a_spoilt_one(tmp_path, line):
    rows = [b'{"step": 1, "loss": 3.0}', line.encode(errors="surrogateescape"), b'{"step": 2}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    log = Log(tmp_path, "sft")
    state = SimpleNamespace(global_step=4, max_steps=9, is_world_process_zero=True)
    log.on_train_begin(None, state, None)
    assert list(read_jsonl(log.path)) == [(1, {"step": 1, "loss": 3.0})]


# --- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "../x"}, "name"),
        ({"model": "a\0b"}, "model"),
        ({"model": "x" * 5000}, "model"),
        ({"dtype": "float8"}, "dtype"),
        ({"extends": "a\0b"}, "extends"),
        ({"eval": {"temperature": 10**400}}, "eval.temperature"),
        ({"seed": [[[[[[[[["deep"]]]]]]]]]}, "seed"),
    ],
)
def test_a_hostile_value_of_a_recipe_is_named(tmp_path, monkeypatch, says, changes, key):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    assert f"small.yaml: {key} " in says("data.make")


@pytest.mark.parametrize("text", ["seed: " + "9" * 5000, "a: " + "[" * 2000, "a: {b: " * 2000])
def test_numbers_and_nesting_beyond_all_measure_are_refused(tmp_path, monkeypatch, says, text):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(text)
    assert "small.yaml" in says("data.make")


def test_a_sentence_is_short_and_printable_whatever_it_quotes():
    said = str(UserError("a\x1b[31m\n\u202e" + "b" * 10_000 + "; the way out"))
    assert said.startswith("a\\x1b[31m\\n\\u202ebbb")
    assert said.endswith("bbb; the way out")
    assert said.isprintable()
    assert len(said) < 1_250


# --- the hub ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "changes", "named"),
    [
        ("data.make", {"source": "nobody/events:{split}"}, "nobody/events"),
        ("pipeline.check --lengths", {}, "'nobody/none'"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_one_sentence(world, tmp_path, stage, changes, named):
    """Behind a proxy that refuses, in a process of its own: the libraries look when imported."""
    shutil.copytree(world / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "small" / OWNER).unlink()  # else its run is another model's
    data = {"main": "dense", "tiers": {"dense": {"train": 8, "val": 1, "test": 3, **changes}}}
    write_recipe(tmp_path, "nobody/none", data=data if changes else RECIPE["data"])
    # The libraries try again, and wait longer each time.
    code = "import runpy, sys, time; time.sleep = lambda _: None; module = sys.argv.pop(1)\n"
    code += "runpy.run_module(module, run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *stage.split(), "--recipe", "small.yaml"]
    proxy = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy"), "http://127.0.0.1:9")
    hub = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | proxy | hub
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: ")
    assert named in done.stderr


# --- completions -----------------------------------------------------------------------------

_EVENT = "<event>\n<name>Art</name>\n<start>09:00</start>\n<end>10:00</end>\n</event>\n"
COMPLETIONS = {
    "nul bytes": "<schedule>" + "\0" * MEGABYTE + "</schedule>",
    "lone surrogates": f"<schedule>{_EVENT.replace('Art', chr(0xD800) * MEGABYTE)}</schedule>",
    "right to left": "\u202e" * MEGABYTE + f"<schedule>{_EVENT}</schedule>",
    "combining characters": f"<schedule>{_EVENT.replace('Art', 'a' + chr(0x301) * MEGABYTE)}",
    "digits": f"<schedule>{_EVENT.replace('09:00', '9' * MEGABYTE)}</schedule>",
    "nested events": "<schedule>" + "<event>" * (MEGABYTE // 7) + "</schedule>",
    "one event again and again": f"<schedule>{_EVENT * (MEGABYTE // len(_EVENT))}</schedule>",
    "open tags of all kinds": "<schedule><event><name><start><end>" * (MEGABYTE // 35),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", COMPLETIONS)
def test_a_million_hostile_characters_are_paid_within_a_second(case, shape):
    text = COMPLETIONS[case]
    column = json.dumps(day().to_json())
    # With a mark, or the second time would be that of a cache.
    marks = iter(range(10))
    assert within(1, lambda: totals(RewardSection(shape), [column], [f"{next(marks)}{text}"]))
    (paid,) = totals(RewardSection(shape), [column], [text])
    assert 0 <= paid <= sum(SHAPES[shape].weights.values()) * (100 if shape == "blog" else 1)


# --- spoilt at random ------------------------------------------------------------------------

EXAMPLES = {name: 25 if name.startswith("model") else 80 for name in TARGETS}
EXAMPLES["model: weights"] = 100  # of which few are still whole


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzzing")


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_input_is_taken_or_refused_in_a_sentence(name, place):
    accept_sound(name, place)
    met = set()

    @settings(max_examples=EXAMPLES[name] * int(os.environ.get("FUZZ", "1")))
    @given(st.integers(0, 2**32 - 1))
    def feed(seed: int) -> None:
        outcome = try_one(name, seed, place)
        assert not outcome.wrong, outcome.wrong
        met.add(outcome.accepted)

    feed()
    assert met == ({True} if name == "completion" else {True, False})
