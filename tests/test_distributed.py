"""Training with several processes: as with one, of the same global batch; and what cannot be done
there is one sentence."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from running import ROOT, python, refusal_of, rows_in
from safetensors.torch import load_file
from tiny import LORA, RECIPE, save_model, training_for, write_recipe

from data import make
from data.common.files import stage_facts
from data.sections import RewardSection
from pipeline.model import processes
from pipeline.train.backend import Backend, choose_backend
from pipeline.train.trainer import check_groups

CONFIGS = sorted((ROOT / "pipeline" / "accelerate").glob("*.yaml"))
#: Largest difference between the weights that one process and two end with, as a share of what
#: training changed: floating-point sums in another order, which Adam's root blows up where a
#: gradient is near 0. Measured: 3e-7 after SFT, 1e-6 after GRPO.
TOLERANCE = 1e-4
STEPS = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "warmup_steps": 0}


def written(folder, name, batch):
    """A recipe of ``batch`` texts a process, its data made."""
    (folder / name).mkdir()
    tier = {"train": 16, "val": 1, "test": 1, "events": [3, 4]}
    steps = {**STEPS, "per_device_train_batch_size": batch}
    stages = {stage: {**RECIPE[stage], **steps} for stage in ("sft", "grpo")}
    data = {"main": "dense", "tiers": {"dense": tier}}
    model = folder / "model"
    recipe = write_recipe(folder / name, model, name=name, lora=LORA, data=data, **stages)
    make.run(recipe, force=False)
    return recipe


def run(*arguments, processes=1):
    """A program on the CPU, launched in several processes where there are several."""
    launch = ["-m", "pipeline.launch", "--config_file", CONFIGS[0]]
    launch += ["--num_processes", processes, "--main_process_port", "0"]
    launch = launch if processes > 1 else []
    return python(*launch, *arguments, cwd=Path(), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_of_the_same_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", "qwen3")
    one, two = written(tmp_path, "one", 8), written(tmp_path, "two", 4)
    program = ROOT / "tests" / "replayed.py"
    done = {}
    for recipe, count in ((one, 1), (two, 2)):
        done[count] = run(program, recipe.path, processes=count)
        assert done[count].returncode == 0, done[count].stderr[:3000]
    before = load_file(tmp_path / "model" / "model.safetensors")
    for arm in ("sft", "grpo"):
        ends = [load_file(f"{each.run.model(arm)}/model.safetensors") for each in (one, two)]
        assert ends[0].keys() == ends[1].keys() == before.keys()
        apart = sum(float((ends[0][name] - ends[1][name]).square().sum()) for name in before)
        moved = sum(float((ends[0][name] - before[name]).square().sum()) for name in before)
        assert moved > 0
        assert (apart / moved) ** 0.5 < TOLERANCE
        logs = [rows_in(each.run.log(arm)) for each in (one, two)]
        assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
        for rows in zip(*logs, strict=True):
            for key in rows[0].keys() & {"loss", "grad_norm", "reward", "entropy"}:
                assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-3, abs=1e-5), key
        rewards = [row["reward"] for row in logs[0] if "reward" in row]
        assert arm == "sft" or len(set(rewards)) > 1
        settings = stage_facts(two.run.stage(arm))["settings"]
        assert settings["processes"] == {"count": 2, "strategy": "ddp"}
        assert (two.run.adapter(arm) / "adapter_model.safetensors").is_file()
        assert not (two.run.stage(arm) / "checkpoints").exists()
    # Interrupted, resumed, found done, gone on from: each said once, by the main process.
    for said in ("going on from", "sft: up to date", "grpo: trained by", "step 4/4  loss"):
        counts = [done[count].stdout.count(said) for count in (1, 2)]
        assert counts[0] == counts[1] > 0, (said, counts)


@pytest.fixture
def several(monkeypatch):
    """As the second of four processes finds its environment."""
    choose_backend.cache_clear()
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    yield monkeypatch
    choose_backend.cache_clear()


def test_one_process_decides_for_itself():
    assert processes.count() == 1
    assert processes.is_main()
    assert processes.layout() == {}
    assert processes.by_main(lambda: 7) == 7


def test_several_processes_are_part_of_what_a_stage_depends_on(several):
    assert not processes.is_main()
    assert processes.layout() == {"processes": {"count": 4, "strategy": "ddp"}}
    several.setenv("ACCELERATE_USE_FSDP", "true")
    assert processes.layout()["processes"]["strategy"] == "fsdp"
    assert processes.cuts_weights()


@pytest.mark.parametrize(("stage", "cuts"), [("2", False), ("3", True)])
def test_only_the_third_stage_of_zero_cuts_weights(several, stage, cuts):
    several.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    several.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    assert processes.strategy() == f"zero{stage}"
    assert processes.cuts_weights() == cuts


@pytest.mark.parametrize(("shape", "batch"), [("ranked", 8), ("graded", 2), ("ranked", 2)])
def test_a_reward_by_comparison_needs_whole_groups_in_each_process(several, shape, batch):
    args = SimpleNamespace(
        per_device_train_batch_size=batch, steps_per_generation=1, num_generations=4
    )
    section = RewardSection(shape)
    if (shape, batch) != ("ranked", 2):
        check_groups("r.yaml", section, args)
        return
    named = ("r.yaml: ", "4 processes", "whole groups of 4", "2 answers")
    refusal_of(lambda: check_groups("r.yaml", section, args), *named)


def test_unsloth_trains_in_one_process_only(several):
    several.setattr("torch.cuda.is_available", lambda: True)
    assert choose_backend("auto") == Backend("trl", "there are 4 processes")
    refusal_of(lambda: choose_backend("unsloth"), "there are 4 processes; BACKEND=trl")


def test_quantised_weights_are_not_cut_up(several, tmp_path):
    several.setenv("ACCELERATE_USE_FSDP", "true")
    training = training_for(write_recipe(tmp_path, "any", bits=4, lora=LORA, backend="trl"))
    refusal_of(training.start_backend, "quantised weights are not cut up")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_configuration(path, monkeypatch):
    arguments = ["--config_file", str(path), "-m", "pipeline.sft"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert parsed.num_processes == 2
    if parsed.use_deepspeed:
        parsed.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(parsed)
    else:
        environment = prepare_multi_gpu_env(parsed)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.strategy() == path.stem
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
    if path.stem == "fsdp":
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.cpu_ram_efficient_loading) == (2, False)
        assert plugin.state_dict_type.name == "FULL_STATE_DICT"
