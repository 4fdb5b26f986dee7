"""The two systems apart: plans that are kept, newer frames under them, and guides on the clean chunk."""

import pickle

import numpy as np
import pytest
import torch

from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.inference import St4vlaPolicy
from st4vla.platform.policy.plan import stack_plans

KEYS = [(100 + i, i) for i in range(8)]
NAMES = [f"robot-{i}" for i in range(8)]


@pytest.fixture
def policy(model, processor) -> St4vlaPolicy:
    return St4vlaPolicy(model, processor, clock=lambda: 7.0)


def test_the_two_systems_apart_give_bitwise_what_they_give_together(policy, observations):
    together = policy.act(observations, NAMES, KEYS)
    apart = policy.actions(observations, policy.plan(observations), KEYS)
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(apart, together, strict=True))
    assert [a.spatial for a in apart] == [b.spatial for b in together]


def test_a_new_frame_under_an_old_plan_changes_the_action(policy, observations, make_image):
    seen = observations[0]
    moved = type(seen)({name: make_image(77) for name in seen.images}, seen.state, seen.instruction)
    plans = policy.plan([seen])
    first, same, other = (policy.actions([o], plans, KEYS[:1])[0].actions for o in (seen, seen, moved))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_another_plan_under_the_same_frame_changes_the_action(policy, observations):
    plans = policy.plan([observations[0], observations[1]])
    first, other = (policy.actions(observations[:1], [plan], KEYS[:1])[0].actions for plan in plans)
    assert not np.array_equal(first, other)


def test_a_chunk_says_how_old_its_plan_is_and_that_it_cost_nothing_now(model, processor, observations):
    now = [10.0]
    policy = St4vlaPolicy(model, processor, clock=lambda: now[0])
    plans = policy.plan(observations[:1])
    assert plans[0].made_at_s == 10.0 and plans[0].instruction == observations[0].instruction
    now[0] = 10.25
    (chunk,) = policy.actions(observations[:1], plans, KEYS[:1])
    assert chunk.plan_age_s == 0.25 and chunk.timing["system2_s"] == 0.0 and chunk.timing["system1_s"] > 0


def test_a_plan_has_no_padding_and_outlives_a_pickle(policy, observations):
    plans = policy.plan(observations[:2])
    assert plans[0].hidden.shape[1] != plans[1].hidden.shape[1]
    assert all(plan.mask.all() and plan.hidden.shape[1] == plan.mask.shape[1] for plan in plans)
    sent = pickle.loads(pickle.dumps(plans))
    first, second = (policy.actions(observations[:2], some, KEYS[:2]) for some in (plans, sent))
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(first, second, strict=True))


def test_padding_beside_a_longer_plan_changes_nothing_beyond_rounding(policy, observations):
    plans = policy.plan(observations[:2])
    hidden, mask = stack_plans(plans, 64)
    assert hidden.shape[:2] == mask.shape == (2, 64) and mask.sum(1).tolist() == [p.hidden.shape[1] for p in plans]
    seen = policy.processor.encode_views(observations[:2])
    with torch.inference_mode():
        together = policy.model.condition(hidden, mask, seen["images"], seen["state"])
        alone = policy.model.condition(plans[1].hidden, plans[1].mask, seen["images"][1:], seen["state"][1:])
    assert torch.allclose(together[1], alone[0], atol=1e-5)


def test_a_guide_that_changes_nothing_changes_nothing_beyond_rounding(policy, observations):
    plans = policy.plan(observations[:1])
    plain = policy.actions(observations[:1], plans, KEYS[:1])[0].actions
    guided = policy.actions(observations[:1], plans, KEYS[:1], guide=lambda clean, level: clean)[0].actions
    assert np.allclose(plain, guided, atol=1e-5)


def test_a_guide_pins_the_steps_it_holds_and_moves_the_others(policy, observations):
    plans = policy.plan(observations[:1])
    plain = policy.actions(observations[:1], plans, KEYS[:1])[0].actions
    levels = []

    def pin(clean, level):
        levels.append(level)
        return torch.cat([torch.full_like(clean[:, :2], 0.5), clean[:, 2:]], dim=1)

    guided = policy.actions(observations[:1], plans, KEYS[:1], guide=pin)[0].actions
    held = policy.processor.normalizer("tabletop_panda").unnormalize_action(np.full((2, 7), 0.5, np.float32))
    assert np.array_equal(guided[:2], held)
    assert not np.array_equal(guided[2:], plain[2:])
    assert len(levels) == 5 and levels == sorted(levels) and 0 < levels[0] < levels[-1] < 1


def test_each_row_has_its_own_guide_or_none(policy, observations):
    plans = policy.plan(observations[:2])
    plain = policy.actions(observations[:2], plans, KEYS[:2])
    guided = policy.actions(observations[:2], plans, KEYS[:2], guide=[None, lambda clean, level: clean * 0])
    assert np.array_equal(plain[0].actions, guided[0].actions)
    assert np.ptp(guided[1].actions[:, :6], axis=0).max() == 0


def test_a_missing_plan_is_refused_in_numbers(policy, observations):
    with pytest.raises(PolicyError, match="2 observations, 1 plans and 2 noise keys"):
        policy.actions(observations[:2], policy.plan(observations[:1]), KEYS[:2])
