"""A training that is watched ends with the same weights, says what goes wrong, and ends where it
must."""

import json
import math
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny import LORA, RECIPE, save_model, write_recipe
from transformers import TrainerCallback
from transformers.integrations import is_tensorboard_available
from trl import GRPOTrainer, SFTTrainer

from data import make
from data.common.errors import UserError, run_main
from data.common.files import read_jsonl
from pipeline import grpo, sft
from pipeline.health.diagnosis import Finding
from pipeline.health.symptom import Level
from pipeline.train import backend
from pipeline.train.checkpoints import last_whole
from pipeline.train.settings import check_settings
from pipeline.train.trainer import training_rows
from pipeline.watch import monitor
from pipeline.watch.log import Log
from pipeline.watch.monitor import Lost, Monitor, duplicates, monitored
from pipeline.watch.val import Yardsticks
from rewards.reward import _FUNCTIONS

STAGES = {"sft": sft, "grpo": grpo}
ALWAYS = {"every": 1, "kl_every": 1, "problems": 2, "samples": 2, "sampled": ["sft", "grpo"]}
STEPS = {"max_steps": 3, "logging_steps": 1, "warmup_steps": 0, "save_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data of a run, made once."""
    place = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        recipe = write_recipe(place, save_model(place / "qwen3", "qwen3"))
        make.run(recipe, force=False, workers=1)
    return place


@pytest.fixture
def recipe_of(folder, monkeypatch):
    """A function that writes a recipe, with changes, over that data."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(grpo, "gate", lambda *_: None)

    def write(**changes):
        sections = {name: {**RECIPE[name], **STEPS} for name in STAGES}
        arms = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo"}}
        return write_recipe(
            folder, folder / "qwen3", **{"monitor": ALWAYS, "arms": arms, **sections, **changes}
        )

    return write


def trainer_of(recipe, kind, output):
    """A trainer as a stage has it, and its tokenizer."""
    backend.start(recipe)
    model, tokenizer = backend.load_for_training(recipe, kind, recipe.model, 512)
    rows = training_rows(recipe, kind)
    return STAGES[kind].trainer_for(recipe, rows, model, tokenizer, output / "ck"), tokenizer


def watched(recipe, kind, trainer, tokenizer, output):
    output.mkdir(exist_ok=True)
    return monitored(
        trainer, tokenizer, recipe, kind, kind, output, lambda: last_whole(output / "ck")
    )


def trained(recipe, kind, output, how):
    """The weights after a training that was watched, or not."""
    trainer, tokenizer = trainer_of(recipe, kind, output)
    with watched(recipe, kind, trainer, tokenizer, output) if how else nullcontext():
        trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def log_of(output):
    return [row for _, row in read_jsonl(output / "log.jsonl")]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("lora", [None, {**LORA, "lora_dropout": 0.2}], ids=["full", "lora"])
def test_what_is_trained_is_the_same_bits_whether_it_is_watched_or_not(
    recipe_of, kind, lora, tmp_path, monkeypatch
):
    # Random weights earn nothing, and a gradient of 0 would be the same in any case.
    def paid(problems, texts):
        return [len(text) % 7 / 7 for text in texts]

    monkeypatch.setitem(_FUNCTIONS, "optimal", paid)
    recipe = recipe_of(lora=lora)
    alone, beside = (trained(recipe, kind, tmp_path / str(how), how) for how in (False, True))
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    rows = log_of(tmp_path / "True")
    assert any(row.get("kl_start") for row in rows), "training changed nothing"
    start = trainer_of(recipe, kind, tmp_path)[0].model
    assert any(not torch.equal(w, alone[name]) for name, w in start.named_parameters())


def test_every_signal_of_grpo_is_in_the_log(recipe_of, tmp_path):
    trained(recipe_of(), "grpo", tmp_path / "out", True)
    first, *rows, last = log_of(tmp_path / "out")
    assert first["step"] == 0
    assert {"val/optimal", "val/feasible", "val/reward", "time/monitor"} < first.keys()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "train_runtime" in last
    for row in rows:
        assert row["truth/optimal"] == row["rewards/optimal/mean"]
        assert row["truth/feasible"] == row["rewards/validity/mean"]
        parts = sum(row[f"time/{part}"] for part in ("generate", "reward", "train"))
        assert row["step_time"] < parts < row["step_time"] + 1
        assert 0.1 < row["memory"] < 100
        tokens = row["num_tokens"] - (rows[row["step"] - 2]["num_tokens"] if row["step"] > 1 else 0)
        assert row["tokens_per_second"] == pytest.approx(tokens / parts)
        assert 0 <= row["completions/duplicates"] <= 1
        assert {
            *("reward", "reward_std", "rewards/format/mean", "rewards/format/std", "entropy"),
            *("grad_norm", "learning_rate", "clip_ratio/region_mean", "frac_reward_zero_std"),
            *("completions/mean_length", "completions/clipped_ratio", "kl_start", "val/optimal"),
        } < row.keys()


def test_tokens_a_second_are_of_all_steps_that_the_answers_were_used_for(
    recipe_of, tmp_path, monkeypatch
):
    end = Monitor.on_step_end

    def slow(self, args, state, control, **given):
        self._began -= 10 * state.global_step  # as if steps took 10, 20, 30 … seconds
        return end(self, args, state, control, **given)

    monkeypatch.setattr(Monitor, "on_step_end", slow)
    used_twice = {**RECIPE["grpo"], **STEPS, "max_steps": 5, "num_iterations": 2}
    trained(recipe_of(grpo=used_twice, monitor={"every": 0}), "grpo", tmp_path / "out", True)
    rows = {row["step"]: row for row in log_of(tmp_path / "out")[:-1]}
    assert [step for step, row in rows.items() if "tokens_per_second" in row] == [1, 3, 5]
    for step, seconds in ((3, 20 + 30), (5, 40 + 50)):
        tokens = rows[step]["num_tokens"] - rows[step - 2]["num_tokens"]
        assert rows[step]["tokens_per_second"] == pytest.approx(tokens / seconds, rel=0.2)


def test_sft_is_measured_on_gold_answers_too(recipe_of, tmp_path):
    trained(recipe_of(), "sft", tmp_path / "out", True)
    first, *rows, _ = log_of(tmp_path / "out")
    assert first["val/loss"] == pytest.approx(math.log(1180), rel=0.1)  # of random weights
    assert rows[-1]["val/loss"] < first["val/loss"]
    assert rows[-1]["kl_start"] > 0
    assert {"time/train", "tokens_per_second", "memory", "val/reward"} < rows[-1].keys()
    assert not {"time/generate", "time/reward"} & rows[-1].keys()


def test_answers_are_drawn_in_the_stages_that_are_named(recipe_of, tmp_path):
    trained(recipe_of(monitor={**ALWAYS, "sampled": ["grpo"]}), "sft", tmp_path / "out", True)
    for row in log_of(tmp_path / "out")[:-1]:
        assert [key for key in row if key.startswith(("val/", "kl"))] == ["val/loss"]


def test_val_and_kl_are_measured_when_due_and_not_when_off(recipe_of, tmp_path):
    steps = {**RECIPE["grpo"], **STEPS, "max_steps": 5}
    counts = {}
    for every, kl_every in ((2, 3), (0, 2), (0, 0)):
        recipe = recipe_of(grpo=steps, monitor={**ALWAYS, "every": every, "kl_every": kl_every})
        output = tmp_path / f"{every} {kl_every}"
        trained(recipe, "grpo", output, True)
        rows = log_of(output)
        counts[every, kl_every] = [
            [row["step"] for row in rows if key in row] for key in ("val/optimal", "kl_start")
        ]
    assert counts == {
        (2, 3): [[0, 2, 4], [3]],
        (0, 2): [[], [2, 4]],
        (0, 0): [[], []],
    }


def test_reporters_are_handed_our_signals_too(recipe_of, tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append((state.global_step, dict(logs)))

    recipe = recipe_of()
    trainer, tokenizer = trainer_of(recipe, "grpo", tmp_path)
    trainer.add_callback(Reporter)  # as TRL adds its own, before ours
    with watched(recipe, "grpo", trainer, tokenizer, tmp_path / "out"):
        trainer.train()
    written = log_of(tmp_path / "out")
    assert [{"step": step, **logs}.keys() for step, logs in seen] == [row.keys() for row in written]


@pytest.mark.skipif(not is_tensorboard_available(), reason="tensorboard is not installed")
def test_tensorboard_has_our_signals_and_keeps_them_when_training_is_over(recipe_of):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = {**RECIPE["grpo"], **STEPS, "report_to": "tensorboard"}
    recipe = recipe_of(grpo=steps, name="reported")
    make.run(recipe, force=False, workers=1)
    grpo.run(recipe, force=False)
    written = EventAccumulator(str(recipe.run.folder / "grpo" / "tensorboard")).Reload()
    names = {"train/truth/optimal", "train/kl_start", "train/val/optimal", "train/time/generate"}
    assert names < set(written.Tags()["scalars"])


def test_each_arm_is_a_run_of_its_own_where_it_is_reported(recipe_of, tmp_path, monkeypatch):
    over = []
    recipe = recipe_of()
    trainer, tokenizer = trainer_of(recipe, "grpo", tmp_path)
    with watched(recipe, "grpo", trainer, tokenizer, tmp_path / "out"):
        assert trainer.args.run_name == f"{recipe.run_name}-grpo"
        wandb = SimpleNamespace(run="begun by a callback", finish=lambda: over.append(True))
        monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert over == [True]


@pytest.mark.skipif(is_tensorboard_available(), reason="tensorboard is installed")
def test_a_reporter_that_is_not_installed_is_refused_in_a_sentence(recipe_of):
    recipe = recipe_of(grpo={**RECIPE["grpo"], "report_to": "tensorboard"})
    with pytest.raises(UserError, match=r"grpo\.report_to: tensorboard is not installed; `\.venv"):
        grpo.run(recipe, force=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"monitor": {"stop": ["hackng"]}},
            r"monitor\.stop has 'hackng', .*mean 'hacking'",
        ),
        ({"sft": {"report_to": ["none", "paper"]}}, r"sft\.report_to: paper is not supported"),
        ({"sft": {"report_to": [["none"]]}}, r"sft\.report_to must be a name or a list of names"),
    ],
)
def test_what_does_not_exist_is_refused_before_training(recipe_of, changes, said):
    with pytest.raises(UserError, match=said):
        check_settings(recipe_of(**changes))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"every": -1}, r"monitor\.every must be 0 or more, not -1"),
        ({"problems": 0}, r"monitor\.problems must be 1 or more, not 0"),
        ({"samples": "two"}, r"monitor\.samples must be a whole number, not 'two'"),
        ({"sampled": ["eval"]}, r"monitor\.sampled takes sft and grpo, not 'eval'"),
        ({"stop": "hacking"}, r"monitor\.stop must be a list, not 'hacking'"),
        ({"evry": 5}, r"unknown key 'monitor\.evry'; did you mean 'every'"),
    ],
)
def test_a_monitor_section_that_makes_no_sense_is_refused(recipe_of, section, said):
    with pytest.raises(UserError, match=said):
        recipe_of(monitor=section)


# --- where it ends -----------------------------------------------------------------------------


def spoil(monkeypatch, kind, at):
    """Have the loss, or the gradient behind a sound loss, be NaN at a step."""
    compute_loss = SFTTrainer.compute_loss

    def spoilt(self, model, *args, **kwargs):
        found = compute_loss(self, model, *args, **kwargs)
        if self.state.global_step + 1 < at:
            return found
        if kind == "the loss":
            return found * math.nan
        weight = next(model.parameters()).sum() * 0
        return found + weight.sqrt()  # 0, of infinite slope

    monkeypatch.setattr(SFTTrainer, "compute_loss", spoilt)


@pytest.mark.parametrize(
    ("what", "key"), [("the loss", "loss"), ("the gradient norm", "grad_norm")]
)
def test_a_lost_training_ends_with_its_last_good_checkpoint_and_one_sentence(
    recipe_of, what, key, monkeypatch, capsys
):
    spoil(monkeypatch, what, at=3)
    recipe = recipe_of(name=what.split()[-1])
    make.run(recipe, force=False, workers=1)
    monkeypatch.setattr("sys.argv", ["sft", "--recipe", str(recipe.path)])
    with pytest.raises(SystemExit) as ended:
        run_main(sft.main)
    arm = recipe.run.folder / "sft"
    assert ended.value.code == (  # text is printed to stderr, and the exit code is 1
        f"error: {recipe.path}: sft: {what} is not a finite number at step 3, and training ended "
        f"before it reached the weights; the weights of step 2 are in {arm}/checkpoints/"
        "checkpoint-2; lower sft.learning_rate (0.01), and the same command begins anew, without "
        "that checkpoint (copy it, to keep it)"
    )
    weights = torch.load(arm / "checkpoints/checkpoint-2/optimizer.pt")["state"]
    assert all(torch.isfinite(each["exp_avg"]).all() for each in weights.values())
    assert not (arm / "manifest.json").exists()
    rows = log_of(arm)
    assert rows[-1] == {
        "step": 3,
        key: None,
        "learning_rate": pytest.approx(0.01, rel=1),
        "lost": f"{what} is not a finite number",
        "trainer": "sft",
    }
    (finding,) = (row for _, row in read_jsonl(arm / "findings.jsonl"))
    assert (finding["symptom"], finding["level"], finding["step"]) == ("nonfinite", "stop", 3)
    assert finding["evidence"] == rows[-1]["lost"]
    assert "stop (nonfinite, step 3): Loss or gradient is not a number" in capsys.readouterr().out


def test_a_lost_training_before_the_first_checkpoint_says_so(recipe_of, tmp_path, monkeypatch):
    spoil(monkeypatch, "the loss", at=1)
    says = r"at step 1, .* nothing was saved yet \(a smaller sft\.save_steps.* begins anew$"
    with pytest.raises(UserError, match=says):
        trained(recipe_of(), "sft", tmp_path / "out", True)


@pytest.mark.parametrize("kind", list(STAGES))
def test_weights_that_a_step_has_spoiled_are_not_saved(recipe_of, tmp_path, kind):
    # The gradient is a number, the step is not.
    spoilt = {"learning_rate": 1e39, "max_grad_norm": 0.0, "save_steps": 1}
    recipe = recipe_of(**{kind: {**RECIPE[kind], **STEPS, **spoilt}})
    with pytest.raises(UserError, match=r"a weight is not a .* before it reached a checkpoint"):
        trained(recipe, kind, tmp_path / "out", True)
    assert last_whole(tmp_path / "out" / "ck") is None
    assert log_of(tmp_path / "out")[-1]["weight"] is None


def test_a_next_token_without_a_probability_ends_the_training_in_one_sentence(
    recipe_of, tmp_path, monkeypatch
):
    def spoil_the_second(self, *args, **kwargs):
        if self.state.global_step == 1:  # as when activations overflow
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(math.nan)
        return generate(self, *args, **kwargs)

    generate = GRPOTrainer._generate
    monkeypatch.setattr(GRPOTrainer, "_generate", spoil_the_second)
    with pytest.raises(UserError, match=r"of a next token is not a finite .* step 2"):
        trained(recipe_of(), "grpo", tmp_path / "out", True)
    assert log_of(tmp_path / "out")[-1]["probability"] is None


def test_val_may_be_the_first_to_meet_a_token_without_a_probability(
    recipe_of, tmp_path, monkeypatch
):
    def val(self):
        raise UserError("no finite probabilities")

    monkeypatch.setattr(Yardsticks, "val", val)
    with pytest.raises(UserError, match=r"of a next token .* step 1, .* reached a checkpoint; no"):
        trained(recipe_of(), "grpo", tmp_path / "out", True)
    assert log_of(tmp_path / "out")[-1]["probability"] is None


def test_what_to_lower_is_named_where_the_recipe_has_it(recipe_of, tmp_path, monkeypatch):
    spoil(monkeypatch, "the loss", at=1)
    arms = {"sft": {"trainer": "sft", "settings": {"learning_rate": 0.5}}}
    with pytest.raises(UserError, match=r"lower arms\.sft\.settings\.learning_rate \(0\.5\)"):
        trained(recipe_of(arms=arms).for_arm("sft"), "sft", tmp_path / "out", True)


#: Rewards of the answers to problems, such that the answers of a group are paid alike.
ALIKE = {
    "all": lambda problems: [0.7] * len(problems),
    "by problem": lambda problems: [sum(map(ord, one)) % 7 / 7 for one in problems],
    "of 100": lambda problems: [58.3] * len(problems),
}


@pytest.mark.parametrize("scaled", ["group", "batch", "none"])
@pytest.mark.parametrize("paid", ALIKE)
def test_groups_that_are_paid_alike_are_counted_whatever_rewards_are_scaled_by(
    recipe_of, tmp_path, monkeypatch, scaled, paid
):
    monkeypatch.setitem(_FUNCTIONS, "optimal", lambda problems, texts: ALIKE[paid](problems))
    steps = {**RECIPE["grpo"], **STEPS, "max_steps": 1, "scale_rewards": scaled}
    recipe = recipe_of(grpo=steps, reward={"shape": "binary"}, monitor={"every": 0, "kl_every": 0})
    trained(recipe, "grpo", tmp_path / "out", True)
    (row,) = (row for row in log_of(tmp_path / "out") if "reward" in row)
    assert row["frac_reward_zero_std"] == 1


ON_A_GPU = "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in …"


@pytest.mark.parametrize(
    ("error", "ends", "says"),
    [
        (
            torch.AcceleratorError(ON_A_GPU, 710),
            UserError,
            r"the GPU stopped as it drew .* assert\), as where a .* finite number at step 1, and",
        ),
        (RuntimeError("CUDA out of memory"), RuntimeError, "^CUDA out of memory$"),
    ],
)
def test_what_a_gpu_says_of_such_a_token_is_told_apart_from_other_failures(
    recipe_of, tmp_path, monkeypatch, error, ends, says
):
    def fail(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(GRPOTrainer, "_generate", fail)
    with pytest.raises(ends, match=says):
        trained(recipe_of(monitor={"every": 0}), "grpo", tmp_path / "out", True)


def test_steps_that_float16_leaves_out_itself_end_nothing():
    lost = torch.tensor(math.inf)
    trainer = SimpleNamespace(
        args=SimpleNamespace(fp16=True),
        state=SimpleNamespace(global_step=0),
        _get_learning_rate=lambda: 1.0,
    )
    held = SimpleNamespace(trainer=trainer)
    held._lost = lambda signal: Monitor._lost(held, signal)
    assert Monitor._clip(held, lambda: lost) is lost
    trainer.args.fp16 = False
    with pytest.raises(Lost, match="the gradient norm is not a finite number"):
        Monitor._clip(held, lambda: lost)


FOUND = Finding("hacking", Level.WARNING, 2, "Reward hacking", "up, down", "why", "Stop.", "who")


def test_a_finding_ends_the_training_where_the_recipe_says_so(
    recipe_of, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "pipeline.health.diagnosis.Watch.update",
        lambda self, row: [FOUND] if row["step"] == 2 else [],
    )
    trained(recipe_of(), "sft", tmp_path / "goes on", True)
    assert (
        "warning (hacking, step 2): Reward hacking: up, down\n  Stop.\n" in capsys.readouterr().out
    )
    recipe = recipe_of(monitor={**ALWAYS, "stop": ["hacking"]})
    says = r"ended by monitor\.stop at step 2 \(hacking\); nothing was saved yet .* without hack"
    with pytest.raises(UserError, match=says):
        trained(recipe, "sft", tmp_path / "ends", True)
    assert [row["step"] for row in log_of(tmp_path / "ends")] == [0, 1, 2]


def test_a_trainer_has_its_own_methods_back_afterwards(recipe_of, tmp_path):
    recipe = recipe_of()
    trainer, tokenizer = trainer_of(recipe, "grpo", tmp_path)
    before = {**vars(trainer), **vars(trainer.accelerator)}.keys()
    with watched(recipe, "grpo", trainer, tokenizer, tmp_path / "out"):
        assert {"log", "_generate"} <= vars(trainer).keys()
    assert {**vars(trainer), **vars(trainer.accelerator)}.keys() == before


def test_ctrl_c_closes_the_view_and_is_passed_on(recipe_of, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("pipeline.watch.live.Lines.close", lambda self: closed.append(self))

    def stop(self, args, state, control, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Log, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe_of(), "sft", tmp_path / "out", True)
    assert len(closed) == 1


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


# --- after an interruption ---------------------------------------------------------------------


def test_a_training_that_goes_on_knows_what_it_started_from(recipe_of, monkeypatch):
    steps = {**RECIPE["sft"], **STEPS, "max_steps": 4}
    recipe = recipe_of(sft=steps, name="whole")
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    whole = log_of(recipe.run.folder / "sft")
    recipe = recipe_of(sft=steps, name="parts")
    make.run(recipe, force=False, workers=1)

    def stop(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            sft.run(recipe, force=False)
    sft.run(recipe, force=False)
    parts = log_of(recipe.run.folder / "sft")
    assert [row["step"] for row in parts] == [row["step"] for row in whole] == [0, 1, 2, 3, 4, 4]
    for one, other in zip(whole[:-1], parts[:-1], strict=True):
        for key in ("loss", "kl_start", "val/loss", "val/optimal", "val/reward"):
            assert one.get(key) == other.get(key), key


def test_unsloths_way_of_drawing_is_the_trainers_own(recipe_of, tmp_path):
    recipe = recipe_of()
    trainer, tokenizer = trainer_of(recipe, "grpo", tmp_path)
    rows = monitor.val_rows(recipe, "grpo")
    sticks = Yardsticks(recipe, "grpo", trainer, tokenizer, rows, tmp_path, generates=True)
    first, again = sticks.begin(fresh=True), sticks.val()
    assert first == again
    assert sticks.kl() == {"kl_start": 0.0}
    assert json.loads((tmp_path / "start.jsonl").read_text().splitlines()[0])["answer"]
    assert sorted(first) == ["val/entropy", "val/feasible", "val/optimal", "val/reward"]
