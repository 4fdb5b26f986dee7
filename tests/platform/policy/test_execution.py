"""From chunks to raw actions: ensembling, rotations, grippers, and the embodiments composed of them."""

import math

import numpy as np
import pytest

from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.embodiment import EmbodimentConfig
from st4vla.platform.policy.ensemble import ensemble
from st4vla.platform.policy.execution import Execution
from st4vla.platform.policy.gripper import CloseRelativeGripper, OpenPositiveGripper
from st4vla.platform.policy.rotation import euler_to_rotation_vector


def chunk(*openings: float, x: float = 0.01) -> np.ndarray:
    """A chunk whose translation counts its steps and whose gripper is given."""
    actions = np.zeros((len(openings), 7), np.float32)
    actions[:, 0] = x * (1 + np.arange(len(openings)))
    actions[:, 6] = openings
    return actions


def carry_out(execution: Execution, *chunks: np.ndarray) -> np.ndarray:
    """Take a new chunk before every step."""
    actions = []
    for one in chunks:
        assert execution.must_look()
        execution.take(one)
        actions.append(execution.next_action())
    return np.stack(actions)


# Rotations: the controllers take a rotation vector, published checkpoints answer Euler angles.


def test_a_turn_about_one_axis_is_the_same_in_both_forms():
    assert euler_to_rotation_vector(np.array([0, 0.3, 0])) == pytest.approx([0, 0.3, 0])


def test_two_quarter_turns_are_a_third_of_a_turn_about_the_diagonal():
    third = 2 * math.pi / 3 / math.sqrt(3)
    turned = euler_to_rotation_vector(np.array([math.pi / 2, math.pi / 2, 0]))
    assert turned == pytest.approx([third, third, -third])


def test_roll_comes_first_and_all_turn_about_the_fixed_axes():
    assert euler_to_rotation_vector(np.array([0.4, 0.5, 0.6])) == pytest.approx([0.23052847, 0.59260355, 0.47992953])


def test_no_turn_is_the_zero_vector_and_more_than_half_a_turn_goes_the_shorter_way():
    assert np.array_equal(euler_to_rotation_vector(np.zeros(3)), [0, 0, 0])
    assert euler_to_rotation_vector(np.array([1.5 * math.pi, 0, 0])) == pytest.approx([-math.pi / 2, 0, 0])


def test_many_rotations_turn_at_once():
    assert euler_to_rotation_vector(np.zeros((4, 2, 3))).shape == (4, 2, 3)


# Ensembling.


def test_equal_predictions_merge_to_themselves():
    assert ensemble([np.array([1.0, 2.0])] * 3, 0.1) == pytest.approx([1, 2])


def test_an_opposite_prediction_counts_by_exp_of_minus_two_alpha():
    near, far = math.exp(0.1), math.exp(-0.1)
    merged = ensemble([np.array([-1.0, 0.0]), np.array([1.0, 0.0])], 0.1)
    assert merged == pytest.approx([(near - far) / (near + far), 0])


def test_a_perpendicular_prediction_counts_less_than_the_newest():
    merged = ensemble([np.array([0.0, 3.0]), np.array([2.0, 0.0])], 1.0)
    assert merged == pytest.approx([2 * math.e / (1 + math.e), 3 / (1 + math.e)])


def test_without_alpha_all_count_alike_and_zeros_divide_by_nothing():
    assert ensemble([np.array([1.0]), np.array([3.0])], 0.0) == pytest.approx([2])
    assert np.array_equal(ensemble([np.zeros(2), np.zeros(2)], 0.1), [0, 0])


def test_overlapping_chunks_are_merged_step_by_step_within_the_horizon():
    config = EmbodimentConfig("any", ("any",), execute=1, ensemble_horizon=2, ensemble_alpha=0.0)
    rows = [np.array([[10.0 * i + step, 0, 0, 0, 0, 0, 1] for step in range(3)]) for i in range(1, 4)]
    merged = carry_out(Execution(config), *rows)
    # Step 0: 10. Step 1: the mean of 11 and 20. Step 2: of 21 and 30; 12 lies beyond the horizon.
    assert merged[:, 0] == pytest.approx([10, 15.5, 25.5])


