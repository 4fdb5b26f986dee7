"""A batch without padding gives the losses and gradients of the padded one."""

import copy
import dataclasses

import pytest
import torch

from st4vla.platform.contracts import Spatial
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.packing import Packing, allow_packing, places


def test_tokens_are_found_again_on_the_right():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert {name: one.tolist() for name, one in places(mask).items()} == {
        "token_places": [1, 2, 3, 4, 5],
        "row_places": [0, 1, 3, 4, 5],
    }
    assert places(torch.ones(2, 3, dtype=torch.long)) == {}


def test_packing_and_unpacking_leave_tokens_where_they_were():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    packing = Packing.of({"attention_mask": mask, **places(mask)})
    assert packing is not None and Packing.of({"attention_mask": mask}) is None
    values = torch.arange(1, 7).view(2, 3)
    assert packing.pack(values).tolist() == [[2, 3, 4, 5, 6]]
    assert packing.unpack(packing.pack(values)[..., None])[..., 0].tolist() == [[0, 2, 3], [4, 5, 6]]


def questions(processor, point_samples) -> dict:
    """Three questions of unequal length, the longest in the middle."""
    trace = Spatial("red cube", trajectory=((88.0, 24.0), (60.0, 40.0), (10.0, 100.0)))
    long = dataclasses.replace(point_samples[1], kind="trace", label="put the blue ball in the red bin", answer=trace)
    return processor.encode_grounding([point_samples[0], long, dataclasses.replace(point_samples[2], label="red ball")])


def learned(model: St4vlaModel, losses) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Give all losses and the gradient of their sum."""
    model.zero_grad(set_to_none=True)
    found = losses()
    found["loss"].backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return {name: float(value.detach()) for name, value in found.items()}, gradients


@pytest.mark.parametrize("change", ["as it is", "deep features", "shared keys", "recomputed"])
def test_packed_losses_and_gradients_are_those_of_padding(config, processor, action_samples, point_samples, change):
    planner = config.planner
    if change == "deep features":
        planner = dataclasses.replace(planner, vision=dataclasses.replace(planner.vision, deep_layers=(0, 1)))
    if change == "shared keys":
        planner = dataclasses.replace(planner, text=dataclasses.replace(planner.text, kv_heads=1))
    torch.manual_seed(0)
    model = St4vlaModel(dataclasses.replace(config, planner=planner), processor.token_ids).double()
    asked, acted = questions(processor, point_samples), processor.encode_actions(action_samples)
    assert asked["attention_mask"].sum(1).unique().numel() > 1 and acted["attention_mask"].sum(1).unique().numel() > 1
    noise = torch.Generator()
    packable = copy.deepcopy(model)
    if change == "recomputed":
        packable.planner.vlm.activation_checkpointing_enable()
        packable.train()
        model.train()
    allow_packing(packable.planner.vlm)
    for batch, way in ((asked, "grounding"), (acted, "action")):
        packed = batch | places(batch["attention_mask"])

        def loss(of: St4vlaModel, one: dict, way: str = way) -> dict[str, torch.Tensor]:
            one = {name: value.double() if value.is_floating_point() else value for name, value in one.items()}
            torch.manual_seed(1)
            return of.grounding_loss(one) if way == "grounding" else of.action_loss(one, noise.manual_seed(1))

        losses, gradients = learned(model, lambda: loss(model, batch))  # noqa: B023
        there, same = learned(packable, lambda: loss(packable, packed))  # noqa: B023
        assert there == pytest.approx(losses, abs=1e-5)
        assert same.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(same[name], gradient, rtol=1e-5, atol=1e-5)
        unpacked, _ = learned(packable, lambda: loss(packable, batch))  # noqa: B023
        assert unpacked == losses


def test_a_row_does_not_see_its_neighbour(config, model, processor, point_samples):
    packable = copy.deepcopy(model)
    allow_packing(packable.planner.vlm)
    batch = questions(processor, point_samples)
    batch |= places(batch["attention_mask"])
    before, _ = packable.planner.read(batch)
    batch["input_ids"][1, -1] = 7
    after, _ = packable.planner.read(batch)
    assert before[0].equal(after[0]) and before[2].equal(after[2]) and not before[1].equal(after[1])
