"""Comparing the backends: what differs is found, explained or refused, and no update proves
nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import LORA, RECIPE, write_recipe

from data import make
from data.common.errors import UserError
from pipeline import backends
from pipeline.backends import BOTH, EXPLAINED, STAGES, numbers_apart, settings_apart
from pipeline.model import processes

ROOT = Path(__file__).parents[1]
HELD = {
    "model": "Qwen3ForCausalLM",
    "dtype": ["float32"],
    "lora.default": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
    "optimizer": "AdamW",
    "args": {"learning_rate": 1e-3, "output_dir": "a", "unsloth_only": 1},
}


def held(**changes):
    args = {key.removeprefix("args."): v for key, v in changes.items() if key.startswith("args.")}
    others = {key: value for key, value in changes.items() if not key.startswith("args.")}
    return {**HELD, **others, "args": {**HELD["args"], **args}}


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("args.learning_rate", 5e-5),
        ("optimizer", "AdamW8bit"),
        ("lora.default", {"r": 16, "lora_alpha": 8, "target_modules": ["q_proj"]}),
        ("attention_dropout", 0.1),
    ],
)
def test_a_setting_that_differs_is_found_and_nothing_explains_it(key, value):
    (found,) = settings_apart("grpo", held(), held(**{key: value}))
    assert (found.stage, found.what, found.why) == ("grpo", key, "")
    assert str(value)[:20] in found.unsloth


def test_a_difference_that_changes_no_training_is_explained():
    (found,) = settings_apart("sft", held(**{"args.output_dir": 1}), held(**{"args.output_dir": 2}))
    assert found.why == EXPLAINED["output_dir"]


def test_arguments_that_one_of_the_classes_lacks_are_not_compared():
    theirs = held(**{"args.vllm_sampling_params": None})
    assert list(settings_apart("grpo", held(), theirs)) == []


# --- numbers ---------------------------------------------------------------------------------


def measured(
    folder, stage="sft", logprobs=((-1.0, -2.0), (-0.5,)), update=None, grad_norm=1.0, **changes
):
    """What ``measure_backend`` writes."""
    folder.mkdir(exist_ok=True)
    content = {"held": held(**changes), "logprobs": logprobs, "grad_norm": grad_norm}
    (folder / f"{stage}.json").write_text(json.dumps(content))
    update = update or {"a": [1.0, 2.0], "b": [-1.0]}
    tensors = {name: torch.tensor(values) for name, values in update.items()}
    save_file(tensors, folder / f"{stage}.safetensors")
    return folder


def unexplained(one, other, dtype="float32"):
    """The numbers that are too far apart."""
    return [each.what for each in numbers_apart("sft", dtype, one, other) if not each.why]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"logprobs": ((-1.0, -2.0), (-0.501,))}, "log-probability at step 0"),
        ({"update": {"a": [1.0, 2.2], "b": [-1.0]}}, "first update"),
        ({"grad_norm": 1.1}, "norm of the first gradient"),
        ({"logprobs": ((float("nan"), -2.0), (-0.5,))}, "log-probability at step 0"),
        ({"update": {"a": [float("nan"), 2.0], "b": [-1.0]}}, "first update"),
    ],
)
def test_numbers_that_are_apart_are_too_far_and_no_others(tmp_path, changed, what):
    assert unexplained(measured(tmp_path / "a"), measured(tmp_path / "b", **changed)) == [what]


def test_rounding_is_allowed_for_by_the_dtype(tmp_path):
    near = measured(tmp_path / "b", logprobs=((-1.0, -2.05), (-0.5,)))
    assert unexplained(measured(tmp_path / "a"), near) == ["log-probability at step 0"]
    assert unexplained(tmp_path / "a", near, "bfloat16") == []


@pytest.mark.parametrize(
    ("updates", "says"),
    [
        ([{"a": [1.0, 2.0], "b": [1.0]}, {"a": [1.0, 2.0]}], "train different weights"),
        ([{"a": [0.0, 0.0]}, {"a": [0.0, 0.0]}], "the first step changes nothing"),
    ],
)
def test_other_weights_and_no_update_are_nothing_to_compare(tmp_path, updates, says):
    one, other = (
        measured(tmp_path / name, update=u) for name, u in zip("ab", updates, strict=True)
    )
    with pytest.raises(UserError, match=f"sft: .*{says}"):
        unexplained(one, other)


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """A function that runs the command, where each backend's process writes what is given for it,
    by stage, or fails with an error."""
    recipe = write_recipe(tmp_path, "base", lora=LORA)

    def run(**given):
        def process(command, **_):
            name = command[command.index("--backend") + 1]
            assert command[command.index("--recipe") + 1] == str(recipe.path)
            made = given.get(name, {})
            if isinstance(made, str):
                return SimpleNamespace(returncode=1, stderr=f"a warning\n{made}\n")
            folder = Path(command[command.index("--only") + 1])
            for stage in STAGES:
                measured(folder, stage, **made.get(stage, {}))
            return SimpleNamespace(returncode=0, stdout="", stderr="")

        monkeypatch.setattr(processes, "subprocess", SimpleNamespace(run=process))
        monkeypatch.setattr("sys.argv", ["backends", "--recipe", str(recipe.path)])
        backends.main()

    return run


def test_backends_that_agree_pass(compared, capsys):
    compared()
    said = capsys.readouterr().out
    assert "The backends train the same thing." in said


def test_every_stage_in_which_a_number_or_a_setting_is_apart_is_named(compared, capsys):
    wrong = {"update": {"a": [1.0, 2.2], "b": [-1.0]}}
    with pytest.raises(UserError, match="in sft: optimizer; grpo: first update"):
        compared(unsloth={"sft": {"optimizer": "AdamW8bit"}, "grpo": wrong})
    said = capsys.readouterr().out
    assert "NOTHING" in said
    assert "The backends train the same" not in said


@pytest.mark.parametrize("name", BOTH)
def test_a_backend_that_cannot_train_is_named_with_its_reason(compared, name):
    with pytest.raises(UserError) as refused:
        compared(**{name: "error: no such thing"})
    assert str(refused.value).startswith(f"{name} cannot train ")
    assert str(refused.value).endswith(": no such thing")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
def test_unsloth_and_trl_train_the_same_thing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = {**RECIPE["grpo"], "per_device_train_batch_size": 32, "num_generations": 8}
    steps["max_completion_length"] = 64
    base = ROOT / "pipeline" / "embedded"
    recipe = write_recipe(tmp_path, base, grpo=steps, lora=LORA, bits=4)
    make.run(recipe, force=False)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.backends", "--recipe", str(recipe.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The backends train the same thing." in done.stdout
