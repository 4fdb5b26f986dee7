"""Computing activations again in the backward pass changes no gradient."""

import copy

import torch


def gradients(model, batch) -> list[torch.Tensor]:
    model.train()
    torch.manual_seed(0)
    model.grounding_loss(batch)["answer"].backward()
    return [one.grad for one in model.planner.vlm.model.language_model.parameters()]


def test_gradients_are_the_same(model, processor, point_samples):
    batch = processor.encode_grounding(point_samples)
    kept, again = copy.deepcopy(model), copy.deepcopy(model)
    again.planner.vlm.activation_checkpointing_enable()
    assert again.planner.vlm.is_activation_checkpointing
    for one, other in zip(gradients(kept, batch), gradients(again, batch), strict=True):
        torch.testing.assert_close(one, other)