def test_a_chunk_that_is_over_has_no_say():
    config = EmbodimentConfig("any", ("any",), execute=1, ensemble_horizon=7, ensemble_alpha=0.0)
    merged = carry_out(Execution(config), *[np.full((2, 7), float(i)) for i in range(4)])
    assert merged[:, 0] == pytest.approx([0, 0.5, 1.5, 2.5])


# Grippers.


def test_the_widowx_gripper_is_told_plus_one_for_open_and_minus_one_for_closed():
    gripper = OpenPositiveGripper()
    assert [gripper.command(x) for x in (1.0, 0.51, 0.5, 0.0)] == [1, 1, -1, -1]
    assert gripper.hold() == -1


def test_the_google_gripper_closes_with_plus_one_for_ten_steps_then_rests():
    gripper = CloseRelativeGripper(10)
    assert gripper.command(1.0) == 0
    assert [gripper.command(0.0) for _ in range(12)] == [1.0] * 10 + [0.0] * 2
    assert [gripper.command(1.0) for _ in range(11)] == [-1.0] * 10 + [0.0]


def test_fifteen_steps_where_the_port_of_another_policy_wants_fifteen():
    gripper = CloseRelativeGripper(15)
    assert sum(gripper.command(x) for x in [1.0] + [0.0] * 20) == 15


def test_a_change_is_not_listened_to_while_another_is_being_repeated_but_is_not_lost():
    gripper = CloseRelativeGripper(3)
    assert [gripper.command(x) for x in (1, 0, 1, 1, 1, 1, 1, 1)] == [0, 1, 1, 1, -1, -1, -1, 0]


def test_small_steps_add_up_to_a_change():
    gripper = CloseRelativeGripper(2)
    told = [gripper.command(x) for x in (1.0, 0.8, 0.6, 0.4, 0.4, 0.4)]
    assert told == pytest.approx([0, 0.2, 0.4, 0.6, 0.6, 0.0])


def test_a_new_episode_begins_without_the_last_ones_gripper():
    gripper = CloseRelativeGripper(10)
    for opening in (1.0, 0.0):
        gripper.command(opening)
    gripper.reset()
    assert gripper.command(0.0) == 0


# Embodiments.


def test_the_table_gets_the_chunk_as_it_is_and_looks_when_it_is_used_up():
    execution, actions = Execution(EmbodimentConfig.preset("tabletop_panda")), chunk(1.0, 0.3, 0.0)
    assert execution.must_look()
    execution.take(actions)
    given = []
    while not execution.must_look():
        given.append(execution.next_action())
    assert np.array_equal(given, actions) and given[0].dtype == np.float32


def test_a_look_every_second_action_drops_the_rest_of_the_chunk():
    execution = Execution(EmbodimentConfig("any", ("any",), execute=2))
    for start in (0.01, 0.5):
        execution.take(chunk(1, 1, 1, x=start))
        first, second = execution.next_action(), execution.next_action()
        assert execution.must_look() and (first[0], second[0]) == pytest.approx((start, 2 * start))


def test_the_widowx_is_planned_anew_at_every_step_with_seven_chunks_merged():
    config = EmbodimentConfig.preset("widowx")
    assert (config.execute, config.ensemble_horizon, config.ensemble_alpha) == (1, 7, 0.1)
    given = carry_out(Execution(config, "euler_xyz"), *[chunk(*[0.9] * 16)] * 3)
    assert given[:, 6].tolist() == [1, 1, 1]
    assert given[0, 0] == pytest.approx(0.01) and 0.01 < given[1, 0] < 0.02


