"""The Makefile: settings reach the commands as flags, and no mistake is silent."""

import os
import re
import shlex
import subprocess
from functools import cache
from itertools import pairwise

import pytest
from running import ROOT
from test_command_line import STAGES

from data.common.flags import named

#: Commands without a goal of their own: for an arm that asks for it, for developers, for LAUNCH=.
WITHOUT_GOAL = {"pipeline.rejection", "pipeline.launch"}
ODD = "my models, Anna's  (1)/x"


@cache
def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``make -n`` as from a shell, not with what an outer make, which runs the tests, was given."""
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL")
    environment = {key: value for key, value in os.environ.items() if key not in outer}
    command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def commands(*arguments: str) -> list[str]:
    """The commands of the house that a call of make would run."""
    done = run_make(*arguments)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if re.search(" -m (?!pip |venv)", line)]


def flags(line: str) -> dict[str, str]:
    """The flags of a command, as the shell that make starts hands them on."""
    words = shlex.split(line)
    return {word: after for word, after in pairwise([*words, ""]) if word.startswith("--")}


def test_every_command_has_a_goal_that_runs_it_and_that_help_lists():
    command = ["make", "--no-print-directory", "-C", str(ROOT), "help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    goals = [line.split()[1] for line in shown.splitlines() if line.startswith("  make ")]
    lines = [line for goal in goals for line in commands(goal)]
    run = {word for line in lines for word in shlex.split(line) if word in STAGES}
    assert run == set(STAGES) - WITHOUT_GOAL


@pytest.mark.parametrize(
    ("goal", "recipe"),
    [("data", "tiny"), ("eval", "tiny"), ("ablate", "ablation"), ("elicit", "elicitation"),
     ("skills", "skills"), ("sick", "sick")],
)  # fmt: skip
def test_the_default_recipe_is_tiny_and_that_of_an_experiment_its_own(goal, recipe):
    named = [flags(line).get("--recipe") for line in commands(goal)]
    assert set(named) - {None} == {f"pipeline/recipes/{recipe}.yaml"}
    named = [flags(line).get("--recipe") for line in commands(goal, "RECIPE=other.yaml")]
    assert set(named) - {None} == {"other.yaml"}


@pytest.mark.parametrize(
    "goal", ["data", "audit", "sft", "grpo", "arms", "eval", "plan", "try", "ablate"]
)
def test_settings_of_an_experiment_reach_every_command_as_they_were_given(goal):
    given = {"MODEL": ODD, "RECIPE": ODD, "RUN": ODD, "BACKEND": "trl", "BITS": "4"}
    lines = commands(goal, *(f"{name}={value}" for name, value in given.items()), "FORCE=1")
    assert lines
    for line in lines:
        assert {name: flags(line)[f"--{name.lower()}"] for name in given} == given
        assert all(named(f"--{name.lower()}").startswith(f"{name}=") for name in given)
        assert "--force" in flags(line)
    assert not any("--model" in line or "--force" in line for line in commands(goal))


@pytest.mark.parametrize(
    ("goal", "name", "flag"),
    [
        ("try", "DAY", "--day"),
        ("try", "RULE", "--rule"),
        ("base", "OUT", "--out"),
        ("doctor", "LOG", "--log"),
        ("base", "FROM", "--from"),
        ("plan", "GPU", "--gpu"),
        ("plan", "PRICE", "--price"),
        ("probe", "ARM", "--arm"),
        ("try", "DATE", "--date"),
        ("doctor", "TRUTH", "--truth"),
        ("score", "PROBLEMS", "--problems"),
        ("score", "COMPLETIONS", "--completions"),
        ("published", "BLOG", "--blog"),
    ],
)
def test_a_setting_of_one_goal_reaches_its_command(goal, name, flag):
    assert flags(commands(goal, f"{name}={ODD}")[0])[flag] == ODD
    assert named(flag) == f"{name}= ({flag})", "messages name it in both ways"


def test_a_log_and_a_run_both_reach_the_doctor_which_refuses_the_two():
    given = flags(commands("doctor", "LOG=l", "RUN=r")[0])
    assert (given["--log"], given["--run"]) == ("l", "r")


def test_a_training_can_be_launched_in_several_processes_and_nothing_else():
    lines = commands("data", "sft", "LAUNCH=--num_processes 2")
    launched = [line for line in lines if "--num_processes 2 -m" in line]
    assert [line for line in lines if "pipeline.sft" in line] == launched


def test_the_published_answers_are_shown_to_the_last_command_alone():
    *lines, last = commands("blog", f"BLOG={ODD}")
    assert {flags(line)["--recipe"] for line in (*lines, last)} == {flags(last)["--recipe"]}
    assert flags(last)["--blog"] == ODD
    assert not any("--blog" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["eval", "ARM=sft"], "ARM"),
        (["calibrate", "FORCE=1"], "FORCE"),
        (["data", "FORCE=0"], "FORCE"),
        (["data", "eval", "LAUNCH=x"], "LAUNCH"),
        (["RUN=r"], "RUN"),
        (["data", "MODLE=m"], "MODLE"),
        (["help", "recipe=r"], "recipe"),
    ],
)
def test_a_setting_that_no_goal_takes_so_is_one_sentence_that_names_it(arguments, name):
    done = run_make(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name}=" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("goal", "near"), [("grop", "grpo"), ("doctr", "doctor"), ("zzz", None)])
def test_a_misspelt_goal_is_one_sentence_before_anything_runs(goal, near):
    done = run_make("data", goal)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "make help" in done.stderr
    assert near is None or f"`make {near}`" in done.stderr


def test_a_setting_of_one_goal_may_stand_beside_other_goals():
    *sampled, asked = commands("eval", "try", "ARM=sft")
    assert not any("--arm" in line for line in sampled)
    assert flags(asked)["--arm"] == "sft"
    assert commands("eval", "ARM=") == commands("eval")
