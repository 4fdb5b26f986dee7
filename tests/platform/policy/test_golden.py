"""Seeded tiny modules give the numbers they always gave; a change here is a change of the mathematics."""

import pytest
import torch

from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.train.objective import Objective

PLAN = (0.803339, -1.854198)
FRAME = (0.472122, -0.984681)
CONDITION = (0.166183, 0.129654)
ACTIONS = (4.372329, 2.777526)
LOSSES = {
    "action": 1.473865,
    "loss": 12.163440,
    "answer": 5.997132,
    "dense": 1.264441,
    "where": 4.210057,
    "frame_dense": 1.383619,
}


@pytest.fixture(scope="module")
def seeded(config, processor) -> St4vlaModel:
    torch.manual_seed(0)
    model = St4vlaModel(config, processor.token_ids)
    torch.nn.init.normal_(model.action_expert.final_layer.linear.weight, std=0.1)
    return model.eval()


def close(value: float) -> object:
    return pytest.approx(value, rel=2e-4, abs=2e-5)


def summary(tensor: torch.Tensor) -> list[float]:
    """Give the mean of the absolute values and one element in the middle."""
    return [tensor.abs().mean().item(), tensor.flatten()[tensor.numel() // 2].item()]


def test_the_plan_of_the_first_observation(seeded, processor, observations):
    with torch.inference_mode():
        plan, _ = seeded.plan(processor.encode_observations(observations[:1]))
    assert summary(plan) == [close(PLAN[0]), close(PLAN[1])]


def test_the_frame_tokens(seeded, processor, observations):
    with torch.inference_mode():
        tokens = seeded.frame_encoder(processor.encode_observations(observations[:1])["images"])
    assert summary(tokens) == [close(FRAME[0]), close(FRAME[1])]


def test_the_condition_and_the_actions(seeded, processor, observations):
    batch = processor.encode_observations(observations[:1])
    with torch.inference_mode():
        condition = seeded.condition(*seeded.plan(batch), batch["images"], batch["state"])
        actions = seeded.sample(condition, torch.ones(1, 8, 7))
    assert summary(condition) == [close(CONDITION[0]), close(CONDITION[1])]
    assert summary(actions) == [close(ACTIONS[0]), close(ACTIONS[1])]


def test_the_losses(seeded, processor, action_samples, point_samples):
    generator = torch.Generator().manual_seed(0)
    losses = {"action": seeded.action_loss(processor.encode_actions(action_samples), generator)["loss"]}
    losses |= seeded.grounding_loss(processor.encode_grounding(point_samples))
    assert {name: loss.item() for name, loss in losses.items()} == {n: close(v) for n, v in LOSSES.items()}


def test_one_forward_of_training_weighs_the_losses_of_both_kinds_of_batches(
    seeded, processor, action_samples, point_samples
):
    batches = {
        "robot": processor.encode_actions(action_samples),
        "grounding": processor.encode_grounding(point_samples),
    }
    total, parts = Objective(seeded, {"robot": 1.0, "grounding": 0.1})(batches)
    assert set(parts) == {
        "robot/loss",
        "grounding/loss",
        "grounding/answer",
        "grounding/dense",
        "grounding/where",
        "grounding/frame_dense",
    }
    assert total.item() == close(parts["robot/loss"].item() + 0.1 * parts["grounding/loss"].item())
