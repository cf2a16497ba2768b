"""The command line: every flag explained, every mistake one sentence, every target listed."""

import argparse
import errno
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from data import recipe
from data.common.errors import UserError, run_main
from pipeline.model import processes

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
STAGES = (
    "data.make",
    "rewards.audit",
    "pipeline.train.settings",
    "pipeline.sft",
    "pipeline.grpo",
    "pipeline.rejection",
    "pipeline.arms",
    "pipeline.base",
    "pipeline.plan",
    "pipeline.model.lengths",
    "pipeline.backends",
    "pipeline.gpu_check",
    "pipeline.measure",
    "pipeline.doctor",
    "eval.sample",
    "eval.score",
    "eval.judge",
    "eval.elicitation",
    "eval.export",
    "eval.blog",
    "eval.day.ask",
    "eval.compare",
    "eval.report",
    "eval.probe",
    "eval.calibrate",
    "eval.bench",
)
OWN_FLAGS = (
    "pipeline.doctor",
    "pipeline.base",
    "pipeline.gpu_check",
    "pipeline.measure",
    "eval.score",
    "eval.calibrate",
)
#: Stages of a recipe, with the flags that all of them take.
OF_A_RECIPE = tuple(stage for stage in STAGES if stage not in OWN_FLAGS)
#: What a stage of a recipe needs beside it.
NEEDED = {"pipeline.rejection": ("--arm", "rejection")}
TINY = ROOT / "pipeline" / "recipes" / "tiny.yaml"


class Parsed(BaseException):
    """Stops a stage where it has its flags."""


