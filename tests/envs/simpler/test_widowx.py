"""The WidowX moves, holds and puts things down as the original's does; needs the scenes of ST4VLA_ASSETS."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sapien
from scipy.spatial.transform import Rotation

from st4vla.envs.simpler import widowx_suites
from st4vla.envs.simpler.cases import Case
from st4vla.envs.simpler.control import Measured
from st4vla.envs.simpler.widowx import START_QPOS, WidowXPlanner
from st4vla.envs.simpler.world import SimplerWorld
from st4vla.platform.errors import EnvError

ASSETS = Path(os.environ.get("ST4VLA_ASSETS", ""), "data", "robots", "widowx")
needs_assets = pytest.mark.skipif(not ASSETS.is_dir(), reason="ST4VLA_ASSETS names no tree with the WidowX")
PACKAGED = {"prepackaged_config": True}


class Straight:
    """Kinematics of an arm whose joints are the tool's position and whose tool never turns."""

    def __init__(self) -> None:
        self.limits = np.tile([0.015, 0.037], (8, 1))
        self.asked: list[sapien.Pose] = []

    def tcp_at(self, qpos: np.ndarray) -> sapien.Pose:
        return sapien.Pose(qpos[:3].tolist())

    def solve(self, pose: sapien.Pose, qpos: np.ndarray, movable: np.ndarray) -> np.ndarray | None:
        self.asked.append(pose)
        return None if pose.p[0] > 1.0 else np.concatenate([pose.p, qpos[3:]])


@pytest.fixture
def planner() -> WidowXPlanner:
    joints = (
        "waist",
        "shoulder",
        "elbow",
        "forearm_roll",
        "wrist_angle",
        "wrist_rotate",
        "left_finger",
        "right_finger",
    )
    plans = WidowXPlanner(Straight(), joints, 500, 100)  # pyright: ignore[reportArgumentType]
    plans.reset(at(0.0))
    return plans


def at(x: float) -> Measured:
    qpos = np.array([x, 0, 0, 0, 0, 0, 0.03, 0.03])
    return Measured(qpos, np.zeros(8), sapien.Pose([x, 0, 0]))


def move(*values: float, grip: float = 1.0) -> np.ndarray:
    return np.array([*values, *[0.0] * (6 - len(values)), grip])


def test_steps_add_up_on_what_was_told_and_not_on_where_the_arm_is(planner: WidowXPlanner) -> None:
    planner.plan(move(0.02), at(0.0))
    targets = planner.plan(move(0.02), at(0.005)).targets
    assert targets.shape == (1, 8)
    assert targets[0, :3] == pytest.approx([0.04, 0, 0], abs=1e-6)


def test_a_turn_is_about_where_the_tool_is_measured_so_it_carries_a_target_that_runs_ahead(
    planner: WidowXPlanner,
) -> None:
    planner.plan(move(0.1), at(0.0))
    targets = planner.plan(move(0, 0, 0, 0, 0, np.pi / 2), at(0.04)).targets
    assert targets[0, :3] == pytest.approx([0.04, 0.06, 0.0], abs=1e-6)
    told = planner._kinematics.asked[-1]  # pyright: ignore[reportAttributeAccessIssue]
    assert Rotation.from_quat(told.q[[1, 2, 3, 0]]).as_rotvec() == pytest.approx([0, 0, np.pi / 2], abs=1e-5)


def test_where_there_is_no_solution_the_arm_stays_and_the_target_keeps_running(planner: WidowXPlanner) -> None:
    assert planner.plan(move(2.0), at(0.3)).targets[0, :3] == pytest.approx([0.3, 0, 0])
    assert planner.plan(move(-1.5), at(0.3)).targets[0, :3] == pytest.approx([0.5, 0, 0], abs=1e-6)


def test_the_gripper_is_absolute_and_stops_at_the_joints_limits(planner: WidowXPlanner) -> None:
    fingers = {grip: planner.plan(move(grip=grip), at(0.0)).targets[0, 6:] for grip in (-3.0, -1.0, 0.0, 1.0)}
    assert fingers[-3.0] == pytest.approx([0.015, 0.015]) and fingers[-1.0] == pytest.approx([0.015, 0.015])
    assert fingers[0.0] == pytest.approx([0.026, 0.026]) and fingers[1.0] == pytest.approx([0.037, 0.037])


def test_holding_keeps_the_gripper_as_it_was_told(planner: WidowXPlanner) -> None:
    assert planner.hold_action() == pytest.approx([0, 0, 0, 0, 0, 0, 1 / 3])
    planner.plan(move(grip=-1.0), at(0.0))
    assert planner.hold_action() == pytest.approx([0, 0, 0, 0, 0, 0, -1])


