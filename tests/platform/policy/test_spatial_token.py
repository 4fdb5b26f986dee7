"""The spatial token: where the plan points, handed on as numbers."""

import dataclasses

import pytest
import torch

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel


@pytest.fixture
def pointing(config: PolicyConfig, processor) -> St4vlaModel:
    torch.manual_seed(0)
    return St4vlaModel(dataclasses.replace(config, spatial_token=True), processor.token_ids).eval()


def test_the_plan_and_the_condition_each_grow_by_one_token(pointing, model, processor, observations):
    batch = processor.encode_observations(observations[:2])
    plan, mask = pointing.plan(batch)
    short, _ = model.plan(batch)
    assert plan.shape[1] == short.shape[1] + 1 and mask[:, -1].tolist() == [1, 1]
    condition = pointing.condition(plan, mask, batch["images"], batch["state"])
    assert condition.shape[1] == pointing.config.query.queries + 2


def test_the_gradient_through_the_spatial_token_is_halved_on_its_way_to_the_planner(pointing, processor, observations):
    batch = processor.encode_observations(observations[:1])
    plan, mask = (part.detach() for part in pointing.plan(batch))
    plan.requires_grad_()
    pointing.condition(plan, mask, batch["images"], batch["state"])[:, -2].sum().backward()
    direct = pointing.spatial_condition.weight.sum(0)
    assert torch.allclose(plan.grad[0, -1], 0.5 * direct, rtol=1e-5)


@pytest.fixture
def sending(config: PolicyConfig, processor) -> St4vlaModel:
    torch.manual_seed(0)
    return St4vlaModel(dataclasses.replace(config, spatial_token=True, destination=True), processor.token_ids).eval()


def test_a_policy_with_destinations_tells_two_places_in_one_token(sending, processor, observations):
    plan, _, places = sending.plan_and_point(processor.encode_observations(observations[:2]))
    assert places.shape == (2, 6)
    token = sending.spatial_encoder(places)
    assert torch.equal(plan[:, -1], token) and sending.spatial_encoder[0].in_features == 6


def test_only_questions_with_a_destination_teach_its_head(sending, processor, point_samples):
    goes = [dataclasses.replace(sample, kind="target", destination="red cube") for sample in point_samples]
    losses = sending.grounding_loss(processor.encode_grounding(goes))
    losses["goal"].backward()
    assert losses["goal"] > 1 and sending.destination_head.query.weight.grad.abs().sum() > 0
    assert sending.grounding_loss(processor.encode_grounding(point_samples))["goal"] == 0


def test_a_destination_without_the_token_that_tells_it_is_refused(config):
    with pytest.raises(ConfigError, match="spatial_token"):
        dataclasses.replace(config, destination=True)
