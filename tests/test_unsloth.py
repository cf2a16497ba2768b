"""The Unsloth backend, for real. It patches its process, so it is never imported by a test itself:
every one looks at what other processes left."""

from __future__ import annotations

import json
import math
from contextlib import chdir
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from running import EMBEDDED, python, rows_in
from tiny import LORA, RECIPE, save_model, weights_of, write_recipe
from transformers import AutoTokenizer

from data import make
from data.common.files import stage_facts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed"),
]
STEPS = {
    "sft": {**RECIPE["sft"], "learning_rate": 1e-3, "warmup_steps": 0, "logging_steps": 1},
    "grpo": {
        "max_steps": 2, "per_device_train_batch_size": 32, "num_generations": 8,
        "learning_rate": 1e-3, "warmup_steps": 0, "logging_steps": 1, "beta": 0.05,
    },
}  # fmt: skip

#: Enough threads for a small model.
ONE = {"OMP_NUM_THREADS": "1"}
RUNS = (("full", None, "unsloth"), ("lora", LORA, "unsloth"), ("trl", None, "trl"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The runs in which SFT and GRPO were trained: LoRA by a stage at a time, full fine-tuning by
    both in one process, and SFT by TRL."""
    place = tmp_path_factory.mktemp("unsloth")
    with chdir(place):
        for kind, lora, by in RUNS:
            recipe = write_recipe(place, EMBEDDED, name=kind, lora=lora, backend=by, **STEPS)
            recipe.path.rename(place / f"{kind}.yaml")
            make.run(replace(recipe, path=place / f"{kind}.yaml"), force=False)
    for stage, kind in (("sft", "lora"), ("grpo", "lora"), ("arms", "full"), ("sft", "trl")):
        done = python("-m", f"pipeline.{stage}", "--recipe", f"{kind}.yaml", cwd=place, **ONE)
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"trained by {'trl' if kind == 'trl' else 'unsloth'} (as asked for)" in done.stdout
    return {kind: place / "runs" / kind for kind, *_ in RUNS}


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_unsloth_trains_a_model_that_any_tool_loads(trained, kind, stage):
    run = trained[kind]
    manifest = stage_facts(run / stage)
    assert manifest["backend"] == {"name": "unsloth", "why": "as asked for"}
    assert manifest["versions"]["unsloth"] == version("unsloth")
    before = weights_of(EMBEDDED if stage == "sft" else run / "sft" / "model")
    after = weights_of(run / stage / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if kind == "lora":
        assert {name.split(".")[-2] for name in changed} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        assert manifest["merge"]["modules"] == len(changed) == 7 * 6
        assert manifest["merge"]["change"] > 1e-4
        assert (run / stage / "adapter" / "adapter_model.safetensors").is_file()
    else:
        assert len(changed) > 0.9 * len(before)
    assert all(bool(weight.isfinite().all()) for weight in after.values())
    ours, theirs = (
        AutoTokenizer.from_pretrained(each) for each in (EMBEDDED, run / stage / "model")
    )
    for kept in ("padding_side", "model_max_length", "chat_template"):
        assert getattr(ours, kept) == getattr(theirs, kept)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_unsloth_trains_with_the_recipes_settings_and_not_its_own(trained, kind, stage):
    manifest = stage_facts(trained[kind] / stage)
    used = manifest["trained_with"]
    assert {key: used[key] for key in STEPS[stage]} == STEPS[stage]
    # Its own defaults would be adamw_8bit, 0.001, 3407 and others.
    assert (used["optim"], used["weight_decay"], used["seed"]) == ("adamw_torch_fused", 0.0, 3)
    assert (used["bf16"], used["fp16"], used["gradient_checkpointing"]) == (False, False, False)
    assert manifest["held"]["trainable_dtype"] == ["float32"]
    rows = [row for row in rows_in(trained[kind] / stage / "log.jsonl") if "loss" in row]
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="its kernels round in another way")
def test_sft_by_either_backend_ends_with_the_same_weights_bit_by_bit(trained):
    ours, theirs = (weights_of(trained[kind] / "sft" / "model") for kind in ("trl", "full"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_unsloths_kl_is_to_the_sft_model(trained, kind):
    rows = [row for row in rows_in(trained[kind] / "grpo" / "log.jsonl") if "kl" in row]
    assert abs(rows[0]["kl"]) < 1e-6 < rows[1]["kl"]


# --- what its loader does ----------------------------------------------------------------------

#: Run by another process: a model is loaded in several ways, and what came of each is written.
CHILD = """
import json
from dataclasses import replace
from pathlib import Path

from data.recipe import load_recipe
from pipeline.model.load import quiet
from pipeline.train.training import Training

recipe = load_recipe(Path("small.yaml"))
Training(recipe, "sft", "sft", recipe.model).start_backend()
quiet()

from peft.tuners.lora import LoraLayer

from pipeline import sft
from pipeline.train.loading import load_for_training


def load(**changes):
    return load_for_training(Training(replace(recipe, **changes), "sft", "sft", recipe.model), 2048)


found = {}
network, _ = load(lora={**recipe.lora, "target_modules": "mlp"})
layers = [n.split(".")[-1] for n, m in network.named_modules() if isinstance(m, LoraLayer)]
found["mlp"] = sorted(set(layers))
found["trained"] = [n for n, w in network.named_parameters() if w.requires_grad]
network, tokenizer = load(bits=4)
found["4 bits"] = sorted({str(w.dtype) for n, w in network.named_parameters() if "base_layer" in n})
training = Training(recipe, "sft", "sft", recipe.model)
rows = [{**row, "gold": row["gold"] + " x" * 1500} for row in training.rows()[:2]]
trainer = sft.trainer_for(training, rows, network, tokenizer, Path("unused"))
batch = next(iter(trainer.get_train_dataloader()))
labels = [[token for token in row if token != -100] for row in batch["labels"].tolist()]
found["learnt"] = sorted(map(tokenizer.decode, labels))
found["wanted"] = sorted(row["gold"] + tokenizer.eos_token for row in rows)
before = {n: w.detach().clone() for n, w in network.named_parameters()}
trainer.train()
changed = [n for n, w in network.named_parameters() if not w.detach().equal(before[n])]
found["changed"] = [len(changed), all("lora_" in name for name in changed)]
found["losses"] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("loader")
    with chdir(place):
        model = save_model(place / "model", "qwen3", hidden=64)
        recipe = write_recipe(place, model, lora=LORA, backend="unsloth", sft=STEPS["sft"])
        make.run(recipe, force=False)
    done = python("-c", CHILD, cwd=place, **ONE)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((place / "found.json").read_text())


def test_unsloth_attaches_exactly_the_layers_of_a_name(found):
    assert found["mlp"] == ["down_proj", "gate_proj", "up_proj"]
    assert len(found["trained"]) == 3 * 2 * 2
    assert all("lora_" in name for name in found["trained"])


def test_unsloth_trains_adapters_above_4_bits(found):
    assert found["4 bits"] == ["torch.uint8"]
    assert found["changed"] == [7 * 2 * 2, True]
    assert len(found["losses"]) == 2
    assert all(map(math.isfinite, found["losses"]))


def test_unsloth_cuts_no_answer_and_learns_its_end(found):
    assert found["learnt"] == found["wanted"]
