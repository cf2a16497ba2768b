"""Which backend trains, and why."""

import sys
from types import ModuleType

import pytest
import trl  # noqa: F401 - so that all that Unsloth patches is there
from running import refusal_of
from tiny import training_for, write_recipe

from data.sections import SamplingSection
from pipeline.train import backend
from pipeline.train.backend import PATCHED, choose_backend, takes_vllm


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that makes this machine look like another one: with CUDA or not, packages there
    or not, Unsloth as the source of its ``__init__``."""

    def pretend(cuda=False, installed=(), unsloth=None, late=False):
        choose_backend.cache_clear()
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
        there = {*installed, *(["unsloth"] if unsloth is not None else [])}
        monkeypatch.setattr(backend, "find_spec", lambda name: name if name in there else None)
        monkeypatch.delitem(sys.modules, "unsloth", raising=False)
        if unsloth is not None:
            (tmp_path / "site" / "unsloth").mkdir(parents=True, exist_ok=True)
            (tmp_path / "site" / "unsloth" / "__init__.py").write_text(unsloth)
            monkeypatch.syspath_prepend(tmp_path / "site")
        for name in PATCHED:
            if late:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
            else:
                monkeypatch.delitem(sys.modules, name, raising=False)

    yield pretend
    sys.modules.pop("unsloth", None)
    choose_backend.cache_clear()


SOUND, BROKEN = "name = 'sound'", "raise RuntimeError('no kernel for\\n  this chip')"
LATE = "transformers, peft, trl had been imported before it"


@pytest.mark.parametrize(
    ("wanted", "given", "name", "why"),
    [
        ("trl", {"cuda": True, "unsloth": SOUND}, "trl", "as asked for"),
        ("auto", {"unsloth": SOUND}, "trl", "there is no CUDA GPU"),
        ("auto", {"cuda": True, "unsloth": SOUND}, "unsloth", "there is a CUDA GPU"),
        ("unsloth", {"unsloth": SOUND}, "unsloth", "as asked for"),
        ("auto", {"cuda": True}, "trl", "not installed"),
        ("auto", {"cuda": True, "unsloth": SOUND, "late": True}, "trl", LATE),
    ],
)
def test_a_backend_is_chosen_for_a_reason_that_is_said(machine, wanted, given, name, why):
    machine(**given)
    chosen = choose_backend(wanted)
    assert chosen.name == name
    assert why in chosen.why
    assert ("unsloth" in sys.modules) == chosen.is_unsloth == (name == "unsloth")


@pytest.mark.parametrize(
    ("wanted", "given", "reason"),
    [
        ("unsloth", {"cuda": True}, "not installed"),
        ("unsloth", {"unsloth": SOUND, "late": True}, LATE),
        ("unsloth", {"cuda": True, "unsloth": BROKEN}, "RuntimeError: no kernel for this chip"),
        ("auto", {"cuda": True, "unsloth": "import nonesuch"}, "No module named 'nonesuch'"),
    ],
)
def test_unsloth_that_cannot_be_used_is_refused(machine, wanted, given, reason):
    machine(**given)
    refusal_of(lambda: choose_backend(wanted), "backend: unsloth ", reason, "BACKEND=trl")


@pytest.mark.parametrize(
    ("given", "name", "bits", "taken"),
    [
        ({"cuda": True, "installed": ["vllm"]}, "trl", 16, True),
        ({"cuda": True, "installed": ["vllm"]}, "trl", 4, False),
        ({"cuda": True, "installed": ["vllm"]}, "unsloth", 4, True),
        ({"cuda": True}, "trl", 16, False),
        ({"installed": ["vllm"]}, "trl", 16, False),
    ],
)
def test_vllm_draws_where_it_can_take_the_weights(machine, tmp_path, given, name, bits, taken):
    machine(**given)
    changes = {"bits": 4, "lora": {"r": 4}} if bits == 4 else {}
    recipe = write_recipe(tmp_path, "anything", **changes)
    assert takes_vllm(name == "unsloth", recipe.sampling, recipe.quantised) == taken
    chosen = SamplingSection(redraws=1)
    assert not takes_vllm(name == "unsloth", chosen, recipe.quantised)


@pytest.mark.parametrize(
    ("section", "changes", "key", "package"),
    [
        ("grpo", {"grpo": {"use_vllm": True}}, "grpo.use_vllm", "vllm"),
        ("sft", {"sft": {"use_liger_kernel": True}}, "sft.use_liger_kernel", "liger-kernel"),
        ("sft", {"bits": 4, "lora": {"r": 4}}, "bits: 4", "bitsandbytes"),
    ],
)
def test_a_setting_needs_its_package(machine, tmp_path, section, changes, key, package):
    machine()
    training = training_for(write_recipe(tmp_path, "anything", **changes), section)
    said = refusal_of(training.start_backend)
    assert f"small.yaml: {key}" in said
    assert f"pip install {package}`" in said
    machine(installed=[package.replace("-", "_")])
    assert training.start_backend().name == "trl"
