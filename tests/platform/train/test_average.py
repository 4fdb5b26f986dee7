"""The moving average follows the weights, is lent to the model, and leaves them as they were."""

import pytest
import torch

from st4vla.platform.errors import CheckpointError, ConfigError
from st4vla.platform.train.average import Average, AverageConfig


def one_weight(value: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def test_it_forgets_the_beginning_fast_and_the_rest_slowly():
    config = AverageConfig(decay=0.5)
    assert [config.at(step) for step in (0, 1, 100)] == [0.1, 2 / 11, 0.5]
    layer = one_weight(0.0)
    average = Average(layer, config)
    torch.nn.init.constant_(layer.weight, 10.0)
    average.follow(0)
    assert average.state()["weight"].item() == pytest.approx(9.0)


def test_the_model_gets_its_own_weights_back():
    layer = one_weight(1.0)
    average = Average(layer, AverageConfig(0.9))
    torch.nn.init.constant_(layer.weight, 3.0)
    with average.in_place():
        assert layer.weight.item() == 1.0
    assert layer.weight.item() == 3.0


def test_averages_of_other_weights_are_refused():
    average = Average(one_weight(1.0), AverageConfig(0.9))
    average.load({"weight": torch.tensor([[5.0]])})
    assert average.state()["weight"].item() == 5.0
    with pytest.raises(CheckpointError, match="of other weights"):
        average.load({"bias": torch.zeros(1)})


def test_a_decay_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"average\.decay is 1\.0"):
        AverageConfig(1.0)
