"""Real-time chunking: what a new chunk keeps of the one that is being executed."""

import numpy as np
import pytest
import torch

from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.diffusion import sample_ddim
from st4vla.platform.policy.inference import St4vlaPolicy
from st4vla.platform.policy.realtime import (
    Inpainting,
    RealtimeConfig,
    check_range,
    continuation,
    delta_columns,
    hold_last,
    soft_mask,
)

OLD = np.arange(16, dtype=np.float32).reshape(8, 2)


def test_the_exponential_mask_freezes_the_delay_and_decays_to_zero_where_the_old_chunk_ends():
    assert soft_mask(8, 2, 3) == pytest.approx([1, 1, 0.4876, 0.1888, 0.0413, 0, 0, 0], abs=1e-4)


def test_the_linear_mask_falls_by_equal_steps():
    assert soft_mask(8, 2, 3, "linear") == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0, 0])


def test_ones_keeps_the_whole_overlap_and_zeros_only_the_frozen_rows():
    assert soft_mask(8, 2, 3, "ones").tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert soft_mask(8, 2, 3, "zeros").tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
@pytest.mark.parametrize(("delay", "executed"), [(0, 0), (0, 5), (1, 4), (2, 2), (2, 6), (4, 4)])
def test_no_mask_ever_rises(schedule, delay, executed):
    mask = soft_mask(8, delay, executed, schedule)
    assert (np.diff(mask) <= 0).all() and (mask[:delay] == 1).all() and (mask[8 - executed :] == 0).all()


@pytest.mark.parametrize(("executed", "delay"), [(0, 0), (1, 1), (2, 2), (6, 2), (4, 4), (8, 0)])
def test_executed_steps_from_the_delay_to_the_horizon_less_the_delay_are_in_range(executed, delay):
    check_range(8, executed, delay)


@pytest.mark.parametrize(("executed", "delay"), [(1, 2), (7, 2), (0, 1), (9, 0)])
def test_executed_steps_out_of_range_are_refused_by_name(executed, delay):
    with pytest.raises(PolicyError, match=f"executed_steps is {executed}"):
        check_range(8, executed, delay)


@pytest.mark.parametrize("delay", [5, 8, -1])
def test_a_delay_that_a_chunk_cannot_bridge_is_refused_by_name(delay):
    with pytest.raises(PolicyError, match=f"delay_steps is {delay}"):
        check_range(8, 4, delay)


def test_a_delay_beyond_the_configured_range_is_refused():
    with pytest.raises(PolicyError, match="can bridge 0 to 2"):
        check_range(8, 4, 3, RealtimeConfig(max_delay_steps=2))


def test_an_unknown_schedule_is_refused():
    wrong: str = "cosine"
    with pytest.raises(ConfigError, match="schedule"):
        RealtimeConfig(wrong)  # pyright: ignore[reportArgumentType]


def test_what_the_old_chunk_no_longer_has_repeats_its_last_action_and_is_never_zero():
    assert hold_last(OLD[6:], 5).tolist() == [[12, 13], [14, 15], [14, 15], [14, 15], [14, 15]]


def test_row_i_continues_row_executed_plus_i_of_the_old_chunk():
    kept = continuation(OLD[3:], 2, 8)
    assert kept is not None and kept.delay == 2
    assert kept.actions[:5].tolist() == OLD[3:].tolist()
    assert kept.weights.tolist() == soft_mask(8, 2, 3).tolist()


def test_after_the_whole_chunk_there_is_nothing_to_continue():
    assert continuation(OLD[8:], 0, 8) is None


def test_a_standing_robot_cannot_have_a_delay():
    with pytest.raises(PolicyError, match="executed_steps is 8"):
        continuation(OLD[8:], 2, 8)


def test_frozen_rows_are_given_back_as_they_were_promised():
    kept = continuation(OLD[3:], 2, 8)
    assert kept is not None
    actions = kept.keep_frozen(np.full((8, 2), -1, np.float32))
    assert actions[:2].tolist() == [[6, 7], [8, 9]] and (actions[2:] == -1).all()


def test_inpainting_mixes_by_the_weight_and_leaves_free_rows_bit_for_bit():
    clean = torch.tensor([[[0.1], [0.3], [0.7]]])
    given = Inpainting(np.ones((3, 1)), np.array([1, 0.5, 0]))(clean, 0.5)
    assert given[0, :2, 0].tolist() == pytest.approx([1.0, 0.65])
    assert torch.equal(given[0, 2], clean[0, 2])


