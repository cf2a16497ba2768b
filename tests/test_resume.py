"""A stage that was killed, interrupted or left without room goes on with the same command, and ends
as if nothing had happened: weights bit by bit, logs, samples and verdicts.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from killing import (
    Blow,
    cases,
    differences,
    ends_with,
    killed_at_random,
    left_in,
    live,
    preload,
    trial_of,
)  # fmt: skip

from data.recipe import load_recipe
from data.rows import read_split
from eval.answers.asker import Asker

#: How often each case is killed at random, where that is asked for.
KILLS = int(os.environ.get("KILLS", "1"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean():
    """Calls a function in a process in which only one thread ever computed, as forking asks for."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=preload) as pool:
        yield lambda work, *arguments: pool.submit(work, *arguments).result(300 * KILLS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


def at(*words: str, kind: signal.Signals | None = signal.SIGKILL) -> Blow:
    return Blow(words=words, kind=kind)


def began_at(lives) -> list[str | None]:
    return [life.began_at for life in lives]


def test_training_ends_with_the_same_weights_wherever_it_was_killed(clean, place):
    blows = [
        at("open", "checkpoint-4/trainer_state.json"),
        at("rmdir", "checkpoint-2"),  # half of it is left, and 4 is whole
        at("mkdir", "checkpoint-7"),
        at("rename", ".model.tmp to model"),
        at("rename", ".manifest.json.tmp"),
        at("rmdir", "sft/checkpoints\n"),  # finished
    ]
    lives, differ = clean(ends_with, place, "sft", blows)
    assert [life.killed for life in lives] == [True] * 6 + [False]
    assert [one and int(one[11:]) for one in began_at(lives)] == [None, 2, 4, 6, 7, 7, None]
    assert "up to date" in lives[-1].said
    assert differ == []


@pytest.mark.parametrize(
    ("name", "blows", "checkpoints"),
    [
        ("sft, saved after each epoch", ["mkdir checkpoint-6", "mkdir checkpoint-7"], [3, 6]),
        # In the second epoch of three, and in the third.
        ("sft, grouped by length", ["mkdir checkpoint-6", "mkdir checkpoint-7"], [4, 6]),
        ("sft, LoRA", ["mkdir checkpoint-4", "rename .adapter.tmp", "mkdir .model.tmp"], [2, 7, 7]),
    ],
)
def test_each_kind_of_training_goes_on_as_if_not_stopped(clean, place, name, blows, checkpoints):
    lives, differ = clean(ends_with, place, name, [at(*blow.split()) for blow in blows])
    assert began_at(lives) == [None, *(f"checkpoint-{step}" for step in checkpoints)]
    assert differ == []


def test_grpo_goes_on_in_a_second_epoch_with_answers_that_are_used_again(clean, place):
    # To be saved every three steps, but a generation of four steps, here an epoch, is not cut.
    name = "grpo, LoRA, answers used again"
    lives, differ = clean(ends_with, place, name, [at("mkdir", "checkpoint-6")])
    assert began_at(lives) == [None, "checkpoint-4"]
    assert differ == []
    steps = clean(logged, place, name)
    assert [row["step"] for row in steps] == [3, 4, 6]
    assert any(row["reward_std"] > 0 and row["grad_norm"] > 0 for row in steps)


def test_grpo_goes_on_with_its_choice_of_problems_and_ends_at_their_answers(clean, place):
    name = "grpo, problems chosen"
    blows = [at("mkdir", "checkpoint-4"), at("mkdir", ".model")]
    lives, differ = clean(ends_with, place, name, blows)
    assert began_at(lives)[:2] == [None, "checkpoint-2"]
    assert differ == []
    last = clean(logged, place, name)[-1]
    assert last["step"] < 10
    assert 72 < last["sampling/drawn"] <= 80
    assert last["sampling/thrown_away"] > 0


def logged(place, name):
    """The rows of steps in the log of the GRPO that was not stopped."""
    rows = trial_of(place, name).left["runs/small/grpo/log.jsonl"]
    return [row for row in rows if "loss" in row]


def test_samples_are_the_same_bytes_however_much_of_them_there_was(clean, place):
    lives, whole, found = clean(_torn_samples, place)
    assert [life.code for life in lives] == [0] * 4
    assert found == [whole] * 4
    drawn = [life.said.partition("sample base: ")[2].split(" ")[0] for life in lives]
    # Of 20 problems, two a batch: a batch that is half there is drawn again.
    assert drawn == ["20", "16", "18", ""]


def _torn_samples(place):
    """What is drawn where nothing, three batches but for some bytes, one and a half, or all is."""
    trial = trial_of(place, "sampling")
    path = Path("runs/small/eval/base/samples.jsonl")
    whole = (trial.whole_folder / path).read_text()
    rows = whole.splitlines(keepends=True)
    folder = trial.fresh()
    begun = live(folder, trial.case.work, at("open", "base/samples.jsonl"))
    assert begun.killed
    lives, found = [], []
    batches = in_batches(trial.whole_folder, rows)
    for kept in (
        "",
        "".join(batches[0] + batches[1] + batches[2])[:-9],
        "".join(batches[3][:4] + batches[1]),
        whole,
    ):
        again = trial.fresh()
        shutil.copytree(folder / "runs", again / "runs", dirs_exist_ok=True)
        (again / path).write_text(kept)
        lives.append(live(again, trial.case.work))
        found.append((again / path).read_text())
    return lives, whole, found


def in_batches(folder, rows):
    """The rows of samples by the batches in which they are drawn: two prompts of like length."""
    with contextlib.chdir(folder):
        recipe = load_recipe(Path("small.yaml"))
        asked = read_split(recipe.run, "test")
        batches = Asker(recipe.run, "base", recipe.dtype, recipe.seed).batches(asked, recipe.eval)
    return [[row for i in batch for row in rows[4 * i : 4 * i + 4]] for batch in batches]


def test_verdicts_and_reports_are_the_same_wherever_they_were_killed(clean, place):
    blows = [
        at("rename", "sft/.manifest.json.tmp"),
        at("open", "sft/.verdicts.jsonl"),
        at("rename", ".report.md.tmp"),
        at("rename", "sft/fresh/.manifest.json.tmp"),
        at("rename", "elicitation/.manifest.json.tmp"),
    ]
    lives, differ = clean(ends_with, place, "sampling, report, verdict", blows)
    assert [life.killed for life in lives] == [True] * 5 + [False]
    assert differ == []


@pytest.mark.skipif(KILLS == 1, reason="KILLS=12 kills each case 12 times")
@pytest.mark.parametrize("name", cases())
def test_work_that_is_killed_at_random_ends_as_if_it_had_not_been(clean, place, name):
    assert clean(killed_at_random, place, name, KILLS) == set()


FULL = "error: the disk is full; make room, then the same command goes on"
TOO_LARGE = (
    "error: a file would be larger than `ulimit -f` or the file system allows; raise the limit, "
    "then the same command goes on"
)


def full(*words: str, most: int = 0) -> Blow:
    """No room from a change on: Python cannot begin a file, or none may have more bytes than
    ``most``."""
    return Blow(words=words, kind=None, most=most)


def test_ctrl_c_is_one_sentence_and_nothing_is_lost(clean, place):
    blows = [at("mkdir", "checkpoint-4", kind=signal.SIGINT)]
    lives, differ = clean(ends_with, place, "sft", blows)
    assert [life.code for life in lives] == [130, 0]
    assert lives[0].said.splitlines()[-1].endswith("the same command goes on")
    assert "Traceback" not in lives[0].said
    assert began_at(lives) == [None, "checkpoint-2"]
    assert differ == []


#: By what is made, where the disk is full, or where a write fails in the middle.
NO_ROOM = {
    "data": [
        (full("open", ".begun.json"), FULL),
        (full("open", ".test.jsonl"), FULL),
        (full("open", "data/.manifest.json"), FULL),
    ],
    # By safetensors at 50,000 bytes, and by torch in the optimizer's state, which gives no reason.
    "sft": [
        (full("mkdir", "checkpoint-2", most=50_000), TOO_LARGE),
        (full("mkdir", "checkpoint-4", most=420_000), FULL),
        (full("open", "checkpoint-6/"), FULL),
        (full("mkdir", ".model.tmp", most=50_000), TOO_LARGE),
        (full("open", "sft/.manifest.json"), FULL),
    ],
    "sampling": [
        (full("open", "base/samples.jsonl", most=5000), TOO_LARGE),
        (full("open", "base/.manifest.json"), FULL),
    ],
    "sampling, report, verdict": [
        (full("open", "eval/.report.md"), FULL),
        (full("open", "sft/fresh/samples.jsonl"), FULL),
        (full("open", "elicitation/.elicitation.md"), FULL),
    ],
}


@pytest.mark.parametrize("name", NO_ROOM)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(clean, place, name):
    blows, says = zip(*NO_ROOM[name], strict=True)
    lives, differ = clean(ends_with, place, name, list(blows))
    assert [life.code for life in lives] == [1] * len(says) + [0]
    assert [life.said.splitlines()[-1] for life in lives[:-1]] == list(says)
    assert not any("Traceback" in life.said for life in lives)
    assert differ == []


def test_a_spoilt_checkpoint_is_spoken_of_and_training_ends_as_if_it_had_not_been(clean, place):
    lives, differ = clean(_spoilt, place)
    assert "sft: runs/small/sft/checkpoints/checkpoint-4 is spoilt, and left out" in lives[1].said
    assert began_at(lives) == [None, None]
    assert lives[1].code == 0
    assert differ == []


def _spoilt(place):
    """SFT killed after its second checkpoint, whose optimizer is then cut off; and again."""
    trial = trial_of(place, "sft")
    folder = trial.fresh()
    first = live(folder, trial.case.work, at("mkdir", "checkpoint-6"))
    path = folder / "runs/small/sft/checkpoints/checkpoint-4/optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    lives = [first, live(folder, trial.case.work)]
    return lives, differences(trial.left, left_in(folder))
