"""What holds for all tests, and the fixtures that several share."""

import os
import signal
from contextlib import chdir

import pytest
from hypothesis import settings

# The same examples on every machine and in every run.
settings.register_profile("slotwise", derandomize=True, deadline=None, database=None)
settings.load_profile("slotwise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Started in the background, tests and what they start would ignore Ctrl-C, as no terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
