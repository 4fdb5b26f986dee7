"""System 1: queries, denoiser, diffusion, and what the action loss does."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.config import ExpertConfig, QueryConfig
from st4vla.platform.policy.denoiser import Denoiser
from st4vla.platform.policy.diffusion import (
    add_noise,
    ddim_subset,
    mean_error,
    noise_errors,
    sample_ddim,
    signal_levels,
)
from st4vla.platform.policy.query import QueryTransformer


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(ExpertConfig(width=32, layers=2, heads=2), condition_tokens=4, chunk_length=3, action_dim=2)
    torch.nn.init.normal_(denoiser.final_layer.linear.weight, std=0.5)
    return denoiser.eval()


def query_transformer(**changes) -> QueryTransformer:
    torch.manual_seed(0)
    return QueryTransformer(QueryConfig(**{"queries": 4, "width": 16, "heads": 2, **changes}), planner_width=8)


def test_the_gradient_of_the_action_loss_reaches_the_plan_halved(model, processor, action_samples):
    gradients = []
    for scale in (1.0, 0.5):
        trained = copy.deepcopy(model)
        trained.query_transformer.grad_scale = scale
        loss = trained.action_loss(processor.encode_actions(action_samples), torch.Generator().manual_seed(0))
        loss["loss"].backward()
        gradients.append(trained.planner.vlm.model.language_model.norm.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0] * 0.5, rtol=1e-5, atol=0)


def test_the_gradient_of_everything_after_the_plan_is_whole():
    tokens = torch.randn(1, 3, 8)
    grads = []
    for scale in (1.0, 0.5):
        transformer = query_transformer(grad_scale=scale)
        transformer(tokens, torch.ones(1, 3), tokens).sum().backward()
        grads.append(transformer.proj.weight.grad)
    assert torch.equal(*grads)


def test_the_dense_and_answer_gradients_are_not_decayed(model, processor, point_samples):
    trained = copy.deepcopy(model)
    trained.query_transformer.grad_scale = 0.0
    trained.grounding_loss(processor.encode_grounding(point_samples))["loss"].backward()
    assert trained.planner.vlm.model.language_model.norm.weight.grad.abs().sum() > 0


def test_queries_never_see_padding():
    transformer = query_transformer().eval()
    plan, frame, mask = torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    other = plan.clone()
    other[0, :2] = 100.0
    assert torch.equal(transformer(plan, mask, frame), transformer(other, mask, frame))


def test_queries_see_padding_where_the_weights_were_trained_so(model, processor, observations):
    batch = processor.encode_observations(observations[:2])
    assert not bool(batch["attention_mask"].all())
    semantics = dataclasses.replace(model.config.semantics, attend_padding=True)
    seeing = copy.copy(model)
    seeing.config = dataclasses.replace(model.config, semantics=semantics)
    with torch.inference_mode():
        assert bool(seeing.plan(batch)[1].all())
        assert torch.equal(model.plan(batch)[1], batch["attention_mask"])


def test_the_schedule_loses_nearly_all_signal():
    levels = signal_levels(100)
    assert levels[0] == pytest.approx(0.99937, abs=1e-5)
    assert levels[49] == pytest.approx(0.49385, abs=1e-3)
    assert levels[99] < 1e-6


@pytest.mark.parametrize(
    ("count", "subset"), [(4, (0, 25, 50, 75)), (5, (0, 20, 40, 60, 80)), (8, tuple(range(0, 92, 13)))]
)
def test_ddim_takes_the_smallest_stride_that_gives_exactly_so_many_steps(count, subset):
    assert ddim_subset(count, 100) == subset


def test_a_step_count_that_no_stride_gives_is_refused():
    with pytest.raises(ConfigError, match="ddim_steps is 70"):
        ddim_subset(70, 100)


def test_noise_is_mixed_in_by_the_schedule():
    mixed = add_noise(torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.0), torch.tensor([49]), 100)
    level = signal_levels(100)[49]
    assert mixed.item() == pytest.approx(math.sqrt(level) + 2 * math.sqrt(1 - level), rel=1e-5)


def test_bf16_actions_get_the_whole_of_a_small_noise():
    actions, noise = torch.zeros(2, 1, 1, dtype=torch.bfloat16), torch.ones(2, 1, 1)
    mixed = add_noise(actions, noise, torch.tensor([0, 1]), 100)
    assert mixed.flatten().tolist() == pytest.approx([0.0251, 0.0418], abs=1e-4)


def test_a_bf16_expert_reads_bf16_and_learns_from_noise_drawn_in_fp32():
    read = []

    class Silent:
        training = False

        def __call__(self, noisy, steps, condition):
            read.append(noisy)
            return torch.zeros_like(noisy)

    silent: Any = Silent()
    condition, is_pad = torch.zeros(2, 4, 32, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bool)
    errors = []
    for given in (condition, condition.float()):
        generator = torch.Generator().manual_seed(0)
        errors.append(noise_errors(silent, torch.full((2, 3, 2), 0.3), is_pad, given, 2, 100, generator)[0])
    assert [noisy.dtype for noisy in read] == [torch.bfloat16, torch.float32]
    assert torch.equal(read[0], read[1].bfloat16()) and torch.equal(*errors)


def test_an_untrained_expert_predicts_no_noise_so_its_loss_is_one():
    torch.manual_seed(0)
    fresh = Denoiser(ExpertConfig(width=32, layers=1, heads=2), condition_tokens=4, chunk_length=64, action_dim=7)
    actions, condition = torch.zeros(64, 64, 7), torch.zeros(64, 4, 32)
    loss = mean_error(*noise_errors(fresh, actions, torch.zeros(64, 64, dtype=torch.bool), condition, 4, 100))
    assert loss.item() == pytest.approx(1.0, abs=0.01)


def test_padded_rows_carry_no_loss(denoiser):
    class Silent:
        training = False

        def __call__(self, noisy, steps, condition):
            return torch.zeros_like(noisy)

    condition, is_pad = torch.randn(2, 4, 32), torch.tensor([[False, False, True]] * 2)
    generator = torch.Generator().manual_seed(0)
    silent: Any = Silent()
    loss = mean_error(*noise_errors(silent, torch.zeros(2, 3, 2), is_pad, condition, 2, 100, generator))
    generator.manual_seed(0)
    torch.randint(0, 100, (4,), generator=generator)
    noise = torch.randn(4, 3, 2, generator=generator)
    assert loss.item() == pytest.approx(noise[:, :2].square().mean().item(), rel=1e-6)


def test_guidance_of_one_is_the_plain_conditional_sample(denoiser):
    noise, condition = torch.randn(2, 3, 2), torch.randn(2, 4, 32)
    with torch.inference_mode():
        plain = sample_ddim(denoiser, noise, condition, 5, 100, 1.0)
        nearly = sample_ddim(denoiser, noise, condition, 5, 100, 1.0 + 1e-6)
        guided = sample_ddim(denoiser, noise, condition, 5, 100, 3.0)
    torch.testing.assert_close(plain, nearly, atol=1e-3, rtol=1e-3)
    assert (plain - guided).abs().max() > 0.01


def test_ddim_with_the_true_noise_finds_the_clean_actions_in_any_number_of_steps():
    clean, noise = torch.randn(1, 3, 2), torch.randn(1, 3, 2)

    class Oracle:
        def __call__(self, x, steps, condition):
            level = signal_levels(100)[int(steps[0])]
            return (x - math.sqrt(level) * clean) / math.sqrt(1 - level)

    oracle: Any = Oracle()
    start = add_noise(clean, noise, torch.tensor([80]), 100)
    torch.testing.assert_close(
        sample_ddim(oracle, start, torch.zeros(1, 4, 32), 5, 100, 1.0), clean, atol=1e-4, rtol=1e-4
    )


def test_dropped_conditions_become_the_learned_one(denoiser):
    condition = torch.randn(2, 4, 32)
    dropped = denoiser.drop_condition(condition, torch.tensor([0.05, 0.5]))
    assert torch.equal(dropped[0], denoiser.z_embedder.uncondition)
    assert torch.equal(dropped[1], condition[1])


def test_the_condition_runs_once_for_all_noise_draws(model, processor, action_samples):
    calls = []
    hook = model.query_transformer.register_forward_hook(lambda *_: calls.append(1))
    model.action_loss(processor.encode_actions(action_samples))
    hook.remove()
    assert len(calls) == 1


def test_a_small_expert_learns_two_actions_apart(processor):
    torch.manual_seed(0)
    expert = Denoiser(ExpertConfig(width=32, layers=1, heads=2), condition_tokens=1, chunk_length=1, action_dim=1)
    condition = torch.stack([torch.ones(1, 32), -torch.ones(1, 32)])
    actions = torch.tensor([[[0.8]], [[-0.8]]])
    optimiser = torch.optim.AdamW(expert.parameters(), 3e-3)
    for _ in range(150):
        loss = mean_error(*noise_errors(expert, actions, torch.zeros(2, 1, dtype=torch.bool), condition, 64, 100))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        sampled = sample_ddim(expert.eval(), torch.randn(2, 1, 1), condition, 10, 100, 1.0)
    torch.testing.assert_close(sampled, actions, atol=0.15, rtol=0)
