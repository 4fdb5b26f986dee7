"""The engine gives the reference's numbers: the model's own methods run through transformers, step by step."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.eager_policy import EagerPolicy
from st4vla.platform.policy.config import PolicyConfig, TextTowerConfig, VisionTowerConfig
from st4vla.platform.policy.engine.prompts import Prompts, prepare, stack
from st4vla.platform.policy.engine.systems import Systems
from st4vla.platform.policy.hollow import cast_weights
from st4vla.platform.policy.inference import St4vlaPolicy
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.sizes import ANY_TOKENS

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
def test_a_temperature_scales_the_noise_that_is_started_from(model):
    condition, noise = torch.randn(2, 9, 64), torch.randn(2, 8, 7)
    half, cold = (Systems(model, temperature=value).sampler for value in (0.5, 0.0))
    assert near(half(noise, condition), model.sample(condition, 0.5 * noise))
    assert torch.equal(cold(noise, condition), cold(2 * noise, condition))
    model = deepcopy(model)
    model.config = replace(model.config, expert=replace(model.config.expert, temperature=0.5))
    assert near(model.sample(condition, noise), half(noise, condition))
    assert near(Systems(model).sampler(noise, condition), half(noise, condition))


@torch.inference_mode()
def test_a_guide_corrects_the_same_chunk_as_in_the_reference(model):
    condition, noise = torch.randn(2, 9, 64), torch.randn(2, 8, 7)
    guides = [None, lambda clean, level: clean * (1 - level)]
    ours = Systems(model).sampler(noise, condition, guides)
    assert near(ours, model.sample(condition, noise, guides=guides))


@torch.inference_mode()
def test_bfloat16_stays_near_float32(model, processor, observations):
    seen, rough = processor.encode_observations(observations[:1]), deepcopy(model)
    cast_weights(rough, "cpu", torch.bfloat16)
    conditions = []
    for own in (model, rough):
        (prompt,) = prompts_of(own, processor, [observations[0].instruction])
        plan, _ = Systems(own).plan(prompt, seen["images"])
        conditions.append(Systems(own).condition(plan, None, seen["images"], seen["state"]))
    exact, near_it = conditions
    assert near_it.dtype == torch.bfloat16
    actions = Systems(rough).act(plan, None, seen["images"], seen["state"], torch.zeros(1, 8, 7))
    assert actions.dtype == torch.float32 and bool(torch.isfinite(actions).all())
    assert np.corrcoef(exact.flatten(), near_it.float().flatten())[0, 1] > 0.99


@torch.inference_mode()
def test_the_eager_reference_of_the_benchmark_does_the_same_work(other, observations):
    model, processor = other
    eager, systems = EagerPolicy(model, processor), Systems(model)
    noise = torch.randn(1, 8, 7, generator=torch.Generator().manual_seed(0))
    plan, mask = eager.plan(observations[:1])
    (prompt,) = prompts_of(model, processor, [observations[0].instruction])
    seen = processor.encode_observations(observations[:1])
    ours, _ = systems.plan(prompt, seen["images"])
    if not model.config.planner.plan_layers:
        assert near(ours, plan)
        actions = eager.act(observations[:1], plan, mask, noise)
        acted = systems.act(ours, None, seen["images"], seen["state"], noise)
        assert np.allclose(actions, processor.normalizer("tabletop_panda").unnormalize_action(acted.numpy()), atol=1e-4)


@pytest.mark.parametrize("preset", ["tiny", "small", "st4vla_4b"])
@torch.inference_mode()
def test_both_systems_ask_nothing_of_the_processor_and_make_no_tensor_on_it(preset):
    """A tensor of torch's meta device holds no numbers: whatever would look at one, or bring one along, fails."""
    config = PolicyConfig.preset(preset)
    rows, views, length, size = 4, len(config.planner_cameras), 288, config.image_size
    with torch.device("meta"):
        systems = Systems(St4vlaModel(config, ANY_TOKENS))
        text = config.planner.text
        table = torch.empty(rows, length, 1, text.head_dim)
        image_at = torch.empty(rows * views * config.tokens_per_view, dtype=torch.long)
        seen = torch.empty(rows, length, dtype=torch.bool)
        prompts = Prompts(torch.empty(rows, length, text.width), table, table, image_at, seen)
        images = torch.empty(rows, len(config.cameras), 3, size, size, dtype=torch.uint8)
        state = torch.empty(rows, config.state_dim) if config.state_dim else None
        noise = torch.empty(rows, config.chunk_length, config.action_dim)
    plan, _ = systems.plan(prompts, images)
    assert plan.shape == (rows, length + config.spatial_token, text.width)
    mask = torch.empty(plan.shape[:2], dtype=torch.long, device="meta")
    assert systems.act(plan, mask, images, state, noise).shape == noise.shape


@pytest.mark.gpu
@torch.inference_mode()
def test_graphs_give_on_a_gpu_what_is_given_without_them(model, processor, observations):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    keys, names = [(i, 0) for i in range(3)], ["a", "b", "c"]
    expected = St4vlaPolicy(model, processor).act(observations[:3], names, keys)
    on_gpu = St4vlaPolicy(deepcopy(model).cuda(), processor)
    for _ in range(2):
        chunks = on_gpu.act(observations[:3], names, keys)
        assert all(np.allclose(a.actions, b.actions, atol=1e-3) for a, b in zip(chunks, expected, strict=True))
