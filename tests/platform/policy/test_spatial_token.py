"""The spatial token: where the plan points, handed on as numbers."""

import dataclasses

import pytest
import torch

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
