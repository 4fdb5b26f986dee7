"""Projection-space similarity says how far two gradients move the same directions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.inspections import prober, spread
from st4vla.platform.train.loop import Worker
from st4vla.platform.train.similarity import leading_directions, similarity


def test_directions_stop_where_the_energy_is_reached():
    gradient = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    assert leading_directions(gradient, 0.89).shape == (3, 1)  # 9 of 10
    assert leading_directions(gradient, 0.95).shape == (3, 2)
    assert leading_directions(torch.zeros(3, 3), 0.9).shape == (3, 0)


def test_a_gradient_is_wholly_similar_to_itself_and_not_to_an_orthogonal_one():
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert similarity(one, 5 * one, 0.9) == {"pss": 1.0, "chance": 0.25, "rank_grounding": 1.0, "rank_action": 1.0}
    assert similarity(one, other, 0.9)["pss"] == 0.0


def test_a_direction_halfway_between_shares_half():
    one = torch.tensor([[1.0], [0.0]])
    between = torch.tensor([[1.0], [1.0]])
    assert abs(similarity(one, between, 0.9)["pss"] - 0.5) < 1e-12


def test_the_smaller_rank_divides():
    plane = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    line = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    row = similarity(plane, line, 0.99)
    assert (row["pss"], row["rank_grounding"], row["rank_action"]) == (1.0, 2.0, 1.0)
    assert abs(row["chance"] - 2 / 3) < 1e-12


def test_a_gradient_of_zero_is_not_compared():
    assert similarity(torch.zeros(2, 2), torch.eye(2), 0.9) == {}


def test_a_probe_has_its_part_of_every_dataset():
    assert spread([*"aaaabbbb"], 4) == ["a", "a", "b", "b"]
    assert spread(list(range(7)), 4) == [0, 2, 4, 6]
    assert spread([1, 2], 4) == [1, 2] and spread([], 4) == []


def test_a_frozen_planner_has_no_gradients_to_compare():
    weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    layers = [SimpleNamespace(self_attn=SimpleNamespace(q_proj=SimpleNamespace(weight=weight)))]
    vlm = SimpleNamespace(model=SimpleNamespace(language_model=SimpleNamespace(layers=layers)))
    frozen: Any = SimpleNamespace(planner=SimpleNamespace(vlm=vlm))
    nothing: Any = None
    with pytest.raises(ConfigError, match=r"frozen here; give optimiser\.learning_rates\.planner a rate above 0"):
        prober(nothing, frozen, nothing, Worker())
