"""The hostile world: whatever file is broken, the command line answers in one sentence.

What stands elsewhere stays there: recipes in ``test_recipe``, the flags of every stage in
``test_command_line``, models in ``test_models``, contexts in ``test_lengths`` and ``test_try``,
kills and full disks in ``test_resume``, every way to spoil a line of problems in ``test_make`` and
of answers and verdicts in ``test_score``. Here broken files meet the stages that read them, and
copies that were spoilt at random whatever reads them (``fuzzing``).
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import TARGETS, accept_sound, try_one
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import day
from running import ROOT, change_json, refusal_of, within
from test_parse import HOSTILE
from tiny import RECIPE, random_model, save_model, write_recipe
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from data import make
from data.common.files import MANIFEST
from data.run import OWNER
from data.sections import RewardSection
from eval import judge as report
from eval.answers.sampling import sample_arm
from pipeline import sft
from pipeline.corpus.tokens import CHAT_TEMPLATE
from pipeline.model.load import check_tokenizer
from rewards.reward import SHAPES, totals

pytestmark = pytest.mark.slow  # nearly all meet a world with a trained model


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model, its recipe, data, an SFT arm, the base's answers and their report."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        model = save_model(Path("model"), "qwen3")
        recipe = write_recipe(Path(), model, conclusion={**RECIPE["conclusion"], "arms": ["sft"]})
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
def says(mistake_of):
    """A function that runs a stage on the recipe of the working folder and returns its sentence."""

    def run(stage: str, *arguments: object) -> str:
        said = mistake_of(stage, "--recipe", "small.yaml", *arguments)
        assert 20 < len(said) < 1_250
        assert said.isprintable()
        return said

    return run


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


#: How a model's folder is spoilt, and what the sentence must name.
MODELS = {
    "truncated weights": (lambda f: half(f / "model.safetensors"), "weights"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "other shapes": (
        lambda f: shutil.copy(save_model(f / "x", "qwen3", hidden=16) / "model.safetensors", f),
        "config.json",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "another's config": (
        lambda f: random_model("llama", hidden=48)[0].config.save_pretrained(f), "config.json",
    ),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("token*")], "tokenizer.json"),
    "truncated tokenizer": (lambda f: half(f / "tokenizer.json"), "tokenizer"),
    "truncated template": (lambda f: half(f / "chat_template.jinja"), "conversation"),
    "a template without the question": (
        lambda f: (f / "chat_template.jinja").write_text("{{ '<|user|>' }}"), "user",
    ),
    "a length in words": (
        lambda f: change_json(f / "tokenizer_config.json", model_max_length="long"), "tokenizer",
    ),
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
def test_a_broken_trained_model_is_one_sentence_with_the_way_to_a_new_one(here, says, stage, case):
    spoil, named = MODELS[case]
    spoil(here / "runs/small/sft/model")
    write_recipe(here, Path("model"), reward={"unsound": True})  # with GRPO
    said = says(*stage)
    for part in (named, "runs/small/sft/model", "`make sft RECIPE="):
        assert part in said


def test_an_id_beyond_the_embeddings_is_found_though_there_are_few_tokens():
    words = Tokenizer(WordLevel({"<|unknown|>": 0, "a": 1, "b": 5000}, unk_token="<|unknown|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b", unk_token="a")
    tokenizer.chat_template = CHAT_TEMPLATE
    network, _ = random_model("qwen3")
    few = f"of x has 5001 tokens, its model only {network.config.vocab_size}: "
    refusal_of(lambda: check_tokenizer(network, tokenizer, "x"), few)


def test_an_edited_line_of_the_training_data_is_named_before_anything_is_trained(here, says):
    path = here / "runs/small/data/train.jsonl"
    path.write_text(path.read_text().replace("\n", "\nx", 1))
    assert says("pipeline.sft").startswith("runs/small/data/train.jsonl:2")
    assert (here / "runs/small/sft/model/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("eval.judge", "samples.jsonl"),
        ("eval.elicitation", "verdicts.jsonl"),
        ("eval.report", "verdicts.jsonl"),
    ],
)
def test_a_broken_answer_or_verdict_is_named_with_the_way_to_have_it_again(here, says, stage, name):
    path = Path("runs/small/eval/base") / name
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "finish_reason": ["x"]})
    path.write_text("\n".join(lines) + "\n")
    said = says(stage)
    assert said.startswith(f'{path}:2: "finish_reason"')
    assert f"delete {name}" in said


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


COMPLETIONS = (
    "zeros", "lone surrogates", "right to left", "combining characters", "digits",
    "events without end", "valid events", "names without end",
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", COMPLETIONS)
def test_a_million_hostile_characters_are_paid_within_a_second(case, shape):
    text = HOSTILE[case]
    column = json.dumps(day().to_json())
    # With a mark, or the second time would be that of a cache.
    marks = iter(range(10))
    assert within(1, lambda: totals(RewardSection(shape), [column], [f"{next(marks)}{text}"]))
    (paid,) = totals(RewardSection(shape), [column], [text])
    assert 0 <= paid <= sum(SHAPES[shape].weights.values()) * (100 if shape == "blog" else 1)


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
