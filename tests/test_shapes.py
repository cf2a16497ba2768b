"""The table of architectures: as many parameters as the weights on the hub have."""

import pytest

from data.common.errors import UserError
from pipeline.memory.shapes import SHAPES, config_of
from pipeline.plan import skeleton

#: Parameters of the published weights, tied ones once.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "llama-3.2-1b": 1_235_814_400,
    "gemma-3-1b": 999_885_952,
    "smollm3-3b": 3_075_098_624,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_the_published_weights(name):
    assert skeleton(config_of(name)).num_parameters() == PARAMETERS[name]


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "qwen2.5-7b"),
        ("google/gemma-3-1b-it", "gemma-3-1b"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3-3b"),
    ],
)
def test_a_hub_id_names_its_shape(hub_id, name):
    assert config_of(hub_id).to_dict() == config_of(name).to_dict()


def test_a_model_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no shape is known of 'Qwen/Qwen2.5-9B'.*'qwen2.5-7b'"):
        config_of("Qwen/Qwen2.5-9B")


def test_a_config_may_be_changed_without_changing_the_table():
    config_of("qwen2.5-0.5b").rope_parameters["rope_theta"] = 1.0
    assert config_of("qwen2.5-0.5b").rope_parameters["rope_theta"] == 1_000_000.0
