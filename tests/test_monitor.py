"""A watched training ends with the same weights, reports its signals, and stops where it must."""

import copy
import json
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from running import refusal_of, rows_in
from tiny import LORA, RECIPE, training_for, write_recipe
from transformers import TrainerCallback
from transformers.integrations import is_tensorboard_available
from trl import GRPOTrainer, SFTTrainer

from data import make
from pipeline import grpo, sft
from pipeline.health.diagnosis import Finding
from pipeline.health.symptom import Level
from pipeline.train import rollouts
from pipeline.train.checkpoints import last_whole
from pipeline.train.loading import load_for_training
from pipeline.train.settings import check_settings
from pipeline.watch.monitor import duplicates, monitored
from rewards.reward import _FUNCTIONS

slow = pytest.mark.slow
STAGES = {"sft": sft, "grpo": grpo}
ALWAYS = {"every": 1, "kl_every": 1, "problems": 2, "samples": 2}
STEPS = {"max_steps": 3, "logging_steps": 1, "warmup_steps": 0, "save_steps": 2}


@pytest.fixture
def recipe_of(folder, monkeypatch):
    """A function that writes a recipe over that data; ``sft`` and ``grpo`` are added to STEPS."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(grpo, "gate", lambda *_: None)

    def write(**changes):
        arms = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo"}}
        content = {"monitor": ALWAYS, "arms": arms, **changes}
        for name in STAGES:
            content[name] = {**RECIPE[name], **STEPS, **changes.get(name, {})}
        return write_recipe(folder, folder / "qwen3", **content)

    return write


def trainer_of(recipe, kind, output, arm=None):
    """A trainer as a stage has it."""
    training = replace(training_for(recipe, kind), arm=arm or kind)
    training.start_backend()
    model, tokenizer = load_for_training(training, 512)
    return STAGES[kind].trainer_for(training, training.rows(), model, tokenizer, output / "ck")


def watched(recipe, kind, trainer, output, arm=None, **more):
    output.mkdir(exist_ok=True)
    saved = partial(last_whole, output / "ck")
    return monitored(trainer, recipe, arm or kind, kind, output, saved, **more)


def trained(recipe, kind, output, watch=True, arm=None):
    """The weights after a training."""
    trainer = trainer_of(recipe, kind, output, arm)
    with watched(recipe, kind, trainer, output, arm) if watch else nullcontext():
        trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def log_of(output):
    return rows_in(output / "log.jsonl")


def paid(problems, texts):
    """Random weights earn nothing, and a gradient of 0 would be the same in any case."""
    return [i % 7 / 7 for i in range(len(texts))]


@slow
@pytest.mark.parametrize(("kind", "lora"), [("sft", {**LORA, "lora_dropout": 0.2}), ("grpo", None)])
def test_the_weights_are_the_same_bits_watched_or_not(recipe_of, kind, lora, tmp_path, monkeypatch):
    monkeypatch.setitem(_FUNCTIONS, "optimal", paid)
    recipe = recipe_of(lora=lora)
    alone = trained(recipe, kind, tmp_path / "alone", watch=False)
    beside = trained(recipe, kind, tmp_path / "beside")
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    rows = log_of(tmp_path / "beside")
    assert kind == "sft" or any(row.get("kl_start") for row in rows), "training changed nothing"
    start = trainer_of(recipe, kind, tmp_path).model
    assert any(not torch.equal(w, alone[name]) for name, w in start.named_parameters())


# --- signals -----------------------------------------------------------------------------------


@slow
def test_every_signal_of_grpo_is_in_the_log_and_handed_to_reporters(recipe_of, tmp_path):
    reported = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            reported.append({"step", *logs})

    recipe = recipe_of()
    trainer = trainer_of(recipe, "grpo", tmp_path)
    trainer.add_callback(Reporter)  # as TRL adds its own, before ours
    with watched(recipe, "grpo", trainer, tmp_path / "out"):
        trainer.train()
    written = log_of(tmp_path / "out")
    assert reported == [set(row) for row in written]
    first, *rows, last = written
    assert first["step"] == 0
    assert {"val/optimal", "val/feasible", "val/reward", "time/monitor"} < first.keys()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "train_runtime" in last
    for row in rows:
        assert row["truth/optimal"] == row["rewards/optimal/mean"]
        assert row["truth/feasible"] == row["rewards/validity/mean"]
        parts = sum(row[f"time/{part}"] for part in ("generate", "reward", "train"))
        assert row["step_time"] < parts + row["time/monitor"] < row["step_time"] + 2
        assert 0.1 < row["memory"] < 100
        assert 0 <= row["completions/duplicates"] <= 1
        assert {
            *("reward", "reward_std", "rewards/format/mean", "rewards/format/std", "entropy"),
            *("grad_norm", "learning_rate", "clip_ratio/region_mean", "frac_reward_zero_std"),
            *("completions/mean_length", "completions/clipped_ratio", "kl_start", "val/optimal"),
        } < row.keys()


@slow
def test_sft_is_measured_on_gold_answers_alone(recipe_of, tmp_path):
    trained(recipe_of(), "sft", tmp_path / "out")
    first, *rows, _ = log_of(tmp_path / "out")
    assert first["val/loss"] == pytest.approx(math.log(1180), rel=0.1)  # of random weights
    assert rows[-1]["val/loss"] < first["val/loss"]
    assert {"time/train", "memory"} < rows[-1].keys()
    assert not {"time/generate", "time/reward", "val/reward", "kl_start"} & rows[-1].keys()


@slow
@pytest.mark.parametrize(
    ("every", "kl_every", "val", "kl"), [(2, 3, [0, 2, 4], [3]), (0, 2, [], [2, 4])]
)
def test_val_and_kl_are_measured_when_due(recipe_of, tmp_path, every, kl_every, val, kl):
    section = {**ALWAYS, "every": every, "kl_every": kl_every}
    trained(recipe_of(grpo={"max_steps": 5}, monitor=section), "grpo", tmp_path / "out")
    for key, steps in (("val/optimal", val), ("kl_start", kl)):
        assert [row["step"] for row in log_of(tmp_path / "out") if key in row] == steps


def by_problem(problem):
    return sum(map(ord, problem)) % 7 / 7


@slow
@pytest.mark.parametrize(
    ("scaled", "pay"),
    [("group", lambda problem: 58.3), ("batch", by_problem), ("none", by_problem)],
)
def test_groups_paid_alike_are_counted_at_any_scale(recipe_of, tmp_path, monkeypatch, scaled, pay):
    monkeypatch.setitem(_FUNCTIONS, "optimal", lambda problems, texts: [*map(pay, problems)])
    recipe = recipe_of(
        grpo={"max_steps": 1, "scale_rewards": scaled},
        reward={"shape": "binary"},
        monitor={"every": 0, "kl_every": 0},
    )
    trained(recipe, "grpo", tmp_path / "out")
    (row,) = (row for row in log_of(tmp_path / "out") if "reward" in row)
    assert row["frac_reward_zero_std"] == 1


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ([["a", "a", "b", "c"], ["d", "d", "d", "d"]], 6 / 8),
        ([["a", "b"], ["a", "b"]], 0.0),  # another group's
        ([], 0.0),
    ],
)
def test_duplicates_are_counted_within_their_group(groups, share):
    assert duplicates(groups) == share


# --- reporters and recipes ---------------------------------------------------------------------


@slow
@pytest.mark.skipif(not is_tensorboard_available(), reason="tensorboard is not installed")
def test_tensorboard_has_our_signals_and_keeps_them_when_training_is_over(recipe_of):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = recipe_of(grpo={"report_to": "tensorboard"}, name="reported")
    make.run(recipe, force=False)
    grpo.run(recipe, force=False)
    written = EventAccumulator(str(recipe.run.stage("grpo") / "tensorboard")).Reload()
    names = {"train/truth/optimal", "train/kl_start", "train/val/optimal", "train/time/generate"}
    assert names < set(written.Tags()["scalars"])


@slow
def test_each_arm_is_a_run_and_the_trainer_has_its_methods_back(recipe_of, tmp_path, monkeypatch):
    over = []
    recipe = recipe_of()
    trainer = trainer_of(recipe, "grpo", tmp_path)
    before = {**vars(trainer), **vars(trainer.accelerator)}.keys()
    with watched(recipe, "grpo", trainer, tmp_path / "out"):
        assert {"log", "_generate"} <= vars(trainer).keys()
        assert trainer.args.run_name == f"{recipe.run_name}-grpo"
        wandb = SimpleNamespace(run="begun by a callback", finish=lambda: over.append(True))
        monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert over == [True]
    assert {**vars(trainer), **vars(trainer.accelerator)}.keys() == before


@pytest.mark.skipif(is_tensorboard_available(), reason="tensorboard is installed")
def test_a_reporter_that_is_not_installed_is_refused_in_a_sentence(recipe_of):
    recipe = recipe_of(grpo={"report_to": "tensorboard"})
    refusal_of(lambda: grpo.run(recipe, force=False), "grpo.report_to has 'tensorboard'")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"monitor": {"stop": ["hackng"]}}, ["monitor.stop ", "'hackng'", "'hacking'"]),
        ({"sft": {"report_to": ["none", "paper"]}}, ["sft.report_to has 'paper'"]),
        ({"monitor": {"every": -1}}, ["monitor.every ", "-1"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_before_training(recipe_of, changes, named):
    refusal_of(lambda: check_settings(recipe_of(**changes)), *named)


# --- where it ends -----------------------------------------------------------------------------


def spoil(monkeypatch, what, at):
    """Have the loss, or the gradient behind a finite loss, be NaN at a step."""
    compute_loss = SFTTrainer.compute_loss

    def spoilt(self, model, *args, **kwargs):
        loss = compute_loss(self, model, *args, **kwargs)
        if self.state.global_step + 1 < at:
            return loss
        if what == "loss":
            return loss * math.nan
        weight = next(model.parameters()).sum() * 0
        return loss + weight.sqrt()  # 0, of infinite slope

    monkeypatch.setattr(SFTTrainer, "compute_loss", spoilt)


@slow
@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_a_lost_training_ends_with_its_last_checkpoint(recipe_of, what, monkeypatch, run_command):
    spoil(monkeypatch, what, at=3)
    recipe = recipe_of(name=what)
    make.run(recipe, force=False)
    printed, said = run_command("pipeline.sft", "--recipe", recipe.path)
    arm = recipe.run.stage("sft")
    for part in (f"{recipe.path}: sft", "step 3", "step 2", f"{arm}/checkpoints/checkpoint-2"):
        assert part in said
    assert "sft.learning_rate (0.01)" in said
    weights = torch.load(arm / "checkpoints/checkpoint-2/optimizer.pt")["state"]
    assert all(torch.isfinite(each["exp_avg"]).all() for each in weights.values())
    assert not (arm / "manifest.json").exists()
    row = log_of(arm)[-1]
    assert row.keys() == {"step", what, "learning_rate", "lost", "trainer"}
    assert (row["step"], row[what], row["trainer"]) == (3, None, "sft")
    assert "stop (nonfinite, step 3): " in printed


@slow
@pytest.mark.parametrize(("arm", "seeds"), [("sft", []), ("sft.5", [5])])
def test_a_training_lost_before_a_checkpoint_names_what_to_lower(
    arm, seeds, recipe_of, tmp_path, monkeypatch
):
    spoil(monkeypatch, "loss", at=1)
    arms = {"sft": {"trainer": "sft", "seeds": seeds, "settings": {"learning_rate": 0.5}}}
    rate = "arms.sft.settings.learning_rate (0.5"
    recipe = recipe_of(arms=arms).for_arm(arm)
    train = partial(trained, recipe, "sft", tmp_path / "out", arm=arm)
    said = refusal_of(train, "sft.save_steps", rate)
    assert "step 1, " in said
    assert "nothing was saved" in said


@slow
@pytest.mark.parametrize("kind", list(STAGES))
def test_weights_that_a_step_has_spoiled_are_not_saved(recipe_of, tmp_path, kind, monkeypatch):
    step = torch.optim.AdamW.step

    def too_far(self, *args, **kwargs):  # the gradient is a number, the step is not
        done = step(self, *args, **kwargs)
        self.param_groups[0]["params"][0].data.fill_(math.inf)
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", too_far)
    recipe = recipe_of(**{kind: {"save_steps": 1}})
    named = ("a weight ", "before it reached a checkpoint")
    refusal_of(lambda: trained(recipe, kind, tmp_path / "out"), *named)
    assert last_whole(tmp_path / "out" / "ck") is None
    assert log_of(tmp_path / "out")[-1]["weight"] is None


def nan_in_the_second_step(trainer):
    if trainer.state.global_step == 1:  # as when activations overflow
        next(p for p in trainer.model.parameters() if p.requires_grad).data.fill_(math.nan)


def an_error_of_the_gpu(trainer):
    said = "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in …"
    raise torch.AcceleratorError(said, 710)


@slow
@pytest.mark.parametrize(
    ("before", "named"),
    [
        (nan_in_the_second_step, ["probability of a next token ", "step 2"]),
        (an_error_of_the_gpu, ["the GPU ", "step 1"]),
    ],
)
def test_a_lost_next_token_ends_the_training(recipe_of, tmp_path, monkeypatch, before, named):
    generate = GRPOTrainer._generate

    def spoilt(self, *args, **kwargs):
        before(self)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate", spoilt)
    recipe = recipe_of(monitor={**ALWAYS, "kl_every": 0})
    refusal_of(lambda: trained(recipe, "grpo", tmp_path / "out"), *named)
    assert log_of(tmp_path / "out")[-1]["probability"] is None


FOUND = Finding("hacking", Level.WARNING, 2, "Reward hacking", "up, down", "why", "Stop.", "who")


@slow
def test_a_finding_ends_a_training_where_that_is_asked(recipe_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "pipeline.health.diagnosis.Watch.update",
        lambda self, row: [FOUND] if row["step"] == 2 else [],
    )
    trained(recipe_of(), "sft", tmp_path / "goes on")
    assert "warning (hacking, step 2): " in capsys.readouterr().out
    recipe = recipe_of(monitor={**ALWAYS, "stop": ["hacking"]})
    ended = "monitor.stop at step 2 (hacking)"
    refusal_of(lambda: trained(recipe, "sft", tmp_path / "ends"), ended)
    assert [row["step"] for row in log_of(tmp_path / "ends")] == [0, 1, 2]


@slow
@pytest.mark.parametrize("stale", [False, True])
def test_answers_drawn_from_the_start_end_the_training(recipe_of, tmp_path, monkeypatch, stale):
    """The published trap: the engine samples the base, without the adapter, and nobody is told."""
    draw, start = rollouts.roll_out, []

    def from_the_start(prompts, trainer):
        start[:] = start or [copy.deepcopy(trainer.model)]
        numbers = {key: getattr(trainer, key) for key in ("num_generations", "accelerator")}
        given = {"args": trainer.args, "processing_class": trainer.processing_class, **numbers}
        return draw(prompts, SimpleNamespace(model=start[0], **given))

    if stale:
        monkeypatch.setattr(rollouts, "roll_out", from_the_start)
    monkeypatch.setitem(_FUNCTIONS, "optimal", paid)
    recipe = recipe_of(
        grpo={"max_steps": 7, "learning_rate": 0.1}, monitor={"every": 0, "kl_every": 0}
    )
    if stale:
        ended = "monitor.stop at step 6 (foreign-answers)"
        refusal_of(lambda: trained(recipe, "grpo", tmp_path / "out"), ended)
    else:
        trained(recipe, "grpo", tmp_path / "out")
    rows = [row for row in log_of(tmp_path / "out") if "sampling/surplus" in row]
    found = [row["sampling/surplus"] > row["sampling/surplus_limit"] for row in rows]
    assert [row["step"] for row in rows] == [1, 6]
    assert found == [False, stale]


@slow
def test_unsloths_way_of_drawing_is_the_trainers_own(recipe_of, tmp_path):
    recipe = recipe_of(grpo={"max_steps": 1})
    trainer = trainer_of(recipe, "grpo", tmp_path)
    with watched(recipe, "grpo", trainer, tmp_path / "out", generates=True):
        trainer.train()
    kept = (tmp_path / "ck" / "start.jsonl").read_text().splitlines()
    assert all(json.loads(line)["answer"] for line in kept)
    first, row, _ = log_of(tmp_path / "out")
    # Random weights earn nothing, so that the model and its answers stay the same.
    assert row["kl_start"] == 0.0
    assert all(row[key] == first[key] for key in first if key.startswith("val/"))
