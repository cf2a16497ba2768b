"""The command line: every flag explained, every mistake one sentence, every target listed."""

import argparse
import importlib
import signal
import sys
import time

import pytest
from rich.console import Console
from running import ROOT, TINY, python, raising
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from data import recipe
from data.common.console import paced, say
from data.common.errors import UserError, run_main
from data.run import goal

#: Every file at the top of ``pipeline`` and ``eval`` is a command; data and rewards have one each.
STAGES = (
    "data.make",
    "rewards.audit",
    *(
        f"{package}.{path.stem}"
        for package in ("pipeline", "eval")
        for path in sorted((ROOT / package).glob("*.py"))
        if path.stem != "__init__"
    ),
)
#: Commands that run no recipe, or find theirs in another way.
OWN_FLAGS = (
    "pipeline.doctor", "pipeline.base", "pipeline.launch",
    "eval.score", "eval.calibrate",
)  # fmt: skip
#: Stages of a recipe, with the flags that all of them take.
OF_A_RECIPE = tuple(stage for stage in STAGES if stage not in OWN_FLAGS)
#: Those that need nothing of a run.
BEGINNING = (
    "data.make", "rewards.audit", "pipeline.check", "pipeline.plan", "pipeline.gpu_check",
    "eval.bench",
)  # fmt: skip
#: The flags that a stage needs beside its recipe.
NEEDED = {"pipeline.rejection": ("--arm", "rejection")}


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


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does_and_explains_every_flag(stage, monkeypatch):
    parser = parser_of(stage, monkeypatch)
    assert parser.description
    assert "\n" not in parser.description
    for action in parser._actions:
        assert action.help, f"{stage} {action.option_strings} has no help"
    # A stray % in a help text would only come to light here.
    flags, shown = parser._option_string_actions.keys(), parser.format_help()
    assert all(flag in shown for flag in flags)
    assert "default: None" not in shown
    assert "default: False" not in shown
    assert stage in OWN_FLAGS or {"--recipe", "--model", "--run", "--force"} <= flags


@pytest.mark.parametrize("stage", OF_A_RECIPE)
def test_a_missing_recipe_ends_every_stage_with_one_sentence(stage, mistake_of):
    path = TINY.with_name("tinny.yaml")
    says = mistake_of(stage, "--recipe", path, *NEEDED.get(stage, ()))
    assert says.startswith(f"recipe {path} does not exist")
    assert "'tiny'" in says


