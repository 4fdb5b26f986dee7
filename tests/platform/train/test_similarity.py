"""Projection-space similarity says how far two gradients move the same directions."""

import torch

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
