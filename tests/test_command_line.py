"""The command line: every flag explained, every mistake one sentence, every target listed."""

import argparse
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from data import recipe
from data.errors import run_main

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
STAGES = (
    "data.make",
    "rewards.audit",
    "pipeline.settings",
    "pipeline.sft",
    "pipeline.grpo",
    "pipeline.arms",
    "pipeline.base",
    "pipeline.plan",
    "pipeline.lengths",
    "pipeline.parity",
    "pipeline.gpu_check",
    "pipeline.measure",
    "pipeline.doctor",
    "eval.sample",
    "eval.score",
    "eval.report",
    "eval.elicitation",
    "eval.export",
    "eval.blog",
    "eval.ask",
    "eval.compare",
    "eval.page",
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
    says = ending(stage, monkeypatch, "--recipe", path)
    assert says.startswith(f"recipe {path} does not exist")
    assert "'tiny'" in says


@pytest.mark.parametrize("stage", OF_A_RECIPE)
def test_a_wrong_recipe_ends_every_stage_with_one_sentence(stage, monkeypatch, tmp_path):
    path = tmp_path / "r.yaml"
    content = yaml.safe_load(TINY.read_text())
    path.write_text(yaml.safe_dump({**content, "sede": 3}))
    says = ending(stage, monkeypatch, "--recipe", path)
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
        # Tests started in the background inherit an ignored SIGINT; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


# --- make ----------------------------------------------------------------------------------


def make(*arguments: str) -> str:
    # Not with what an outer make, which runs the tests, was given.
    given = ("MAKEFLAGS", "MAKEOVERRIDES", "RECIPE", "MODEL", "RUN", "FORCE", "FROM", "UNSOUND")
    environment = {key: value for key, value in os.environ.items() if key not in given}
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


PHONY = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def test_make_help_lists_every_target_with_one_line():
    lines = make("help").splitlines()
    found = [re.fullmatch(r"  make ([a-z-]+) +\S.*", line) for line in lines]
    assert [match and match[1] for match in found] == PHONY
    assert {"data", "sft", "grpo", "eval", "base", "bench", "test", "setup"} <= set(PHONY)


def test_make_alone_is_make_help():
    assert make() == make("help")


def test_every_module_that_a_target_runs_is_there():
    modules = re.findall(r"(?:-m|\$\(TRAIN\)) ((?:data|pipeline|eval|rewards)\.\w+)", MAKEFILE)
    assert set(modules) <= set(STAGES)
    assert set(STAGES) - {"eval.score"} == set(modules)


def test_the_default_recipe_is_tiny_and_that_of_an_experiment_its_own():
    for target in ("data", "audit", "sft", "grpo", "arms", "eval"):
        assert "--recipe pipeline/recipes/tiny.yaml" in make("-n", target)
    for target, name in (("ablate", "ablation"), ("elicit", "elicitation"), ("skills", "skills")):
        said = make("-n", target)
        assert set(re.findall(r"--recipe (\S+)", said)) == {f"pipeline/recipes/{name}.yaml"}
        modules = re.findall(r"(?:-m|\$\(TRAIN\)) ((?:data|pipeline|eval)\.\w+)", said)
        evaluated = [stage for stage in modules if stage != "eval.compare"][-3:]
        assert evaluated == ["eval.sample", "eval.report", "eval.elicitation"]
        assert {"data.make", "pipeline.arms"} < set(modules)
    assert "--recipe other.yaml" in make("-n", "ablate", "RECIPE=other.yaml")
    assert TINY.is_file()


def test_unsound_reaches_grpo_alone():
    assert "--unsound" in make("-n", "grpo", "UNSOUND=1")
    assert "--unsound" not in make("-n", "grpo")
    assert "--unsound" not in make("-n", "sft", "UNSOUND=1")


@pytest.mark.parametrize("target", ["data", "audit", "sft", "grpo", "arms", "eval"])
def test_model_run_and_force_reach_every_stage(target):
    for line in make("-n", target, "MODEL=m", "RUN=r", "FORCE=1").splitlines():
        if "recipe" in line:
            assert line.rstrip().endswith("--model m --run r --force")
    assert "--model m" in make("-n", target, "MODEL=m")
    plain = make("-n", target)
    assert not any(flag in plain for flag in ("--model", "--run", "--force"))
    assert "--recipe other.yaml" in make("-n", target, "RECIPE=other.yaml")
