"""Real trainings that are made sick on purpose, as `pipeline/recipes/sick.yaml` has them, bring up
their diagnosis; a healthy one brings up none.

The embedded base, TRL's own trainers, real rewards. Each ends as soon as its symptom should be
there: the learning rate is constant, so the first steps are those of the whole training.
"""

from contextlib import chdir
from dataclasses import replace

import pytest
import torch
from running import RECIPES, ROOT

from data import make
from data.recipe import load_recipe
from pipeline import grpo
from pipeline.arms import MODULES
from pipeline.health.logs import examine

RECIPE = load_recipe(RECIPES / "sick.yaml")

#: By arm: its symptoms, of which one or more must be found, and within how many steps. The others
#: take minutes, or have a symptom that one here has too: they are left to `make sick`. `hackable`
#: is not hacked: this base earns more by thinking.
SICK = {
    "rate-100": ({"reward-falls", "kl-runaway", "entropy-rises"}, 20),
    "constant": ({"zero-variance"}, 22),
    "too-short": ({"truncation"}, 14),
    "sft-rate-1000": ({"diverged"}, 26),
    "hotter": ({"foreign-answers"}, 2),
}
#: Answers become noise that does not end, so most of the time would go into their last tokens.
SHORTER = {"rate-100": {"max_completion_length": 64}}
#: Arms that are measured on val, which costs a fifth of the time.
MEASURED = ("sft-rate-1000", "healthy")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So that they are the same trainings however many cores a machine has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("sick")
    with chdir(place):
        make.run(RECIPE, force=False)
    return place


@pytest.fixture
def examined(folder, monkeypatch):
    """A function that trains an arm for some steps, and examines its log."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(grpo, "gate", lambda *_: None)  # the audit has tests of its own

    def train(arm, steps):
        settings = {**RECIPE.arms[arm].settings, **SHORTER.get(arm, {}), "max_steps": steps}
        every = RECIPE.monitor.every if arm in MEASURED else 0
        short = replace(
            RECIPE,
            arms={arm: replace(RECIPE.arms[arm], settings=settings)},
            model=str(ROOT / RECIPE.model),
            monitor=replace(RECIPE.monitor, every=every),
        )
        MODULES[RECIPE.arms[arm].trainer].run(short, False, arm)
        return examine(arm, RECIPE.run.log(arm))

    return train


@pytest.mark.slow
@pytest.mark.parametrize("arm", SICK)
def test_a_training_made_sick_on_purpose_is_diagnosed(examined, capsys, arm):
    symptoms, steps = SICK[arm]
    names = {one.symptom for one in examined(arm, steps).serious}
    assert symptoms & names, names
    # The doctor's findings on the log were said while it ran.
    said = capsys.readouterr().out
    assert all(f"({name}, step " in said for name in names)


@pytest.mark.slow
def test_a_healthy_training_has_no_findings_though_all_symptoms_were_looked_for(examined):
    patient = examined("healthy", 60)
    assert not patient.serious
    assert patient.silent.keys() == {"sampler-apart"}  # answers are drawn by the policy itself
