"""Which checkpoint a training goes on from: the newest that is all there, and no user's copy."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.train import checkpoints
from pipeline.train.checkpoints import go_on, keep_newest, last_whole, ours, step_of


def checkpoint_in(folder: Path, step: int, ranks=("",), weights=True) -> Path:
    """A checkpoint with all that a training goes on from, as transformers names it."""
    found = folder / f"checkpoint-{step}"
    found.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", *(f"rng_state{rank}.pth" for rank in ranks)):
        torch.save({"a": torch.zeros(9)}, found / name)
    if weights:
        save_file({"a": torch.zeros(9)}, found / "model.safetensors")
    (found / checkpoints.STATE).write_text(json.dumps({"global_step": step}))
    return found


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", checkpoints.STATE)
SPOILS = (
    lambda content: None,  # the file is gone
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: content[:-1],
    lambda content: content[: len(content) // 2] + content[len(content) // 2 + 8 :],
)


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        *product(FILES, SPOILS),
        *((checkpoints.STATE, lambda _, of=of: of) for of in (b"{}", b"[]", b'{"global_step": 2}')),
        # Other bytes, as many.
        ("optimizer.pt", lambda content: content.replace(bytes(36), b"\x01" * 36, 1)),
    ],
)
def test_a_checkpoint_with_a_file_that_is_torn_gone_or_anothers_is_no_checkpoint(
    tmp_path, file, spoil
):
    whole, spoilt = checkpoint_in(tmp_path, 2), checkpoint_in(tmp_path, 4)
    assert last_whole(tmp_path) == spoilt
    before = (spoilt / file).read_bytes()
    (spoilt / file).unlink()
    if (content := spoil(before)) is not None:
        assert content != before
        (spoilt / file).write_bytes(content)
    assert last_whole(tmp_path) == whole


def test_a_checkpoint_of_several_processes_has_the_random_state_of_each(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole = checkpoint_in(tmp_path, 2, ("_0", "_1"), weights=False)  # they may lie in parts
    checkpoint_in(tmp_path, 4, ("_0",))
    assert last_whole(tmp_path) == whole


@pytest.mark.parametrize("strategy", ["DEEPSPEED", "FSDP"])
def test_one_process_may_keep_weights_and_optimizer_by_other_names(tmp_path, monkeypatch, strategy):
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    found = checkpoint_in(tmp_path, 4, weights=False)
    for name in ("optimizer.pt", "scheduler.pt"):
        (found / name).unlink()
    assert go_on(tmp_path, "sft") == last_whole(tmp_path) == found
    (found / "rng_state.pth").unlink()
    assert last_whole(tmp_path) is None


NOT_OURS = ("checkpoint-4-kept", "checkpoint-old-8", "checkpoint-", "checkpoint-99-kept", "kept")


def test_what_a_user_put_beside_the_checkpoints_is_neither_taken_for_one_nor_removed(tmp_path):
    older, newest = checkpoint_in(tmp_path, 2), checkpoint_in(tmp_path, 10)
    for name in NOT_OURS:
        shutil.copytree(newest, tmp_path / name)
        assert step_of(tmp_path / name / checkpoints.STATE) == -1
    assert step_of(newest / checkpoints.STATE) == 10
    assert ours(tmp_path) == [older, newest]
    keep_newest(tmp_path, 1)
    assert ours(tmp_path) == [newest]
    (newest / "optimizer.pt").unlink()
    assert go_on(tmp_path, "sft") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NOT_OURS)
