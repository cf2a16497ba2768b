"""``make gpu-check``: all of it on a CPU with a tiny model, and what a GPU would make it say."""

import json
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.common.errors import UserError
from pipeline import gpu_check
from pipeline.gpu_check import (
    Cell,
    Planner,
    Terms,
    Texts,
    TooLongError,
    check_disk,
    line_of,
    machine_of,
    make_model,
    model_folder,
    notes,
    off,
    reason_in,
    run,
    run_cell,
)
from pipeline.memory.arithmetic import GIB
from pipeline.model.lengths import read_tokenizer
from pipeline.model.load import load_model

ROOT = Path(__file__).parents[1]
RECIPE = f"""
extends: {ROOT}/pipeline/recipes/gpu.yaml
name: tiny-gpu
max_seq_length: 1024
data: {{main: dense, tiers: {{dense: {{train: 8, val: 1, test: 1}}}}}}
sft: {{optim: adamw_torch, per_device_train_batch_size: 2, gradient_accumulation_steps: 1}}
grpo:
  optim: adamw_torch
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  num_generations: 4
  max_completion_length: 16
"""
DORA = "lora: {use_dora: true}\n"  # Unsloth refuses it, TRL does not
SFT, GRPO = (Cell("tiny", stage, 16, "trl") for stage in ("sft", "grpo"))
MEASURED = {
    "steps": [1.0, 2.0, 3.0],
    "seconds": 2.0,
    "tokens_a_second": 1234.5,
    "peak": 10 * GIB,
    "reserved": 11 * GIB,
    "planned": 11 * GIB,
    "gpu": "Some GPU",
    "gpu_bytes": 24 * GIB,
    "cuda": "13.0",
    "lengths": {"prompt": 300, "gold": 200, "both": 480, "source": "drawn"},
    "key": {"facts": {"python": "3.11", "torch": "2.13"}},
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to run in, with a recipe for the tiny shape."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-gpu.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def terms(here) -> Terms:
    return Terms(recipe=here / "tiny-gpu.yaml", steps=1, device="cpu")


@pytest.fixture
def check(here, monkeypatch) -> Callable[..., None]:
    """``main`` with these flags; the cells are processes of their own as always."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fixed = ("--shapes", "tiny", "--recipe", "tiny-gpu.yaml", "--steps", "1", "--bits", "16")

    def call(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu_check", *fixed, "--device", "cpu", *flags])
        gpu_check.main()

    return call


# --- all of it -----------------------------------------------------------------------------


@pytest.mark.slow
def test_both_backends_are_measured_and_what_is_measured_is_kept(here, check, capsys):
    check("--stages", "sft", "--merge")
    first = capsys.readouterr().out
    folder = here / "runs" / "gpu-check"
    rows = json.loads((folder / "gpu_check.json").read_text())
    found = {one["cell"]["backend"]: one for one in rows}
    assert found.keys() == {"trl", "unsloth"}
    for name, one in found.items():
        assert one["backend"]["name"] == name
        assert len(one["steps"]) == 1
        assert one["seconds"] > 0
        assert one["tokens_a_step"] > 100
        assert (one["peak"], one["off"]) == (None, None)  # of a GPU, which is not there
        assert one["planned"] > 1e6
        assert one["merge"]["change"] > 0
    # Of the same weights and rows.
    losses = [found[name]["loss"] for name in ("trl", "unsloth")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert "| tiny | SFT | 16 | unsloth |" in (folder / "gpu_check.md").read_text()
    assert not model_folder("tiny").exists()
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    check("--stages", "sft", "--merge")
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == before
    table = first[first.index("model ") :]
    assert capsys.readouterr().out.strip() == table.strip()


@pytest.mark.slow
def test_a_cell_that_fails_is_a_row_with_its_reason_and_stops_no_other(here, check):
    with (here / "tiny-gpu.yaml").open("a") as recipe:
        recipe.write(DORA)
    with pytest.raises(UserError, match=r"^1 of 2 cells failed; ") as told:
        check("--stages", "grpo", "--backends", "unsloth", "trl")
    assert "tiny-grpo-16bit-unsloth.log" in str(told.value)
    folder = here / "runs" / "gpu-check"
    unsloth, trl = json.loads((folder / "gpu_check.json").read_text())
    assert unsloth["failed"].endswith(
        "the Unsloth backend takes no lora.use_dora; backend: trl does"
    )
    assert trl["seconds"] > 0
    # 4 answers of 16 tokens, as long as they may be, and their prompts.
    assert trl["tokens_a_step"] > 4 * (16 + 100)
    assert "takes no lora.use_dora" in (folder / "gpu_check.md").read_text()


def test_without_a_gpu_everything_is_planned_and_one_sentence_says_why_no_more(
    here, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--shapes", "tiny", "--recipe", "tiny-gpu.yaml"])
    with pytest.raises(UserError, match="sees no CUDA GPU here, so nothing was measured") as told:
        gpu_check.main()
    assert "\n" not in str(told.value)
    assert capsys.readouterr().out.count("not yet measured") == 8
    assert not (here / "runs").exists()


# --- what is measured ----------------------------------------------------------------------


def test_what_is_measured_is_the_recipe_that_users_run():
    cell = Cell("qwen2.5-0.5b", "grpo", 4, "unsloth")
    recipe = Terms().recipe_of(cell)
    users = gpu_check.load_recipe(ROOT / "pipeline/recipes/qwen2.5-0.5b.yaml")
    changed = {"max_steps", "logging_steps", "save_strategy"}
    for section in ("sft", "grpo"):
        mine, theirs = getattr(recipe, section), getattr(users, section)
        assert {key for key in mine if mine[key] != theirs.get(key)} <= changed
        assert theirs.keys() <= mine.keys()
    assert (recipe.lora, recipe.dtype) == (users.lora, users.dtype)
    assert (recipe.backend, recipe.bits) == ("unsloth", 4)
    assert recipe.grpo["max_steps"] == gpu_check.WARM["grpo"] + 3
    shorter = Terms(tokens=64).recipe_of(cell)
    assert shorter.grpo["max_completion_length"] == 64


def test_every_cell_has_a_file_of_its_own():
    cells = [
        Cell(shape, stage, bits, name)
        for shape in gpu_check.DEFAULT_SHAPES
        for stage in ("sft", "grpo")
        for bits in (4, 8, 16)
        for name in ("trl", "unsloth")
    ]
    assert len({cell.path for cell in cells}) == len(cells)


def test_the_tokenizer_of_a_model_splits_alike_after_loading(terms):
    texts = Texts(terms.recipe_of(SFT))
    make_model("tiny", texts.tokenizer)
    loaded = read_tokenizer(str(model_folder("tiny")))
    text = texts.rows[0]["prompt"] + texts.rows[0]["gold"]
    ids = loaded(text)["input_ids"]
    assert ids == texts.tokenizer(text)["input_ids"]
    assert loaded.decode(ids) == text
    assert max(ids) < 1500  # a prefix of every vocabulary
    assert len(loaded(" 17:45")["input_ids"]) == 6  # each digit by itself, as Qwen has it
    assert (
        texts.lengths.prompt < texts.lengths.both < texts.lengths.prompt + texts.lengths.gold + 40
    )


def test_a_model_of_random_weights_is_loaded_like_any_other(terms):
    make_model("tiny", Texts(terms.recipe_of(SFT)).tokenizer)
    network, _ = load_model(str(model_folder("tiny")), "bfloat16")
    layer = network.model.layers[0]
    weight = layer.mlp.up_proj.weight.detach().float()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(weight[0], weight[1])
    assert bool((layer.input_layernorm.weight == 1).all())
    assert bool((layer.self_attn.q_proj.bias == 0).all())
    with torch.no_grad():
        assert bool(network(torch.arange(8)[None]).logits.isfinite().all())


def test_a_model_that_is_there_is_not_made_again(terms):
    tokenizer = Texts(terms.recipe_of(SFT)).tokenizer
    make_model("tiny", tokenizer)
    weights = model_folder("tiny") / "model.safetensors"
    before = weights.stat().st_mtime_ns
    make_model("tiny", tokenizer)
    assert weights.stat().st_mtime_ns == before


def test_the_longest_problems_are_trained_on(terms):
    texts = Texts(terms.recipe_of(SFT))
    sizes = [len(row["prompt"]) + len(row["gold"]) for row in texts.drawn]
    assert sizes == sorted(sizes, reverse=True)
    assert len(texts.rows) == 16 < len(texts.drawn)


@pytest.mark.parametrize(
    ("stage", "loss", "norm"),
    [
        ("sft", float("nan"), 1.0),
        ("sft", 0.0, 1.0),  # how the trainer logs a loss that is no number
        ("sft", 2.0, float("nan")),
        ("grpo", 0.0, float("inf")),
    ],
)
def test_a_loss_that_is_no_number_is_a_failure_and_no_result(stage, loss, norm):
    log = [{"loss": loss, "grad_norm": norm, "num_tokens": 10.0, "step": 1}]
    with pytest.raises(UserError, match="the training is broken: step 1"):
        gpu_check._signals(log, stage)


def test_tokens_are_those_of_the_steps_after_the_warm_up():
    seen = [1000.0, 1010.0, 1110.0, 1230.0]
    log = [
        {"loss": 9.0 - i, "grad_norm": 1.0, "num_tokens": count, "step": i}
        for i, count in enumerate(seen)
    ]
    log.append({"train_runtime": 1.0})
    assert gpu_check._signals(log, "sft") == {"loss": 9.0, "tokens_a_step": 110.0}


# --- a process that fails ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("a\nerror: the recipe is wrong\n", 1, "the recipe is wrong"),
        (
            "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried "
            "to allocate 2.00 GiB. GPU 0 has a total capacity of 23.00 GiB",
            1,
            "out of memory",
        ),
        (
            "Traceback:\nRuntimeError: device-side assert\nCUDA_LAUNCH_BLOCKING=1 might help.\n",
            1,
            "RuntimeError: device-side assert",
        ),
        ("some words\n", 3, "some words"),
        ("", 3, "exit code 3"),
        ("loading\n", -9, "killed by SIGKILL; too little memory of the host, perhaps"),
    ],
)
def test_the_reason_of_a_failure_is_its_last_error_in_a_line(log, code, reason):
    assert reason_in(log, code) == reason


def test_a_long_reason_is_cut():
    assert len(reason_in("ValueError: " + "very " * 200, 1)) <= 200


def program(here: Path, monkeypatch, text: str) -> None:
    """Have cells run a shell script in place of Python."""
    path = here / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_cell_that_takes_too_long_is_ended_with_its_children(here, terms, monkeypatch):
    program(here, monkeypatch, "sleep 60 & echo $! > child; wait")
    with pytest.raises(TooLongError):
        run_cell(SFT, terms, 1.0)
    child = Path(f"/proc/{(here / 'child').read_text().strip()}/stat")

    def gone() -> bool:
        return not child.exists() or child.read_text().split()[2] == "Z"

    until = time.monotonic() + 30  # a killed process may wait for its turn to die
    while not gone() and time.monotonic() < until:
        time.sleep(0.05)
    assert gone()


def test_what_a_failing_cell_says_goes_to_its_log(here, terms, monkeypatch):
    program(here, monkeypatch, "echo 'x.OutOfMemoryError: CUDA out of memory.' >&2; exit 1")
    assert run_cell(SFT, terms, 30.0) == {"failed": "out of memory"}
    assert "CUDA out of memory" in SFT.path.with_suffix(".log").read_text()


# --- which cells are run -------------------------------------------------------------------


class Bench:
    """Runs of ``run`` in which nothing is trained: ``outcome`` says what each cell comes to."""

    def __init__(self, terms: Terms, monkeypatch) -> None:
        self.terms, self.ran, self.made = terms, [], []
        self.outcome = {}
        self.clock = 0.0
        self.facts = {"torch": "1"}
        self.planner = Planner(terms)
        for cell in (SFT, GRPO):
            self.planner.estimate(cell)
        monkeypatch.setattr(gpu_check, "run_cell", self._run_cell)
        monkeypatch.setattr(gpu_check, "make_model", self._make)
        monkeypatch.setattr(gpu_check, "facts_here", lambda: self.facts)
        monkeypatch.setattr(gpu_check.time, "monotonic", lambda: self.clock)

    def _make(self, shape, tokenizer):
        self.made.append(shape)
        model_folder(shape).mkdir(parents=True, exist_ok=True)

    def _run_cell(self, cell, terms, seconds):
        self.ran.append(cell)
        found = self.outcome.get(cell, 10.0)
        if isinstance(found, float):
            if found > seconds:
                self.clock += seconds
                raise TooLongError
            self.clock += found
            return {"seconds": found, "tokens_a_second": 5.0, "peak": None}
        return found

    def __call__(self, limit=100.0, **options):
        self.ran = []
        return run([SFT, GRPO], self.terms, self.planner, limit, **options)


@pytest.fixture
def bench(terms, monkeypatch) -> Bench:
    return Bench(terms, monkeypatch)


def test_finished_cells_are_not_redone_unless_something_changed(bench):
    results, left = bench()
    assert (bench.ran, left) == ([SFT, GRPO], [])
    assert results[SFT]["planned"] > 0
    assert bench()[0] == results
    assert bench.ran == []
    bench(redo=("measured", "failed"))
    assert bench.ran == [SFT, GRPO]
    bench.facts = {"torch": "2"}
    bench()
    assert bench.ran == [SFT, GRPO]


def test_failures_are_kept_and_redone_when_asked(bench):
    bench.outcome[SFT] = {"failed": "out of memory"}
    results, left = bench()
    assert results[SFT]["failed"] == "out of memory"
    assert (results[GRPO]["seconds"], left) == (10.0, [])
    bench()
    assert bench.ran == []
    bench.outcome.clear()
    assert bench(redo=("failed",))[0][SFT]["seconds"] == 10.0
    assert bench.ran == [SFT]


def test_a_cell_over_its_limit_is_a_row_too(bench):
    bench.outcome[SFT] = 1000.0
    results, left = bench(limit=90.0)
    assert results[SFT]["failed"] == "no result within 1.5 minutes"
    assert (bench.ran, left) == ([SFT, GRPO], [])


def test_what_the_budget_cuts_off_is_left_for_the_next_call(bench, capsys):
    results, left = bench(budget=15.0)
    assert (list(results), left) == ([SFT], [GRPO])
    assert bench.ran == [SFT, GRPO]
    assert model_folder("tiny").exists()
    results, left = bench(budget=15.0)
    assert (bench.ran, left) == ([GRPO], [])
    assert not model_folder("tiny").exists()
    assert "no time left" in capsys.readouterr().out


def test_a_cell_longer_than_the_whole_budget_does_not_come_back_for_ever(bench):
    bench.outcome[SFT] = 1000.0
    results, left = bench(budget=60.0)
    assert results[SFT]["failed"] == "no result within 1.0 minutes"
    assert left == [GRPO]
    bench(budget=60.0)
    assert bench.ran == [GRPO]


def test_models_stay_where_asked(bench):
    bench(keep=True)
    assert model_folder("tiny").exists()


def test_a_model_that_the_disk_has_no_room_for_is_refused_beforehand(bench, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    check_disk([SFT], bench.planner)
    assert "up to 0.0 GB" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(UserError, match="make room, or name smaller shapes with --shapes"):
        check_disk([SFT], bench.planner)
    model_folder("tiny").mkdir(parents=True)
    check_disk([SFT], bench.planner)  # it is there already


# --- what is said --------------------------------------------------------------------------


def test_a_row_has_time_memory_and_how_far_the_plan_is_off():
    assert off(MEASURED) == pytest.approx(0.1)
    assert line_of(SFT, MEASURED, 11 * GIB) == [
        "tiny", "SFT", "16", "trl", "2.00", "1,234", "10.00", "11.00", "11.00", "+10%",
    ]  # fmt: skip


def test_a_row_without_a_result_says_why():
    failed = line_of(SFT, {"failed": "out of memory"}, GIB)
    assert failed[4:] == ["–", "–", "–", "–", "1.00", "out of memory"]
    assert line_of(SFT, {}, GIB)[-1] == "not yet measured"


def test_the_machine_and_how_good_the_plan_is_are_said():
    far = {**MEASURED, "planned": 5 * GIB}
    results = {SFT: MEASURED, GRPO: far}
    assert machine_of(results) == (
        "Measured on Some GPU (24 GiB); python 3.11, torch 2.13, CUDA 13.0."
    )
    last = list(notes(results, Terms()))[-1]
    assert last.startswith("The plan is within 15% of the memory measured in 1 of 2 cells; ")
    assert last.endswith("the farthest is off by -50%.")