def test_the_suite_has_24_episodes_of_each_of_the_four_tasks() -> None:
    plan = widowx_suites.plan("simplerenv_widowx")
    assert len(plan) == len({spec.episode_id for spec in plan}) == 96
    assert [spec.seed for spec in plan[24:48]] == list(range(24))
    assert plan[0].instruction == "put the spoon on the towel"


@pytest.fixture(scope="module")
def world() -> Iterator[SimplerWorld]:
    made = SimplerWorld()
    yield made
    made.close()


def reset(world: SimplerWorld, env_id: str, episode: int, **build: object) -> None:
    world.reset_case(Case(env_id, {**PACKAGED, **build}, obj={"episode_id": episode}, seed=0))


@needs_assets
@pytest.mark.sim
def test_the_spoon_lies_as_in_the_original(world: SimplerWorld) -> None:
    reset(world, "PutSpoonOnTableClothInScene-v0", 5)
    mass = world.view.bodies["bridge_spoon_generated_modified"].cmass_local_pose
    assert mass.p == pytest.approx([0.00872481, 0.00013684, 0.0006748], abs=1e-7)
    box = world.judge._boxes[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert box == pytest.approx([-0.0340, 0.1388, 0.0326], abs=3e-4)


@needs_assets
@pytest.mark.sim
def test_the_carrot_is_grasped_carried_and_put_on_the_plate_without_slipping(world: SimplerWorld) -> None:
    reset(world, "PutCarrotOnPlateInScene-v0", 0)
    source, target = world.judge._source, world.judge._target  # pyright: ignore[reportAttributeAccessIssue]
    carrot, plate = (world.view.mass_pose(name)[:3] for name in (source, target))
    go(world, carrot + [0, 0, 0.08], 1.0)
    go(world, carrot + [0, 0, 0.012], 1.0)  # lower, the finger tips would stand on the table
    for _ in range(5):
        world.step(move(grip=-1.0))
    assert world.verdict["is_src_obj_grasped"]
    go(world, carrot + [0, 0, 0.11], -1.0)
    lifted = world.view.position(source) - world.view.tcp.p
    go(world, plate + [0, 0, 0.11], -1.0)
    assert world.view.position(source) - world.view.tcp.p == pytest.approx(lifted, abs=1e-3)
    assert world.verdict["consecutive_grasp"] and not world.verdict["success"]
    go(world, plate + [0, 0, 0.055], -1.0)
    for _ in range(4):
        world.step(move(grip=1.0))
    go(world, plate + [0, 0, 0.13], 1.0)
    assert world.verdict["success"] and world.verdict["moved_correct_obj"]
    assert world.progress().partial_credit == 1.0


def go(world: SimplerWorld, place: np.ndarray, grip: float) -> None:
    """Steer the tool to a place in the world, 2 cm a step at most along each axis."""
    base = Rotation.from_quat(world.view.robot.pose.q[[1, 2, 3, 0]])
    for _ in range(18):
        apart = place - world.view.tcp.p
        if np.linalg.norm(apart) < 0.004:
            return
        world.step(move(*base.inv().apply(np.clip(apart, -0.02, 0.02)), grip=grip))


@needs_assets
@pytest.mark.sim
def test_an_episode_is_bitwise_the_same_after_another_one(world: SimplerWorld) -> None:
    reset(world, "PutCarrotOnPlateInScene-v0", 3)
    first = world.snapshot()
    world.step(move(0.02, 0.01))
    moved = world.snapshot()
    reset(world, "PutCarrotOnPlateInScene-v0", 4)
    world.step(move(0.0, 0.0, 0.02))
    reset(world, "PutCarrotOnPlateInScene-v0", 3)
    assert np.array_equal(world.snapshot(), first)
    world.step(move(0.02, 0.01))
    assert np.array_equal(world.snapshot(), moved)


@needs_assets
@pytest.mark.sim
def test_the_sink_s_robot_stands_where_the_original_s_does_and_the_eggplant_lies_in_the_sink(
    world: SimplerWorld,
) -> None:
    reset(world, "PutEggplantInBasketScene-v0", 0)
    assert world.view.robot.pose.p == pytest.approx([0.127, 0.06, 0.85])
    assert world.view.qpos()[0] == pytest.approx(-0.2600599) != START_QPOS[0]
    assert world.view.position("sink") == pytest.approx([-0.16, 0.13, 0.88])
    assert 0.92 < world.view.position("eggplant")[2] < 0.95
    assert world.max_steps == 120 and world.instruction == "put eggplant into yellow basket"


@needs_assets
@pytest.mark.sim
def test_an_option_the_original_lacks_is_refused(world: SimplerWorld) -> None:
    with pytest.raises(EnvError, match="has no build option 'gravity'"):
        reset(world, "PutCarrotOnPlateInScene-v0", 0, gravity=0)
