"""Describe the WidowX 250 of the original: its numbers, and the planner of its 7 raw action values.

Raw action: [dx, dy, dz] m and a rotation vector in rad, both in the robot's base axes, moving the pose the tool was
last *told* to reach; the turn is about where the tool is *measured* to be, so it also carries the told position while
the arm lags. Then the gripper, -1 closed and +1 open, absolute. The targets hold still for the whole control step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sapien
from scipy.spatial.transform import Rotation

from st4vla.envs.simpler.control import Kinematics, Measured, Plan
from st4vla.envs.simpler.robot import CameraModel, Pads, RobotModel, Surface

ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
FINGERS = ("left_finger", "right_finger")
JOINTS = (*ARM, *FINGERS)
START_QPOS = (-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398, 0.037, 0.037)
SINK_START_QPOS = (-0.2600599, -0.12875618, 0.04461369, -0.00652761, 1.7033415, -0.26983038, 0.037, 0.037)
BASE_HEIGHT, SINK_BASE_HEIGHT = 0.870, 0.85

ARM_MOTORS = (
    (1169.7891719504198, 330.0, 200.0),
    (730.0, 180.0, 200.0),
    (808.4601346394447, 152.12036565582588, 100.0),
    (1229.1299089624076, 309.6215302722146, 100.0),
    (1272.2760456418862, 201.04998711007383, 100.0),
    (1056.3326605132252, 269.51458932695414, 100.0),
)
FINGER_MOTOR = (1000.0, 200.0, 60.0)
FINGER_CLOSED_M, FINGER_OPEN_M = 0.014, 0.038
GRASP_DEGREES = 60.0

PADS = (Pads(("left_finger_link",), 1.0), Pads(("right_finger_link",), -1.0))
GRIP = Surface(2.0, 2.0, 0.01, 0.01)
# PhysX ignores a pair of shapes that share a bit of the third group: the bar lets both fingers through.
LET_THROUGH = {"gripper_bar_link": 0b11, "left_finger_link": 0b01, "right_finger_link": 0b10}

# Pose [7] of the camera on the base, by the original's name of the robot, with its near plane in m.
CAMERAS = {
    "widowx": ((0.0, -0.16, 0.36, 0.8992917, -0.09263245, 0.35892478, 0.23209205), 0.1),
    "widowx_bridge_dataset_camera_setup": ((0.0, -0.16, 0.336, 0.909182, -0.0819809, 0.347277, 0.214629), 0.1),
    "widowx_sink_camera_setup": ((-0.00300001, -0.21, 0.39, -0.907313, 0.0782, -0.36434, -0.194741), 0.01),
}


class WidowXPlanner:
    """Plan the control steps of one WidowX."""

    action_dim = 7

    def __init__(self, kinematics: Kinematics, joints: Sequence[str], sim_hz: int, substeps: int):
        self._kinematics = kinematics
        self._arm = np.array([joints.index(name) for name in ARM])
        self._fingers = np.array([joints.index(name) for name in FINGERS])
        self._movable = np.zeros(len(joints), dtype=np.int32)
        self._movable[self._arm] = 1
        self._finger_limits = kinematics.limits[self._fingers].T

    def reset(self, measured: Measured) -> None:
        """Forget the episode before: the tool was told to be where it is, the fingers to stay."""
        self._told = measured.tcp_at_base
        self._finger_command = _command_of(float(measured.qpos[self._fingers].mean()))

    def plan(self, action: np.ndarray, measured: Measured) -> Plan:
        """Plan one control step of one action [7]."""
        targets = np.zeros((1, len(measured.qpos)))
        targets[0, self._arm] = self._plan_arm(action[:6], measured)
        self._finger_command = float(np.clip(action[6], -1.0, 1.0))
        # The original's physics stops a drive's target at the joint's limits, which are 1 mm inside the command's.
        targets[0, self._fingers] = np.clip(_opening_of(self._finger_command), *self._finger_limits)
        return Plan(targets)

    def _plan_arm(self, action: np.ndarray, measured: Measured) -> np.ndarray:
        at_tool = sapien.Pose(self._kinematics.tcp_at(measured.qpos).p)
        turn = Rotation.from_rotvec(action[3:6]).as_quat()[[3, 0, 1, 2]]
        self._told = at_tool * sapien.Pose(action[:3].tolist(), turn.tolist()) * at_tool.inv() * self._told
        solved = self._kinematics.solve(self._told, measured.qpos, self._movable)
        return (measured.qpos if solved is None else solved)[self._arm]

    def hold_action(self) -> np.ndarray:
        """Give the raw action [7] that moves nothing and keeps the fingers as they were told."""
        return np.array([0, 0, 0, 0, 0, 0, self._finger_command])


def _opening_of(command: float) -> float:
    """Give how far each finger is told to be from the middle, in m."""
    return 0.5 * (FINGER_OPEN_M + FINGER_CLOSED_M) + 0.5 * (FINGER_OPEN_M - FINGER_CLOSED_M) * command


def _command_of(opening_m: float) -> float:
    return float(np.clip((2 * opening_m - FINGER_OPEN_M - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M), -1, 1))


def _free_the_fingers(articulation: Any) -> None:
    """Let links collide as in the original: all with each other, but for the bar between the fingers.

    ManiSkill's copy of the robot carries a list of more pairs that never touch; the original has none.
    """
    for link in articulation.links:
        for shape in link.collision_shapes:
            shape.set_collision_groups([1, 1, LET_THROUGH.get(link.entity.name, 0), 0])


def widowx(name: str) -> RobotModel:
    """Describe the WidowX by the original's name of it, which says where its camera stands."""
    pose, near = CAMERAS[name]
    return RobotModel(
        name=name,
        embodiment="widowx",
        joints=JOINTS,
        tcp_link="ee_gripper_link",
        motors=dict(zip(JOINTS, (*ARM_MOTORS, FINGER_MOTOR, FINGER_MOTOR), strict=True)),
        camera=CameraModel(
            name="3rd_view_camera",
            width=640,
            height=480,
            focal=(623.588, 623.588),
            centre=(319.501, 239.545),
            link="base_link",
            pose=pose,
            near=near,
        ),
        pads=PADS,
        make_planner=WidowXPlanner,
        surfaces={"left_finger_link": GRIP, "right_finger_link": GRIP},
        fingers=FINGERS,
        open_at=0.037,
        closed_at=0.015,
        after_loading=_free_the_fingers,
    )