@pytest.mark.parametrize(
    ("split", "stage"),
    [
        *(("train", stage) for stage in ("pipeline.sft", "pipeline.grpo", "eval.probe")),
        *(("test", stage) for stage in ("eval.sample", "eval.report", "eval.mend")),
    ],
)
def test_a_stage_says_in_one_sentence_what_it_lacks_first_and_how_to_make_it(
    split, stage, mistake_of, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    (tmp_path / "own").mkdir()
    says = mistake_of(stage, "--recipe", TINY, "--run", "own")
    lacks = f"{tmp_path}/own/data/{split}.jsonl does not exist or is not finished"
    assert says.startswith(f"{lacks}; `make data RECIPE={TINY} RUN=own`")
    assert capsys.readouterr().out == "", "nothing that comes later is said before"


@pytest.mark.parametrize(
    ("stage", "given", "way_out"),
    [
        ("data", [], "`make data`"),
        ("data", ["--recipe", "tiny", "--force"], "`make data`"),
        ("eval", ["--recipe", "pipeline/recipes/tiny.yaml", "--run", "r"], "`make eval RUN=r`"),
        ("eval", ["--rec", "gpu", "--ru=r", "--run", "s"], "`make eval RECIPE=gpu RUN=s`"),
        (
            "sft",
            ["--arm", "x", "--recipe=a b.yaml", "--bits", "4", "--model", "m", "--backend", "trl"],
            "`make sft RECIPE='a b.yaml' MODEL=m BACKEND=trl BITS=4`",
        ),
    ],
)
def test_a_way_out_stays_in_the_run_that_was_asked_for(stage, given, way_out, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage", *given])
    assert goal(stage) == way_out
    assert goal(stage, "FORCE=1") == f"{way_out[:-1]} FORCE=1`"


@pytest.mark.parametrize(
    "stage",
    [s for s in OF_A_RECIPE if s not in BEGINNING and s not in ("eval.try", *NEEDED)],
)
def test_a_misspelt_run_is_told_with_the_nearest_that_there_is(
    stage, mistake_of, monkeypatch, tmp_path
):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    (tmp_path / "warmer").mkdir()
    says = mistake_of(stage, "--recipe", TINY, "--run", "wamrer")
    assert says.startswith(f"{tmp_path / 'wamrer'} does not exist; `make data ")
    assert "'warmer'" in says


REQUIRED = "the following arguments are required"


@pytest.mark.parametrize(
    ("stage", "arguments", "says"),
    [
        ("data.make", ["--recipe", TINY, "--run", "a/b"], "run name 'a/b' must be letters"),
        ("eval.sample", ["--recipe", TINY, "--arm", "gpro"], "ARM= (--arm) must be one of base, b"),
        ("pipeline.sft", ["--recipe", TINY, "--arm", "sfd"], f"{TINY}: arms has no 'sfd' (it has "),
        ("pipeline.grpo", ["--recipe", TINY, "--arm", "gpro"], f"{TINY}: arms has no 'gpro'"),
        ("pipeline.rejection", ["--recipe", TINY, "--arm", "rft"], f"{TINY}: arms has no 'rft'"),
        ("pipeline.plan", ["--recipe", TINY, "--price", "dear"], "PRICE= (--price) must be a num"),
        ("eval.sample", ["--recipe", TINY, "--bits", "3"], "BITS= (--bits) must be one of 4, 16, "),
        ("eval.try", ["--recipe", TINY, "--answers", "few"], "--answers must be a whole number"),
        ("eval.try", ["--recipe", TINY, "--answers"], "--answers expected one argument"),
        ("pipeline.base", ["--thinking", "much"], "--thinking must be a number, not 'much'"),
        ("eval.judge", ["--recipe", TINY, "--fast"], "unrecognized arguments: --fast; --help (ARG"),
        ("eval.score", ["--problems", TINY], f"{REQUIRED}: COMPLETIONS= (--completions)"),
        ("eval.score", ["--problems"], "PROBLEMS= (--problems) expected one argument"),
        ("pipeline.plan", [], f"{REQUIRED}: RECIPE= (--recipe); --help (A"),
        ("pipeline.plan", ["--recipe", TINY, "--b", "4"], "ambiguous option: --b could match BAC"),
        ("eval.score", ["--problems", "n.jsonl", "--completions", TINY], "n.jsonl does not exist"),
    ],
)
def test_a_wrong_flag_is_one_sentence(stage, arguments, says, mistake_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert mistake_of(stage, *arguments).startswith(says)


@pytest.mark.parametrize("terminal", [True, False])
def test_sentences_break_at_words_in_a_terminal_and_nowhere_else(terminal, monkeypatch, capsys):
    sentence = "a recipe that [bold]nobody[/bold] has written does not exist"
    console = Console(width=20, force_terminal=terminal, color_system=None, highlight=False)
    say(console, sentence)
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(said) == sentence
    assert (max(map(len, said)) <= 20) == terminal
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with pytest.raises(SystemExit) as ended:
        run_main(raising(UserError(sentence)))
    assert ended.value.code.count("\n") == (3 if terminal else 0)


def test_a_long_work_says_from_its_first_seconds_on_what_time_is_left(monkeypatch, capsys):
    seconds = iter(range(0, 100, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    assert list(paced("abcdefg", 7, "work", " letters")) == list("abcdefg")
    assert capsys.readouterr().out.splitlines() == [
        "work: 2/7 letters  0:00:20 left",
        "work: 6/7 letters  0:00:04 left",
    ]


def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(tmp_path):
    done = python("-m", "data.make", "--recipe", "nope.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: recipe nope.yaml does not exist\n"


@pytest.mark.parametrize("stage", ["data.make", "pipeline.sft"])
def test_an_interrupt_while_modules_are_imported_ends_a_stage_without_a_traceback(stage, tmp_path):
    """That is most of a stage's first seconds; the module stands for all that is imported."""
    program = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "yaml.py").write_text(program)
    done = python("-m", stage, "--recipe", TINY, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("rank", "error", "ends", "waits"),
    [
        ("2", UserError("too long"), "error: too long", [30]),
        ("0", UserError("too long"), "error: too long", []),
        ("2", KeyboardInterrupt(), "130", []),
    ],
)
def test_of_several_processes_the_main_one_has_the_first_word(
    rank, error, ends, waits, monkeypatch, capsys
):
    """It says the mistake of all, and the others are ended; who is left says its own."""
    monkeypatch.setenv("RANK", rank)
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(SystemExit, match=ends):
        run_main(raising(error))
    assert (waited, capsys.readouterr().err) == (waits, "")


@pytest.mark.parametrize(
    ("exitcode", "code"),
    [
        (1, 1),
        (130, 130),
        (-9, "error: process 1 was killed (SIGKILL, as when memory runs out)"),
        (-15, "error: process 1 was killed (SIGTERM)"),
    ],
)
def test_a_launch_ends_as_its_first_failed_process_did(exitcode, code, run_command, monkeypatch):
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=exitcode, error_file="none")
    failed = raising(ChildFailedError("pipeline.sft", {1: failure}))
    monkeypatch.setattr("accelerate.commands.launch.launch_command", lambda _: failed())
    flags = ("--num_processes", 2, "-m", "pipeline.sft")
    assert run_command("pipeline.launch", *flags)[1] == code
