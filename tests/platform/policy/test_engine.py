"""The engine gives the reference's numbers: the model's own methods run through transformers, step by step."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from st4vla.platform.policy.config import PolicyConfig, TextTowerConfig, VisionTowerConfig
from st4vla.platform.policy.engine.prompts import prepare, stack
from st4vla.platform.policy.engine.systems import Systems
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor

CPU = torch.device("cpu")


def wide(config: PolicyConfig) -> PolicyConfig:
    """Qwen2.5-VL at 128 px with 64 px windows, two views, grouped heads and a plan of two layers."""
    text = TextTowerConfig(64, 3, 4, 2, 16, 128, 512, rope_theta=10_000.0, initializer_range=0.2)
    vision = VisionTowerConfig(64, 3, 2, 128, 8, full_attention_layers=(1,), window_px=64, initializer_range=0.2)
    planner = replace(
        config.planner,
        kind="qwen2_5_vl",
        text=text,
        vision=vision,
        cameras=(),
        dense=replace(config.planner.dense, weight=0.0, words=()),
        plan_layers=(1, 3),
    )
    seeing = replace(config.vision, dense_weight=0.0)
    return replace(config, planner=planner, vision=seeing, query=replace(config.query, layers=2))


def deep(config: PolicyConfig) -> PolicyConfig:
    """Qwen3-VL with deep features in two layers, grouped heads and positions resampled from another grid."""
    text = replace(config.planner.text, layers=3, heads=4, kv_heads=2, initializer_range=0.2)
    vision = replace(config.planner.vision, deep_layers=(0, 2), position_grid=6, initializer_range=0.2)
    return replace(config, planner=replace(config.planner, text=text, vision=vision), spatial_token=True)


@pytest.fixture(params=["as it is", "deep", "wide"])
def other(request, config, processor):
    """A policy of some shape, with weights far from their small beginnings."""
    chosen = {"as it is": lambda c: c, "deep": deep, "wide": wide}[request.param](config)
    torch.manual_seed(1)
    model = St4vlaModel(chosen, processor.token_ids).eval()
    torch.nn.init.normal_(model.action_expert.final_layer.linear.weight, std=0.1)
    return model, Processor(chosen, processor.tokenizer, processor.statistics)


def near(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors differ by no more than 1e-5 of the largest number in them, or of 1."""
    return bool((ours - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1))


def prompts_of(model, processor, words):
    return [prepare(model, processor.encode_prompts([one]), CPU) for one in words]


@torch.inference_mode()
def test_system_2_gives_the_plan_of_the_reference(other, observations):
    model, processor = other
    seen = processor.encode_observations(observations[:1])
    expected, _, chances = model.plan_and_point(seen)
    (prompt,) = prompts_of(model, processor, [observations[0].instruction])
    plan, place = Systems(model).plan(prompt, seen["images"])
    assert near(plan, expected)
    assert (place is None) == (chances is None)


@torch.inference_mode()
def test_system_2_pads_prompts_of_a_batch_without_a_change(other, observations):
    model, processor = other
    seen = processor.encode_observations(observations[:2])
    expected, mask, _ = model.plan_and_point(seen)
    prompts = prompts_of(model, processor, [o.instruction for o in observations[:2]])
    length = 48 + 64 * len(model.planner_views) ** 2
    plan, _ = Systems(model).plan(stack(prompts, length), seen["images"])
    for row in range(2):
        own = int(mask[row].sum())
        assert near(plan[row, -own:], expected[row, -own:])
    assert torch.isfinite(plan).all()


@torch.inference_mode()
def test_system_1_gives_the_condition_and_the_actions_of_the_reference(other, observations):
    model, processor = other
    seen = processor.encode_observations(observations[:2])
    plan, mask, _ = model.plan_and_point(seen)
    noise = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(0))
    systems = Systems(model)
    expected = model.condition(plan, mask, seen["images"], seen["state"])
    assert near(systems.condition(plan, mask, seen["images"], seen["state"]), expected)
    actions = systems.act(plan, mask, seen["images"], seen["state"], noise)
    assert near(actions, model.sample(expected, noise))


@pytest.mark.parametrize("steps, guidance", [(4, 1.0), (10, 1.5), (5, 7.0)])
@torch.inference_mode()
def test_sampling_is_that_of_the_reference_with_any_steps_and_guidance(model, steps, guidance):
    condition, noise = torch.randn(2, 9, 64), torch.randn(2, 8, 7)
    ours = Systems(model, steps, guidance).sampler(noise, condition)
    assert near(ours, model.sample(condition, noise, steps, guidance))


@torch.inference_mode()
def test_a_guide_corrects_the_same_chunk_as_in_the_reference(model):
    condition, noise = torch.randn(2, 9, 64), torch.randn(2, 8, 7)
    guides = [None, lambda clean, level: clean * (1 - level)]
    ours = Systems(model).sampler(noise, condition, guides)
    assert near(ours, model.sample(condition, noise, guides=guides))


@torch.inference_mode()
def test_bfloat16_stays_near_float32(model, processor, observations):
    seen, rough = processor.encode_observations(observations[:1]), deepcopy(model).to(torch.bfloat16)
    conditions = []
    for own in (model, rough):
        (prompt,) = prompts_of(own, processor, [observations[0].instruction])
        plan, _ = Systems(own).plan(prompt, seen["images"])
        conditions.append(Systems(own).condition(plan, None, seen["images"], seen["state"]))
    exact, near_it = conditions
    assert near_it.dtype == torch.bfloat16
    assert np.corrcoef(exact.flatten(), near_it.float().flatten())[0, 1] > 0.99
