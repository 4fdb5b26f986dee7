"""The operations counted from shapes are those that torch counts while it computes."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.sizes import ANY_TOKENS
from st4vla.platform.train.flops import FlopCount, peak_flops
from st4vla.platform.train.loop import Speed

ROWS, LENGTH, WORDS, TEXT, IMAGE = 2, 40, 6, 10, 0


def tiny() -> St4vlaModel:
    torch.manual_seed(0)
    return St4vlaModel(PolicyConfig.preset("tiny"), ANY_TOKENS).train()


def prompts(config: PolicyConfig) -> dict[str, torch.Tensor]:
    """Rows of 40 tokens, 16 of them an image's."""
    ids = torch.full((ROWS, LENGTH), TEXT)
    ids[:, 1 : 1 + config.tokens_per_view] = IMAGE
    positions = torch.arange(LENGTH).expand(3, ROWS, LENGTH)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}


def questions(config: PolicyConfig) -> dict[str, torch.Tensor]:
    """With answers of 6 tokens."""
    side, words = config.dense_side, len(config.planner.dense.words) + 1
    labels = torch.full((ROWS, LENGTH), -100)
    labels[:, -WORDS:] = TEXT
    return prompts(config) | {
        "images": torch.zeros(ROWS, 1, 3, 128, 128, dtype=torch.uint8),
        "labels": labels,
        "dense_labels": torch.zeros(ROWS, side, side, dtype=torch.long),
        "dense_targets": torch.full((ROWS, 2, words), 1 / words),
        "answer_cells": torch.ones(ROWS, side, side),
        "goal_cells": torch.ones(ROWS, side, side),
    }


def actions(config: PolicyConfig) -> dict[str, torch.Tensor]:
    return prompts(config) | {
        "images": torch.zeros(ROWS, 2, 3, 128, 128, dtype=torch.uint8),
        "actions": torch.randn(ROWS, 8, 7),
        "is_pad": torch.zeros(ROWS, 8, dtype=torch.bool),
        "state": torch.randn(ROWS, 7),
    }


def counted(model: St4vlaModel, way: str, batch: dict[str, torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = model.grounding_loss(batch) if way == "grounding" else model.action_loss(batch)
        losses["loss"].backward()
    return counter.get_total_flops()


def test_a_batch_of_questions_costs_tiny_what_torch_counts():
    model = tiny()
    batch = questions(model.config)
    assert FlopCount(model.config, model)({"grounding": batch}) == 1_673_386_752
    assert counted(model, "grounding", batch) == 1_673_386_752


def test_a_batch_of_actions_costs_tiny_what_torch_counts():
    model = tiny()
    batch = actions(model.config)
    assert FlopCount(model.config, model)({"robot": batch}) == 3_663_279_616
    assert counted(model, "action", batch) == 3_663_279_616


def test_frozen_parts_cost_no_gradients():
    model = tiny()
    model.planner.requires_grad_(False)
    batch = actions(model.config)
    assert FlopCount(model.config, model)({"robot": batch}) == counted(model, "action", batch) == 2_823_583_232
    model.get_submodule("destination_head").requires_grad_(False)
    assert FlopCount(model.config, model)({"robot": batch}) == counted(model, "action", batch) == 2_806_524_416


def test_padding_is_not_counted():
    model = tiny()
    batch, count = questions(model.config), FlopCount(model.config, model)
    whole = count({"grounding": batch})
    batch["attention_mask"][:, :10] = 0
    per_token = 2 * 4 * (4 * 128 * 128 + 3 * 128 * 384)  # of the four layers' projections and MLP
    pairs = 4 * 128 * 4 * (40**2 - 30**2)
    assert whole - count({"grounding": batch}) == 3 * ROWS * (10 * per_token + pairs)


def test_the_peak_is_that_of_the_longest_name_that_fits():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GeForce GTX 1080") is None


def test_utilisation_is_told_only_where_the_peak_is_known():
    assert Speed(lambda _: 0.0, peak=1000.0).row(500.0, 2.0) == {"flops_per_s": 250.0, "mfu": 0.25}
    assert Speed(lambda _: 0.0).row(500.0, 2.0) == {"flops_per_s": 250.0}