def test_the_google_robot_is_told_changes_of_its_gripper_and_merges_two_chunks():
    config = EmbodimentConfig.preset("google_robot")
    assert (config.execute, config.ensemble_horizon, config.sticky_steps) == (1, 2, 10)
    given = carry_out(Execution(config), chunk(1, 1), *[chunk(0, 0)] * 13)
    # The second step merges 1 (old chunk) and 0 (newest, which counts a little more): a change of 0.524 of its way.
    assert given[0, 6] == 0 and given[1:11, 6] == pytest.approx([0.52446] * 10, abs=1e-5)
    # What is left of the way, 0.476, is too little to be repeated and is told as it is.
    assert given[11:, 6] == pytest.approx([0.47554] * 3, abs=1e-5)


def test_euler_angles_of_a_published_checkpoint_reach_the_controller_as_a_rotation_vector():
    action = np.zeros((1, 7), np.float32)
    action[0, 3:6] = math.pi / 2, math.pi / 2, 0
    execution = Execution(EmbodimentConfig("any", ("any",)), "euler_xyz")
    third = 2 * math.pi / 3 / math.sqrt(3)
    assert carry_out(execution, action)[0, 3:6] == pytest.approx([third, third, -third])
    assert carry_out(Execution(EmbodimentConfig("any", ("any",))), action)[0, 3:6] == pytest.approx(action[0, 3:6])


def test_the_action_scale_moves_the_arm_less_and_leaves_the_gripper():
    given = carry_out(Execution(EmbodimentConfig("any", ("any",), action_scale=0.5)), chunk(1.0, x=0.04))
    assert given[0].tolist() == pytest.approx([0.02, 0, 0, 0, 0, 0, 1])


def test_a_changed_instruction_forgets_the_chunks_and_keeps_the_gripper_going():
    execution = Execution(EmbodimentConfig("any", ("any",), gripper="close_relative", sticky_steps=5))
    execution.take(chunk(1, 0, 0))
    execution.next_action()
    execution.next_action()
    execution.forget_chunks()
    assert execution.must_look() and execution.hold_action()[6] == 1
    execution.take(chunk(0, 0))
    assert execution.next_action()[6] == 1
    execution.reset()
    assert execution.hold_action()[6] == 0


def test_the_hold_action_moves_nothing_and_keeps_the_gripper_where_it_was_told():
    for name, held in (("widowx", -1), ("tabletop_panda", 0)):
        execution = Execution(EmbodimentConfig.preset(name))
        execution.take(chunk(0.0))
        execution.next_action()
        assert execution.hold_action().tolist() == [0, 0, 0, 0, 0, 0, held]


def test_a_late_chunk_begins_at_the_step_it_has_come_to():
    execution = Execution(EmbodimentConfig("any", ("any",)))
    execution.take(chunk(1, 1, 1), late_steps=1)
    assert execution.next_action()[0] == pytest.approx(0.02)
    execution.next_action()
    assert execution.must_look()


def test_an_action_without_a_chunk_is_refused():
    with pytest.raises(PolicyError, match="new frame"):
        Execution(EmbodimentConfig.preset("widowx")).next_action()


def test_actions_of_joints_pass_as_they_are():
    given = carry_out(Execution(EmbodimentConfig("any", ("any",), action_scale=0.5)), np.ones((2, 8)))
    assert given[0].tolist() == [1] * 8


def test_statistics_are_found_under_the_names_checkpoints_use():
    widowx = EmbodimentConfig.preset("widowx")
    assert widowx.statistics_key(["oxe_rt1", "bridge_dataset"]) == "bridge_dataset"
    with pytest.raises(PolicyError, match="statistics of oxe_rt1; widowx needs one of oxe_bridge"):
        widowx.statistics_key(["oxe_rt1"])


@pytest.mark.parametrize("values", [{"ensemble_horizon": 0}, {"execute": 0}, {"sticky_steps": 0}])
def test_impossible_settings_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        EmbodimentConfig("any", ("any",), **values)


def test_an_unknown_embodiment_lists_those_there_are():
    with pytest.raises(ConfigError, match="google_robot, tabletop_panda, widowx"):
        EmbodimentConfig.preset("pr2")
