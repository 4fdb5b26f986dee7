"""The Google robot's plans: jerk-limited paths cut at the control step, and contacts judged by impulse."""

from types import SimpleNamespace

import numpy as np
import pytest

from st4vla.envs.simpler.contacts import Contacts, angle_between
from st4vla.envs.simpler.google_robot import ARM_LIMITS, GooglePlanner, Path, google_robot
from st4vla.envs.simpler.overlay import compose, truncated
from st4vla.envs.simpler.robot import robot_model
from st4vla.platform.errors import EnvError

TIMES = np.arange(172) / 513


def test_a_path_starts_where_it_is_told_and_keeps_its_limits():
    path = Path(np.array([0.1, 0.0]), np.zeros(2), np.array([0.4, -0.05]), ARM_LIMITS, TIMES)
    assert path.positions.shape == (172, 2)
    np.testing.assert_allclose(path.positions[0], [0.1, 0.0])
    assert np.abs(path.velocities).max() <= 1.5
    assert path.positions[-1, 0] < 0.4  # cut before its end: 0.3 rad take longer than a control step


def test_a_short_path_rests_at_its_goal():
    path = Path(np.array([0.0]), np.zeros(1), np.array([0.002]), ARM_LIMITS, TIMES)
    assert path.positions[-1, 0] == pytest.approx(0.002)
    assert path.velocities[-1, 0] == pytest.approx(0.0, abs=1e-9)


def test_a_path_from_nowhere_is_refused():
    with pytest.raises(EnvError, match="No path leads"):
        Path(np.array([np.nan]), np.zeros(1), np.zeros(1), ARM_LIMITS, TIMES)


def planner() -> GooglePlanner:
    joints = google_robot("google_robot_static").joints
    limits = np.tile([-4.0, 4.0], (len(joints), 1))
    limits[7:9] = [-0.0001, 1.3]
    solver = SimpleNamespace(limits=limits, solve=lambda pose, qpos, movable: None)
    return GooglePlanner(solver, joints, 513, 171)  # type: ignore[arg-type]


def measured(fingers: float = 0.0) -> SimpleNamespace:
    import sapien

    qpos = np.zeros(11)
    qpos[7:9] = fingers
    return SimpleNamespace(qpos=qpos, qvel=np.zeros(11), tcp_at_base=sapien.Pose())


def test_the_fingers_are_told_a_share_of_131_rad_and_stop_a_little_behind_their_limit():
    brain, start = planner(), measured()
    brain.reset(start)  # type: ignore[arg-type]
    for _ in range(8):
        plan = brain.plan(np.array([0, 0, 0, 0, 0, 0, 1.0]), measured(brain._finger_told[0]))  # type: ignore[arg-type]
    assert brain._finger_told[0] == pytest.approx(1.31)
    assert plan.targets[-1, 7] == 1.3
    assert plan.velocities is not None
    assert plan.velocities.shape == (171, 11)


def test_a_small_gripper_action_keeps_the_goal_of_the_one_before():
    brain = planner()
    brain.reset(measured())  # type: ignore[arg-type]
    brain.plan(np.array([0, 0, 0, 0, 0, 0, 1.0]), measured())  # type: ignore[arg-type]
    told = brain._finger_told[0]
    assert told < 1.0
    brain.plan(np.zeros(7), measured(told))  # type: ignore[arg-type]
    assert brain._finger_told[0] > told  # still closing


def test_an_unsolved_pose_leaves_the_arm_where_it_is():
    brain = planner()
    brain.reset(measured())  # type: ignore[arg-type]
    plan = brain.plan(np.array([9.0, 0, 0, 0, 0, 0, 0]), measured())  # type: ignore[arg-type]
    np.testing.assert_allclose(plan.targets[:, :7], 0.0)


def test_the_ablations_differ_in_what_they_are_named_for():
    assert (
        robot_model("google_robot_static_quarter_finger_friction").surfaces["link_finger_left"].static_friction == 0.5
    )
    assert robot_model("google_robot_static_worse_control3").motors["joint_torso"][0] == 1200.0
    with pytest.raises(EnvError, match="hexapod"):
        robot_model("hexapod")


def contact(one: object, other: object, impulse: list[float]) -> SimpleNamespace:
    bodies = [SimpleNamespace(entity=one), SimpleNamespace(entity=other)]
    half = SimpleNamespace(impulse=np.array(impulse) / 2)
    return SimpleNamespace(bodies=bodies, shapes=[None, None], points=[half, half])


def test_impulses_are_summed_over_points_and_turned_to_act_on_the_first_body():
    finger, can = object(), object()
    contacts = Contacts([contact(can, finger, [0, 0, 2e-6])])
    np.testing.assert_allclose(contacts.between(can, finger), [0, 0, 2e-6])
    np.testing.assert_allclose(contacts.between(finger, can), [0, 0, -2e-6])


def test_a_touch_weaker_than_a_millionth_does_not_count():
    can, table, arm = object(), object(), object()
    assert not Contacts([contact(can, table, [0, 0, 0.9e-6])]).touches_other_than(can, [arm])
    assert Contacts([contact(table, can, [0, 0, 1.1e-6])]).touches_other_than(can, [arm])
    assert not Contacts([contact(arm, can, [0, 0, 1.0])]).touches_other_than(can, [arm])


def test_the_angle_to_nothing_is_a_right_angle():
    assert angle_between(np.array([0, 1.0, 0]), np.zeros(3)) == pytest.approx(np.pi / 2)


def test_the_photograph_lies_over_the_background_and_floats_are_cut_off():
    rendered = np.full((1, 2, 3), 0.999)
    photo = np.full((1, 2, 3), 7, dtype=np.uint8)
    seen = compose(rendered, np.array([[1, 0]], dtype=np.uint8), photo, blend=False)
    np.testing.assert_array_equal(seen[0], [[254, 254, 254], [7, 7, 7]])
    assert truncated(np.array([1.7]))[0] == 255
