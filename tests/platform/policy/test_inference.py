"""Acting: rows that never depend on their neighbours, plans that may be old, answers in words."""

import numpy as np
import pytest
import torch

from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.dense import place_of_peak
from st4vla.platform.policy.inference import InferenceConfig, St4vlaPolicy, draw_noise
from st4vla.platform.policy.processor import Processor

KEYS = [(100 + i, i) for i in range(8)]
NAMES = [f"robot-{i}" for i in range(8)]


@pytest.fixture
def policy(model, processor) -> St4vlaPolicy:
    return St4vlaPolicy(model, processor)


def test_a_row_is_bitwise_the_same_alone_and_among_eight(policy, observations):
    together = policy.act(observations, NAMES, KEYS)
    for i in range(8):
        alone = policy.act([observations[i]], [NAMES[i]], [KEYS[i]])[0]
        assert np.array_equal(alone.actions, together[i].actions)


def test_a_row_is_bitwise_the_same_at_any_place_in_the_batch(policy, observations):
    forwards = policy.act(observations, NAMES, KEYS)
    backwards = policy.act(observations[::-1], NAMES[::-1], KEYS[::-1])[::-1]
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(forwards, backwards, strict=True))


def test_another_key_draws_another_chunk(policy, observations):
    first, second = (policy.act(observations[:1], NAMES[:1], [key])[0].actions for key in ((1, 0), (1, 1)))
    assert not np.array_equal(first, second)


def test_a_chunk_is_eight_physical_actions_within_the_statistics(policy, observations):
    actions = policy.act(observations[:1], NAMES[:1], KEYS[:1])[0].actions
    assert actions.shape == (8, 7) and actions.dtype == np.float32
    assert np.abs(actions[:, :3]).max() <= 0.05 and set(actions[:, 6]) <= {0.0, 1.0}


def test_noise_is_a_function_of_the_key_alone():
    assert draw_noise((7, 3), (2, 2))[0, 0] == draw_noise((7, 3), (5, 4))[0, 0]
    assert draw_noise((7, 3), (1, 1)) != draw_noise((3, 7), (1, 1))
    draw_noise((-1, 2**70), (1, 1))


def test_an_old_plan_serves_until_its_period_is_over_and_says_its_age(model, processor, observations):
    now = [10.0]
    policy = St4vlaPolicy(model, processor, InferenceConfig(plan_period_s=0.5), clock=lambda: now[0])
    ages = []
    for now[0] in (10.0, 10.2, 10.4, 10.6):
        ages.append(policy.act(observations[:1], ["a"], [(0, 0)])[0].plan_age_s)
    assert ages == pytest.approx([0, 0.2, 0.4, 0])


def test_a_new_frame_under_an_old_plan_still_changes_the_action(model, processor, observations, make_image):
    policy = St4vlaPolicy(model, processor, InferenceConfig(plan_period_s=9), clock=lambda: 0.0)
    seen = observations[0]
    moved = type(seen)({name: make_image(77) for name in seen.images}, seen.state, seen.instruction)
    first, same, other = (policy.act([o], ["a"], [(0, 0)])[0].actions for o in (seen, seen, moved))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_changed_instruction_and_a_reset_ask_for_a_new_plan(model, processor, observations, monkeypatch):
    policy = St4vlaPolicy(model, processor, InferenceConfig(plan_period_s=9), clock=lambda: 0.0)
    calls, plan = [], policy.engine.plan
    monkeypatch.setattr(policy.engine, "plan", lambda *given: calls.append(1) or plan(*given))
    for observation in (observations[0], observations[0], observations[1]):
        policy.act([observation], ["a"], [(0, 0)])
    policy.reset("a")
    policy.act([observations[1]], ["a"], [(0, 0)])
    assert len(calls) == 3


def test_answers_are_given_with_their_text_even_where_no_place_can_be_read(policy, make_image):
    (answer,) = policy.ground([make_image(0)], ["Point to the red cube."])
    assert answer.spatial is None and isinstance(answer.text, str)


def test_actions_that_are_not_finite_are_refused(model, processor, observations):
    bias = model.action_expert.final_layer.linear.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[0] = float("nan")
    with pytest.raises(PolicyError, match="not finite"):
        St4vlaPolicy(model, processor).act(observations[:1], ["a"], [(0, 0)])
    with torch.no_grad():
        bias.copy_(kept)


def test_buckets_must_be_sorted():
    with pytest.raises(ConfigError, match="buckets"):
        InferenceConfig(buckets=(8, 1))


def test_a_peak_is_weighted_about_its_likeliest_cell_and_ignores_a_far_one():
    chances = torch.zeros(32, 32)
    chances[4, 10], chances[4, 11], chances[20, 20] = 0.3, 0.3, 0.25
    x, y, mass = place_of_peak(chances[None])[0].tolist()
    assert (x * 128, y * 128, mass) == pytest.approx((44.0, 18.0, 0.6))


def test_a_peak_at_one_end_of_an_object_is_weighted_with_the_other_end():
    chances = torch.zeros(32, 32)
    chances[10, 10:14] = torch.tensor([0.28, 0.24, 0.24, 0.24])
    x, y, mass = place_of_peak(chances[None])[0].tolist()
    assert (x * 128, y * 128, mass) == pytest.approx((47.76, 42.0, 1.0))


def test_a_chunk_says_where_its_plan_points(policy, observations):
    chunk = policy.act(observations[:1], ["a"], [(0, 0)])[0]
    assert chunk.spatial is not None and chunk.spatial.label == observations[0].instruction
    assert all(0 <= part <= 128 for part in chunk.spatial.points[0])


def test_a_policy_acts_for_the_embodiment_it_is_told_of_its_statistics(model, processor, observations):
    own = processor.statistics["tabletop_panda"]
    wide = EmbodimentStatistics("wide", Statistics.of(np.linspace(-10, 10, 14).reshape(2, 7)), own.state)
    both = Processor(processor.config, processor.tokenizer, {"tabletop_panda": own, "wide": wide})
    policy = St4vlaPolicy(model, both, InferenceConfig(statistics_key="wide"))
    assert policy.spec.statistics_key == "wide"
    plain = St4vlaPolicy(model, processor).act(observations[:1], ["a"], [(0, 0)])[0].actions
    other = policy.act(observations[:1], ["a"], [(0, 0)])[0].actions
    assert np.abs(other[:, :6]).max() > 1 > np.abs(plain[:, :6]).max()


def test_an_embodiment_without_statistics_is_refused_with_those_there_are(model, processor):
    with pytest.raises(PolicyError, match="No statistics for 'pr2' .there are: tabletop_panda"):
        St4vlaPolicy(model, processor, InferenceConfig(statistics_key="pr2"))
