"""What the doctor advises can act in the training: its key is there, and no other overrules it."""

import pytest

from pipeline.health.signals import GRPO, Signals
from pipeline.health.symptom import acts
from tests.synthetic import changed, collapsed, diagnose

ONE_STEP = {"steps_per_generation": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("settings", "clipped", "says"),
    [
        ({}, None, True),
        ({}, 0.0, False),
        ({}, 0.01, True),
        ({**ONE_STEP, "num_iterations": 1}, None, False),
        ({**ONE_STEP, "num_iterations": 4}, 0.0, True),
        ({"epsilon_high": 0.3}, None, False),
        ({"epsilon_high": "None"}, None, True),
    ],
)
def test_only_what_can_act_in_the_training_is_advised(settings, clipped, says):
    log = changed(collapsed(1), "clip_ratio/region_mean", lambda row: clipped)
    (finding,) = diagnose(log, GRPO, settings)
    assert ("epsilon_high" in finding.advice) == says
    assert "learning_rate" in finding.advice


@pytest.mark.parametrize(
    ("item", "settings", "does"),
    [
        ("lower `max_steps`", {"max_steps": 60}, True),
        ("lower `max_steps`", {"max_steps": -1}, False),
        ("lower `num_train_epochs`", {"max_steps": 60, "num_train_epochs": 3}, False),
        ("lower `num_train_epochs`", {"max_steps": "-1"}, True),
        ("set `vllm_importance_sampling_correction` to true", {"use_vllm": False}, False),
        ("lower `beta`", {"beta": 0.0}, False),
    ],
)
def test_a_key_that_another_one_overrules_is_not_advised(item, settings, does):
    assert acts(item, Signals(), settings) == does


@pytest.mark.parametrize(
    ("row", "settings", "does"),
    [
        ({"truth/optimal": 0.1}, {}, (True, True)),
        ({"truth/optimal": 0.1}, {"use_vllm": True}, (False, True)),
        ({"truth/optimal": 0.1, "sampling/thrown_away": 8}, {}, (False, True)),
        ({"truth/optimal": 0.1, "rewards/passk/mean": 0.1}, {}, (True, False)),
        ({"rewards/accuracy_reward/mean": 0.1}, {}, (False, False)),
    ],
)
def test_keys_of_our_recipes_are_advised_where_a_log_is_ours_and_has_them_not(row, settings, does):
    s = Signals()
    s.add(row)
    items = ("raise `redraws`", "set `shape` to passk")
    assert tuple(acts(item, s, settings) for item in items) == does
