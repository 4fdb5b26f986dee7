"""What a policy's description accepts, and that it survives YAML."""

import pytest
import yaml

from st4vla.envs import objects
from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.config import PolicyConfig

PRESETS = ["tiny", "small", "st4vla_4b", "st4vla_qwen3vl_4b"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_after_a_round_trip_through_yaml(name):
    config = PolicyConfig.preset(name)
    assert PolicyConfig.from_mapping(yaml.safe_load(config.to_yaml())) == config


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no preset 'tini'; there are small, st4vla_4b, st4vla_qwen3vl_4b, tiny"):
        PolicyConfig.preset("tini")


def test_a_misspelt_setting_is_named_with_its_path_and_the_nearest_name(config):
    values = yaml.safe_load(config.to_yaml())
    values["planner"]["text"]["widht"] = 3
    with pytest.raises(ConfigError, match=r"planner.text.widht is not a setting .* did you mean width\?"):
        PolicyConfig.from_mapping(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("image_size", 100, "image_size is 100; the planner needs a multiple of 32"),
        ("chunk_length", 0, "chunk_length is 0; it must be above 0"),
        ("query.grad_scale", 1.5, "grad_scale is 1.5"),
        ("query.width", 128, "its width must be 64"),
        ("prompt.action", "Do it.", "must contain {instruction}"),
        ("planner.cameras", ["side"], "name some of third_person, wrist"),
        ("planner.kind", "llava", "expected one of qwen2_5_vl, qwen3_vl"),
        ("control_hz", "five", "control_hz is 'five'; expected float"),
    ],
)
def test_a_bad_value_is_refused_by_name(config, path, value, message):
    values = yaml.safe_load(config.to_yaml())
    *parents, last = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        PolicyConfig.from_mapping(values)


def test_the_spec_says_what_the_policy_must_be_shown(config):
    assert config.spec.cameras == ("third_person", "wrist")
    assert (config.spec.state_dim, config.spec.action_dim, config.spec.chunk_length) == (7, 7, 8)


def test_a_view_of_tiny_is_sixteen_planner_tokens():
    assert PolicyConfig.preset("tiny").tokens_per_view == 16


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_dense_loss_knows_the_words_of_every_object_of_the_tabletop(name):
    assert sorted(PolicyConfig.preset(name).planner.dense.words) == objects.vocabulary()
