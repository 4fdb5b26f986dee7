"""Adapters change nothing at first, alone are trained, and end up in plain weights."""

import copy

import pytest
import torch

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.folder import own_tensors
from st4vla.platform.train.adapters import AdapterConfig, add_adapters, plain_tensors


def grounded(model, processor, samples) -> torch.Tensor:
    return model.grounding_loss(processor.encode_grounding(samples))["answer"]


def test_adapters_end_up_in_plain_weights(model, processor, point_samples):
    adapted = copy.deepcopy(model)
    names = list(own_tensors(adapted))
    add_adapters(adapted, AdapterConfig(rank=2, modules=("q_proj", "down_proj")))
    before = grounded(model, processor, point_samples)
    assert torch.equal(grounded(adapted, processor, point_samples), before)
    trained = {name for name, one in adapted.planner.named_parameters() if one.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(one, 0.05)
    changed = grounded(adapted, processor, point_samples)
    assert not torch.allclose(changed, before)
    plain = plain_tensors(adapted, own_tensors(adapted))
    assert list(plain) == names
    merged = copy.deepcopy(model)
    merged.load_state_dict(plain, strict=False)
    torch.testing.assert_close(grounded(merged, processor, point_samples), changed)


def test_rank_zero_leaves_the_model_alone(model):
    kept = copy.deepcopy(model)
    add_adapters(kept, AdapterConfig())
    assert all(one.requires_grad for one in kept.parameters())


def test_a_planner_without_such_layers_is_named(model):
    with pytest.raises(ConfigError, match=r"adapters\.modules is \['no_such'\]"):
        add_adapters(copy.deepcopy(model), AdapterConfig(rank=2, modules=("no_such",)))