def made_up(clean, weights, target=(0, 0, 0, 0), deltas=(True,)):
    guide = Inpainting(np.array(target)[:, None], np.array(weights), np.array(deltas))
    return guide(torch.tensor(clean)[None, :, None], 0.5)[0, :, 0].tolist()


def test_what_frozen_rows_take_from_the_way_is_made_up_behind_them():
    assert made_up([0.5, 0.3, 0.1, 0.0], [1, 1, 0, 0]) == pytest.approx([0, 0, 0.9, 0])


def test_what_does_not_fit_into_one_row_goes_on_to_the_next():
    assert made_up([0.9, 0.8, 0.5, 0.1], [1, 1, 0, 0]) == pytest.approx([0, 0, 1.0, 1.0])


def test_rows_that_are_partly_free_make_up_their_part():
    assert made_up([0.4, 0.0, 0.0, 0.0], [1, 0.5, 0, 0]) == pytest.approx([0, 0.2, 0.2, 0])


def test_an_absolute_column_has_nothing_to_make_up():
    assert made_up([0.5, 0.3, 0.1, 0.0], [1, 1, 0, 0], deltas=(False,)) == pytest.approx([0, 0, 0.1, 0])


def test_the_hand_moves_by_deltas_and_the_gripper_does_not():
    assert delta_columns("delta_end_effector", 7).tolist() == [True] * 6 + [False]
    assert not delta_columns("absolute_joints", 7).any() and delta_columns("delta_joints", 7).all()


class Expert:
    """A denoiser whose every row's clean chunk is one value, and whose free rows follow the first row's noisy value."""

    def __call__(self, x, steps, condition):
        return 0.3 * x + 0.2 * x[:, :1]


def sample(noise, guides, guidance=1.0):
    expert = Expert()
    expert.z_embedder = type("Z", (), {"uncondition": torch.zeros(1, 1)})()  # pyright: ignore[reportAttributeAccessIssue]
    return sample_ddim(expert, noise, torch.zeros(len(noise), 1, 1), 5, 100, guidance, guides)  # pyright: ignore[reportArgumentType]


def test_a_sampled_chunk_keeps_its_frozen_rows_and_the_others_hear_of_them():
    noise = torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(0))
    free = sample(noise, ())
    frozen = sample(noise, [Inpainting(np.full((4, 1), 0.5), np.array([1, 0, 0, 0]))])
    assert frozen[0, 0, 0].item() == pytest.approx(0.5, abs=1e-6)
    assert (frozen[0, 1:] - free[0, 1:]).abs().min() > 1e-4


def test_a_guide_of_weight_nothing_changes_no_bit():
    noise = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0))
    nothing = Inpainting(np.ones((4, 1)), np.zeros(4))
    assert torch.equal(sample(noise, ()), sample(noise, [nothing, None]))


def test_a_row_of_the_batch_never_hears_of_its_neighbours_guide():
    noise = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0))
    together = sample(noise, [Inpainting(np.ones((4, 1)), np.ones(4)), None])
    assert torch.equal(together[1], sample(noise, ())[1])


@pytest.fixture
def policy(model, processor) -> St4vlaPolicy:
    return St4vlaPolicy(model, processor)


def continued(policy, observations, key=(5, 1), delay=2, executed=3):
    old = policy.act(observations[:1], ["a"], [(5, 0)])[0].actions
    kept = continuation(old[executed:], delay, 8)
    assert kept is not None
    guide = Inpainting.of(kept, policy.processor.normalizer("tabletop_panda"), "delta_end_effector")
    plans = policy.plan(observations[:1])
    chunk = policy.actions(observations[:1], plans, [key], [guide])[0]
    return old, kept.keep_frozen(chunk.actions)


def test_the_policy_continues_its_own_chunk_under_guidance(policy, observations):
    assert policy.model.config.expert.guidance != 1.0
    old, new = continued(policy, observations)
    assert np.array_equal(new[:2], old[3:5])
    fresh = policy.act(observations[:1], ["a"], [(5, 1)])[0].actions
    assert np.abs(new[2] - old[5])[:6].max() < np.abs(fresh[2] - old[5])[:6].max()
    assert not np.array_equal(new[2:], fresh[2:])


def test_a_continued_chunk_is_a_function_of_its_noise_key(policy, observations):
    same, again, other = (continued(policy, observations, key)[1] for key in ((5, 1), (5, 1), (5, 2)))
    assert np.array_equal(same, again) and not np.array_equal(same, other)
