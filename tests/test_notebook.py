"""The notebook: every cell runs, here on the embedded base with tiny settings."""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from running import ROOT, TINY

FEW = {"train": 16, "val": 2, "test": 3}
RECIPE = {
    "extends": str(TINY),
    "data": {"main": "dense", "tiers": {"dense": FEW, "trap": FEW, "blog": {**FEW, "grid": 15}}},
    "sft": {"max_steps": 1, "per_device_train_batch_size": 4},
    "grpo": {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4},
    "eval": {"samples": 2, "max_tokens": 48, "resamples": 100},
    "conclusion": {"fresh": 2, "margins": {"resamples": 100}},
    "monitor": {"problems": 2, "samples": 1},
}


@pytest.fixture
def shown(monkeypatch):
    """What the notebook displays, without a notebook to display it in."""
    displayed = []
    module = ModuleType("IPython.display")
    module.Image, module.Markdown, module.display = Path, str, displayed.append
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return displayed


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that is the repository, but for its runs."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.setenv("RECIPE", "few.yaml")
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def in_this_process(monkeypatch):
    """``make`` of the notebook, but its stages share a process: importing torch takes longer than
    any of them does here."""

    def make(*goals, **settings):
        options = {"RECIPE": "few.yaml", "RUN": "notebook", **settings}
        command = ["make", "--dry-run", *goals, *(f"{k}={v}" for k, v in options.items())]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in lines.splitlines():
            _, python, flags = line.partition(".venv/bin/python -m ")
            module, *words = shlex.split(flags) or ("pip",)
            if python and module != "pip":
                monkeypatch.setattr(sys, "argv", [module, *words])
                importlib.import_module(module).main()

    return make


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs_and_shows_its_plots(here, shown, in_this_process):
    notebook: dict = {}
    shipped = json.loads((ROOT / "docs" / "slotwise.ipynb").read_text(encoding="utf-8"))
    for cell in shipped["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), notebook)
        if cell["id"] == "install":
            with pytest.raises(RuntimeError, match="make"):
                notebook["make"]("data", RECIPE="absent.yaml")
            notebook["make"] = in_this_process
    curve, conclusion, training = shown
    for plot in (curve, training):
        assert plot.read_bytes().startswith(b"\x89PNG")
    assert "inconclusive" in conclusion
    run = here / "runs" / "notebook"
    assert (run / "export" / "grpo" / "README.md").is_file()
    assert (run / "probe" / "base" / "probe.json").is_file()