def parser_of(stage: str, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a stage's ``main`` builds."""
    found = []

    def parse_args(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        importlib.import_module(stage).main()
    return found[0]


def ending(stage: str, monkeypatch, *arguments: object) -> str:
    """What a stage says when a mistake ends it, run as ``python -m stage`` would."""
    monkeypatch.setattr(sys, "argv", [stage, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run_main(importlib.import_module(stage).main)
    # A text is printed to stderr by the interpreter, which then exits with 1.
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith("error: ")
    assert "\n" not in ended.value.code
    return ended.value.code.removeprefix("error: ")


def python(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


# --- help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does_and_explains_every_flag(stage, monkeypatch):
    parser = parser_of(stage, monkeypatch)
    assert parser.description
    assert "\n" not in parser.description
    for action in parser._actions:
        assert action.help, f"{stage} {action.option_strings} has no help"
    # A stray % in a help text would only come to light here.
    assert all(flag in parser.format_help() for flag in parser._option_string_actions)


@pytest.mark.parametrize("stage", OF_A_RECIPE)
def test_every_stage_of_a_recipe_takes_the_same_flags(stage, monkeypatch):
    flags = parser_of(stage, monkeypatch)._option_string_actions
    assert {"--recipe", "--model", "--run", "--force"} <= flags.keys()


def test_help_is_printed_and_ends_well():
    done = python("data.make", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert "--recipe RECIPE" in done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_turns_mistakes_into_sentences(stage):
    source = (ROOT / (stage.replace(".", "/") + ".py")).read_text()
    assert source.rstrip().endswith('if __name__ == "__main__":\n    run_main(main)')


# --- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", OF_A_RECIPE)
def test_a_missing_recipe_ends_every_stage_with_one_sentence(stage, monkeypatch):
    path = TINY.with_name("tinny.yaml")
    says = ending(stage, monkeypatch, "--recipe", path, *NEEDED.get(stage, ()))
    assert says.startswith(f"recipe {path} does not exist")
    assert "'tiny'" in says


@pytest.mark.parametrize("stage", OF_A_RECIPE)
def test_a_wrong_recipe_ends_every_stage_with_one_sentence(stage, monkeypatch, tmp_path):
    path = tmp_path / "r.yaml"
    content = yaml.safe_load(TINY.read_text())
    path.write_text(yaml.safe_dump({**content, "sede": 3}))
    says = ending(stage, monkeypatch, "--recipe", path, *NEEDED.get(stage, ()))
    assert says == f"{path}: unknown key 'sede'; did you mean 'seed'?"


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("pipeline.sft", "data/train.jsonl does not exist or is not finished; `make data`"),
        ("pipeline.grpo", "sft/model is not finished; `make sft`"),
        ("eval.sample", "data/test.jsonl does not exist or is not finished; `make data`"),
    ],
)
def test_a_stage_without_what_it_needs_ends_with_one_sentence(
    stage, missing, monkeypatch, tmp_path
):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    says = ending(stage, monkeypatch, "--recipe", TINY, "--model", tmp_path)
    assert says.startswith(f"{tmp_path / 'tiny'}/{missing}")


@pytest.mark.parametrize(
    ("stage", "arguments", "says"),
    [
        ("data.make", ["--recipe", TINY, "--workers", "0"], "--workers must be 1 or more"),
        ("data.make", ["--recipe", TINY, "--run", "a/b"], "run name 'a/b' must be letters"),
        ("eval.sample", ["--recipe", TINY, "--arm", "gpro"], "--arm must be one of base, sft"),
        ("pipeline.sft", ["--recipe", TINY, "--arm", "sfd"], f"{TINY}: arms has no 'sfd' (it has "),
        ("pipeline.grpo", ["--recipe", TINY, "--arm", "gpro"], f"{TINY}: arms has no 'gpro'"),
        ("pipeline.rejection", ["--recipe", TINY, "--arm", "rft"], f"{TINY}: arms has no 'rft'"),
        (
            "eval.score",
            ["--problems", "nope.jsonl", "--completions", TINY],
            "nope.jsonl does not exist",
        ),
    ],
)
def test_a_wrong_flag_is_one_sentence(stage, arguments, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ending(stage, monkeypatch, *arguments).startswith(says)


def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(tmp_path):
    done = python("data.make", "--recipe", "nope.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: recipe nope.yaml does not exist\n"


def test_a_full_disk_is_one_sentence(monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    monkeypatch.setattr("os.fsync", full)
    says = ending("data.make", monkeypatch, "--recipe", TINY, "--workers", "1")
    assert says == "the disk is full; make room, then the same command goes on"
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_folder_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "tiny").write_text("a file where the run's folder should be")
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    says = ending("data.make", monkeypatch, "--recipe", TINY, "--workers", "1")
    assert says.startswith(f"{tmp_path / 'tiny'}")
    assert "cannot be used" in says


# --- Ctrl-C --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait", [0.0, 0.1, 0.4], ids=["at the start", "while work is handed in", "in the middle"]
)
def test_an_interrupt_ends_all_processes_with_one_line(tmp_path, wait):
    """Ctrl-C reaches the workers too: none may print a traceback, or be waited for in vain."""
    content = yaml.safe_load(TINY.read_text())
    content["data"]["tiers"] = {"dense": {"train": 100_000, "val": 1, "test": 1}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    process = subprocess.Popen(
        [sys.executable, "-m", "data.make", "--recipe", "r.yaml", "--workers", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "runs" / "tiny" / "data"
    try:
        while not (folder / "begun.json").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)
        out, said = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):  # a worker may outlive what started it
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out) == (130, "")
    assert said == "\ninterrupted; what was finished is kept, the same command goes on\n"
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("stage", ["data.make", "rewards.audit", "pipeline.sft", "eval.sample"])
def test_an_interrupt_while_modules_are_imported_ends_a_stage_without_a_traceback(stage, tmp_path):
    """That is most of a stage's first seconds; the module stands for all that is imported."""
    program = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "yaml.py").write_text(program)
    done = python(stage, "--recipe", TINY, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_imported_as_a_library_it_leaves_interrupts_alone():
    program = "import signal, data, pipeline, eval, rewards; print(signal.getsignal(2).__name__)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "default_int_handler\n"


# --- several processes ---------------------------------------------------------------------


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.fixture
def another(monkeypatch):
    """This process is the third of a training; how long it waits for the main one."""
    waits: list[float] = []
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr("time.sleep", waits.append)
    return waits


def test_of_several_processes_the_main_one_has_the_first_word(another, monkeypatch):
    """It says the mistake of all, and the others are ended; who is left says its own."""
    with pytest.raises(SystemExit, match="error: too long") as ended:
        run_main(raising(UserError("too long")))
    assert ended.value.code == "error: too long"
    assert len(another) == 1
    assert another[0] >= 10
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit, match="error: too long"):
        run_main(raising(UserError("too long")))
    assert len(another) == 1


def test_of_several_processes_the_main_one_alone_speaks_of_an_interrupt(another, capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(raising(KeyboardInterrupt()))
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""
    assert another == []


@pytest.mark.parametrize(
    ("exitcode", "code"),
    [
        (1, 1),
        (130, 130),
        (-9, "error: process 1 was killed (SIGKILL, as when memory runs out)"),
        (-15, "error: process 1 was killed (SIGTERM)"),
    ],
)
def test_a_launch_ends_as_the_first_process_did_that_failed(exitcode, code, monkeypatch):
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=exitcode, error_file="none")
    failed = raising(ChildFailedError("pipeline.sft", {1: failure}))
    monkeypatch.setattr("accelerate.commands.launch.launch_command", lambda _: failed())
    monkeypatch.setattr(sys, "argv", ["processes", "--num_processes", "2", "-m", "pipeline.sft"])
    with pytest.raises(SystemExit) as ended:
        run_main(processes.main)
    assert ended.value.code == code


# --- make ----------------------------------------------------------------------------------


SETTINGS = re.findall(r"^([A-Z]+) *\?=", MAKEFILE, re.MULTILINE)


def run_make(*arguments: str) -> subprocess.CompletedProcess:
    # Not with what an outer make, which runs the tests, was given.
    given = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", *SETTINGS)
    environment = {key: value for key, value in os.environ.items() if key not in given}
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def make(*arguments: str) -> str:
    done = run_make(*arguments)
    done.check_returncode()
    return done.stdout


def flags(line: str) -> dict[str, str]:
    """The flags of a command, as the shell that make starts hands them on."""
    words = shlex.split(line)
    return {word: after for word, after in pairwise([*words, ""]) if word.startswith("--")}


PHONY = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def test_make_help_lists_every_target_with_one_line():
    *lines, last = make("help").splitlines()
    found = [re.fullmatch(r"  make ([a-z-]+) +\S.*", line) for line in lines]
    assert [match and match[1] for match in found] == PHONY
    assert {"data", "sft", "grpo", "eval", "base", "bench", "test", "setup"} <= set(PHONY)
    named = re.findall(r"([A-Z]+)=", last)
    assert {"RECIPE", "MODEL", "RUN", "FORCE"} <= set(named)
    explained = [line for line in MAKEFILE.splitlines()[:15] if line.startswith("#")]
    for name in named:
        assert any(f"{name}=" in line for line in explained), name


def test_make_alone_is_make_help():
    assert make() == make("help")


def test_every_module_that_a_target_runs_is_there():
    modules = re.findall(r"(?:-m|\$\(TRAIN\)) ((?:data|pipeline|eval|rewards)\.\w+)", MAKEFILE)
    assert set(modules) <= set(STAGES)
    # Verdicts on anybody's answers, and what `make arms` runs for an arm that asks for it.
    assert set(STAGES) - {"eval.score", "pipeline.rejection"} == set(modules)


def test_the_default_recipe_is_tiny_and_that_of_an_experiment_its_own():
    for target in ("data", "audit", "sft", "grpo", "arms", "eval"):
        assert "--recipe 'pipeline/recipes/tiny.yaml'" in make("-n", target)
    for target, name in (("ablate", "ablation"), ("elicit", "elicitation"), ("skills", "skills")):
        said = make("-n", target)
        assert set(re.findall(r"--recipe '(\S+)'", said)) == {f"pipeline/recipes/{name}.yaml"}
        modules = re.findall(r"(?:-m|\$\(TRAIN\)) ((?:data|pipeline|eval)\.\w+)", said)
        evaluated = [stage for stage in modules if stage != "eval.compare"][-3:]
        assert evaluated == ["eval.sample", "eval.judge", "eval.elicitation"]
        assert {"data.make", "pipeline.arms"} < set(modules)
    assert "--recipe 'other.yaml'" in make("-n", "ablate", "RECIPE=other.yaml")
    assert TINY.is_file()


def test_unsound_reaches_grpo_alone():
    assert "--unsound" in make("-n", "grpo", "UNSOUND=1")
    assert "--unsound" not in make("-n", "grpo")
    assert make("-n", "sft", "grpo", "UNSOUND=1").count("--unsound") == 1


@pytest.mark.parametrize("target", ["data", "audit", "sft", "grpo", "arms", "eval"])
def test_model_run_and_force_reach_every_stage(target):
    lines = make("-n", target, "MODEL=m", "RUN=r", "FORCE=1").splitlines()
    for line in lines:
        if "recipe" in line:
            assert line.endswith("--model 'm' --run 'r' --force")
    assert any("recipe" in line for line in lines)
    plain = make("-n", target)
    assert not any(flag in plain for flag in ("--model", "--run", "--force"))
    assert "--recipe 'other.yaml'" in make("-n", target, "RECIPE=other.yaml")


ODD = "my models, Anna's  (1)/x"
TRAINING = ("sft", "grpo", "arms", "ablate")


@pytest.mark.parametrize(
    "target",
    ["data", "audit", "sft", "grpo", "arms", "eval", "report", "plan", "probe", "try", "ablate"],
)
@pytest.mark.parametrize("launch", ["", "--num_processes 2"])
def test_names_with_blanks_and_quotes_arrive_as_they_were_given(target, launch):
    given = [f"{name}={ODD}" for name in ("MODEL", "RECIPE", "RUN")]
    given += [f"LAUNCH={launch}"] if target in TRAINING else []
    commands = [c for c in make("-n", target, *given).splitlines() if c]
    assert commands
    for command in commands:
        found = flags(command)
        assert [found[f"--{name}"] for name in ("model", "recipe", "run")] == [ODD] * 3, command


def test_other_names_with_blanks_and_quotes_arrive_too():
    for target, name, flag in (
        ("try", "DAY", "--day"),
        ("sample", "ARM", "--arm"),
        ("export", "OUT", "--out"),
        ("doctor", "LOG", "--log"),
        ("doctor", "RUN", "--run"),
        ("doctor", "RECIPE", "--recipe"),
        ("base", "FROM", "--from"),
        ("gpu-check", "RECIPE", "--recipe"),
    ):
        assert flags(make("-n", target, f"{name}={ODD}"))[flag] == ODD, (target, name)


def test_the_published_experiment_has_a_recipe_of_its_own_after_the_first_command():
    first, *rest = make("-n", "blog", f"BLOG={ODD}", f"MODEL={ODD}").splitlines()
    assert flags(first)["--begin"] == "runs/blog/recipe.yaml"
    stages = [line for line in rest if " -m " in line]
    assert {flags(line)["--recipe"] for line in stages} == {"runs/blog/recipe.yaml"}
    assert {flags(line)["--model"] for line in (first, *stages)} == {ODD}
    assert flags(first)["--files"] == flags(stages[-1])["--files"] == ODD


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "MEASURE=1", "MODEL=m"], "make plan MEASURE=1 takes no MODEL: it measures a"),
        (["plan", "MEASURE=1", "GPU=24"], "make plan MEASURE=1 takes no GPU: "),
        (["plan", "MEASURE=1", "RECIPE=r"], "make plan MEASURE=1 takes no RECIPE: "),
        (["gpu-check", "MODEL=m"], "make gpu-check takes no MODEL: it makes models of its own"),
        (["eval", "SHARD=2/4"], "make eval takes no SHARD: it is of make sample"),
        (["eval", "ARM=sft"], "make eval takes no ARM: it is of make sample try export probe"),
        (["calibrate", "FORCE=1"], "make calibrate takes no FORCE: it is of make data audit "),
        (["arms", "UNSOUND=1"], "make arms takes no UNSOUND: it is of make grpo"),
        (["data", "eval", "LAUNCH=x"], "make data eval takes no LAUNCH: it is of make sft grpo "),
        (["try", "SHARD=1/2", "ARM=sft"], "make try takes no SHARD: "),
        (["RUN=r"], "make help takes no RUN: "),
        (["data", "MODLE=m"], "there is no MODLE= here; there are RECIPE MODEL "),
        (["help", "recipe=r"], "there is no recipe= here; there are RECIPE MODEL "),
    ],
)
def test_what_make_would_pass_over_is_one_sentence(arguments, says):
    done = run_make("-n", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"*** {says}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_setting_is_for_those_of_several_goals_that_take_it():
    *sampled, asked = make("-n", "eval", "try", "ARM=sft").splitlines()
    assert not any("--arm" in line for line in sampled)
    assert flags(asked)["--arm"] == "sft"
    first, second = make("-n", "data", "sft", "LAUNCH=--num_processes 2").splitlines()[-2:]
    assert "pipeline.model.processes" not in first
    assert "pipeline.model.processes --num_processes 2 -m pipeline.sft" in second
    # Nothing given is nothing passed over.
    assert make("-n", "eval", "ARM=", "SHARD=") == make("-n", "eval")


def test_a_make_in_a_make_is_not_given_what_only_the_outer_one_takes():
    said = run_make("-n", "blog", "try", f"BLOG={ODD}", "ARM=grpo", "FORCE=1")
    assert (said.returncode, said.stderr) == (0, "")


def test_what_programs_read_from_their_environment_may_be_set_through_make():
    named = ["CUDA_VISIBLE_DEVICES=1", "OMP_NUM_THREADS=1"]
    assert make("-n", "lint", *named) == make("-n", "lint")


def test_the_measurements_on_a_gpu_take_what_they_can():
    assert not flags(make("-n", "gpu-check")).keys() - {"-m"}
    given = ["BACKEND=trl", "BITS=4", "RECIPE=r.yaml", "FORCE=1", "SHAPES=a b", "MINUTES=9"]
    command = shlex.split(make("-n", "gpu-check", *given))
    assert (
        " ".join(command[command.index("pipeline.gpu_check") + 1 :])
        == "--shapes a b --minutes 9 --backends trl --bits 4 --recipe r.yaml --force"
    )


def test_every_goal_takes_the_settings_that_its_commands_read():
    """A goal that is added, and left out of the Makefile's table, would refuse its own."""
    goals = dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
    taking = [goal for goal, body in goals.items() if "$(STAGE)" in body]
    assert {"data", "grpo", "bench", "backends", "plan"} <= set(taking)
    for goal in taking:
        said = run_make("-n", goal, "RECIPE=r.yaml", "MODEL=m", "RUN=r", "FORCE=1", "BITS=16")
        assert said.returncode == 0, said.stderr


def test_every_setting_of_make_is_known_to_it():
    """One that the Makefile reads, and does not name, would be refused."""
    named = set(SETTINGS)
    goals = dict(re.findall(r"^of_([A-Z]+) *= (.*)$", MAKEFILE, re.MULTILINE))
    assert named - {"PYTHON"} == goals.keys()
    assert {word for of in goals.values() for word in of.split() if word[0] != "$"} <= set(PHONY)
    read = set(re.findall(r"(?:flag|on),\w+,\$\(([A-Z]+)\)", MAKEFILE))
    assert {"MODEL", "DAY", "OUT", "FROM", "UNSOUND"} <= read <= named
