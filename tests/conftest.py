"""What holds for all tests, and the fixtures that several share."""

import os
import signal
from contextlib import chdir
from importlib import import_module

import pytest
from hypothesis import settings

from data.common.errors import run_main

# Explain assertions of helpers as those of tests.
pytest.register_assert_rewrite("answers", "running")
# The same examples on every machine and in every run.
settings.register_profile("slotwise", derandomize=True, deadline=None, database=None)
settings.load_profile("slotwise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Started in the background, tests and what they start would ignore Ctrl-C, as no terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs a command with flags as ``python -m`` would; returns what it prints, and how it ends: an
    exit code or the sentence of a mistake."""

    def run(module, *flags):
        monkeypatch.setattr("sys.argv", [module, *map(str, flags)])
        try:
            run_main(import_module(module).main)
        except SystemExit as end:
            return capsys.readouterr().out, end.code
        return capsys.readouterr().out, 0

    return run


@pytest.fixture
def mistake_of(run_command):
    """Runs a command into a mistake; returns the one sentence that is said of it."""

    def run(module, *flags):
        _, said = run_command(module, *flags)
        # A text is printed to stderr by the interpreter, which then exits with 1.
        assert isinstance(said, str), f"it ends with {said}"
        assert said.startswith("error: ")
        assert "\n" not in said
        return said.removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def tokenizer():
    """That of the embedded base."""
    from pipeline.corpus.tokens import build_tokenizer

    return build_tokenizer()


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run without models, see ``scripted``."""
    from scripted import World

    return World(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model, ``qwen3``, and the data of a run, made once."""
    from tiny import save_model, write_recipe

    from data import make

    place = tmp_path_factory.mktemp("small")
    with chdir(place):
        make.run(write_recipe(place, save_model(place / "qwen3", "qwen3")), force=False)
    return place
