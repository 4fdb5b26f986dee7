"""Describe the Google robot of the original: its numbers, and the planner of its 7 raw action values.

Raw action: [dx, dy, dz] m and a rotation vector in rad, both in the robot's base axes, added to the tool's *measured*
pose; then the gripper, -1 opens and +1 closes, as a share of 1.31 rad added to what the fingers were last told.
Arm and fingers follow time-optimal jerk-limited paths (Ruckig) that are cut at the end of the control step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sapien
from ruckig import InputParameter, Ruckig, RuckigError, Trajectory
from scipy.spatial.transform import Rotation

from st4vla.envs.simpler.control import Kinematics, Measured, Plan
from st4vla.envs.simpler.robot import CameraModel, Pads, RobotModel, Surface
from st4vla.platform.errors import EnvError

JOINTS = (
    "joint_torso",
    "joint_shoulder",
    "joint_bicep",
    "joint_elbow",
    "joint_forearm",
    "joint_wrist",
    "joint_gripper",
    "joint_finger_right",
    "joint_finger_left",
    "joint_head_pan",
    "joint_head_tilt",
)
ARM = (*JOINTS[:7], *JOINTS[9:])
FINGERS = JOINTS[7:9]
START_QPOS = (
    -0.2639457174606611,
    0.0831913360274175,
    0.5017611504652179,
    1.156859026208673,
    0.028583671314766423,
    1.592598203487462,
    -1.080652960128774,
    0.0,
    0.0,
    -0.00285961,
    0.7851361,
)
BASE_HEIGHT = 0.06205 + 0.017

STIFFNESS = {
    "": (1700.0, 1737.0471680861954, 979.975871856535, 930.0, 1212.154500274304, 432.96500923932535, 468.0013365498738),
    "1": (1542.4844516168355, 1906.9938992819923, 1605.8611345378665, 1400.0, 630.0, 730.0, 583.6446104792196),
    "2": (2000.0, 2000.0, 1500.0, 1500.0, 1500.0, 800.0, 800.0),
    "3": (1200.0, 1200.0, 800.0, 800.0, 600.0, 300.0, 300.0),
}
DAMPING = {
    "": (
        1059.9791902443303,
        1010.4720585373592,
        767.2803161582076,
        680.0,
        674.9946964336588,
        274.613381336198,
        340.532560578637,
    ),
    "1": (
        513.436152107585,
        504.0051814405743,
        455.6134557131383,
        408.36436883104705,
        253.94979108395967,
        156.7912085424362,
        138.8619324972991,
    ),
    "2": (300.0, 300.0, 200.0, 200.0, 150.0, 100.0, 80.0),
    "3": (1200.0, 1200.0, 800.0, 800.0, 800.0, 400.0, 400.0),
}
HEAD_DRIVE = (2000.0, 900.0, 100.0)
FINGER_DRIVE = (200.0, 8.0, 60.0)
FORCE_LIMITS = (300.0, 300.0, 100.0, 100.0, 100.0, 100.0, 100.0)
FINGER_FRICTION = {"half": 1.0, "quarter": 0.5, "one_eighth": 0.25, "twice": 4.0}

ARM_LIMITS = (1.5, 2.0, 50.0)  # rad/s, rad/s2, rad/s3
FINGER_LIMITS = (1.0, 7.0, 50.0)
FINGER_REACH = 1.31
# The fingers' own inertia is so small beside the force they close with that PhysX 5 lets what they hold slip away.
FINGER_ARMATURE = 1e-2
FINGER_MARGIN = 0.01
FINGERS_MEET = 2.1505  # rad, summed: where the recordings have closed fingers
FINGER_GROUP = 1 << 5  # PhysX ignores a pair of shapes that share a bit of the third group
SMALL_TURN = 1e-3

CAMERA = CameraModel(
    name="overhead_camera",
    width=640,
    height=512,
    focal=(425.0, 425.0),
    centre=(320.0, 256.0),
    link="link_camera",
    pose=(0.0, 0.0, 0.0, 0.5, 0.5, -0.5, 0.5),
)
PADS = (
    Pads(("link_finger_tip_left", "link_finger_left"), 1.0),
    Pads(("link_finger_tip_right", "link_finger_right"), 1.0),
)


class Path:
    """A time-optimal jerk-limited path from a position and velocity to rest, sampled at every physics step."""

    def __init__(
        self, start: np.ndarray, speed: np.ndarray, goal: np.ndarray, limits: Sequence[float], times: np.ndarray
    ):
        count = len(start)
        wanted = InputParameter(count)
        wanted.current_position, wanted.current_velocity = start.tolist(), speed.tolist()
        wanted.target_position = goal.tolist()
        wanted.max_velocity, wanted.max_acceleration, wanted.max_jerk = ([limit] * count for limit in limits)
        trajectory = Trajectory(count)
        try:
            Ruckig(count).calculate(wanted, trajectory)
        except RuckigError as error:
            raise EnvError(
                f"No path leads from {start.tolist()} at {speed.tolist()} to {goal.tolist()} (rad): {error}"
            ) from error
        clipped = np.minimum(times, trajectory.duration).tolist()
        samples = [trajectory.at_time(time)[:2] for time in clipped]
        self.positions = np.array([sample[0] for sample in samples])
        self.velocities = np.array([sample[1] for sample in samples])


class GooglePlanner:
    """Plan the control steps of one Google robot."""

    action_dim = 7

    def __init__(self, kinematics: Kinematics, joints: Sequence[str], sim_hz: int, substeps: int):
        self._kinematics, self._substeps = kinematics, substeps
        self._times = np.arange(substeps + 1) / sim_hz
        self._arm = np.array([joints.index(name) for name in ARM])
        self._fingers = np.array([joints.index(name) for name in FINGERS])
        self._movable = np.zeros(len(joints), dtype=np.int32)
        self._movable[self._arm] = 1
        self._limits = kinematics.limits.T
        limits = kinematics.limits[self._fingers]
        self._finger_limits = limits[:, 0] - FINGER_MARGIN, limits[:, 1] + FINGER_MARGIN

    def reset(self, measured: Measured) -> None:
        """Forget the episode before: the arm was told nothing, the fingers were told to stay."""
        self._end: tuple[np.ndarray, np.ndarray] | None = None
        self._finger_told = measured.qpos[self._fingers]
        self._finger_goal = self._finger_told

    def plan(self, action: np.ndarray, measured: Measured) -> Plan:
        """Plan one control step of one action [7]."""
        arm = self._plan_arm(action[:6], measured)
        fingers = self._plan_fingers(float(action[6]), measured)
        targets = np.zeros((self._substeps, len(measured.qpos)))
        velocities = np.zeros_like(targets)
        targets[:, self._arm] = arm.positions[1:]
        targets[:, self._fingers] = fingers.positions[1:]
        velocities[:, self._fingers] = fingers.velocities[1:]
        return Plan(np.clip(targets, *self._limits), velocities)  # the original's drives stop at the joints' limits

    def _plan_arm(self, action: np.ndarray, measured: Measured) -> Path:
        turn = Rotation.from_rotvec(action[3:6]).as_quat()[[3, 0, 1, 2]]
        turned = sapien.Pose(q=turn.tolist()) * measured.tcp_at_base
        wanted = sapien.Pose((measured.tcp_at_base.p + action[:3].astype(np.float32)).tolist(), turned.q)
        solved = self._kinematics.solve(wanted, measured.qpos, self._movable)
        goal = (measured.qpos if solved is None else solved)[self._arm]
        if self._end is None:
            limit = ARM_LIMITS[0]
            self._end = measured.qpos[self._arm], np.clip(measured.qvel[self._arm], -limit, limit)
        path = Path(*self._end, goal, ARM_LIMITS, self._times)
        self._end = path.positions[-1], path.velocities[-1]
        return path

    def _plan_fingers(self, command: float, measured: Measured) -> Path:
        turn = FINGER_REACH * float(np.clip(command, -1.0, 1.0))
        goal = np.clip(self._finger_told + turn, *self._finger_limits)
        if abs(turn) < SMALL_TURN:
            goal = self._finger_goal
        self._finger_goal = goal
        limit = FINGER_LIMITS[0]
        speed = np.clip(measured.qvel[self._fingers], -limit, limit)
        path = Path(measured.qpos[self._fingers], speed, goal, FINGER_LIMITS, self._times)
        self._finger_told = path.positions[-1]
        return path

    def hold_action(self) -> np.ndarray:
        """Give the raw action [7] that moves nothing and keeps the fingers as they were told."""
        return np.zeros(7)


def _motors(tuning: str) -> dict[str, tuple[float, float, float]]:
    arm = zip(STIFFNESS[tuning], DAMPING[tuning], FORCE_LIMITS, strict=True)
    drives = dict(zip(JOINTS[:7], arm, strict=True))
    return {**drives, **dict.fromkeys(FINGERS, FINGER_DRIVE), **dict.fromkeys(JOINTS[9:], HEAD_DRIVE)}


def _surfaces(finger_friction: float) -> dict[str, Surface]:
    grip = Surface(finger_friction, finger_friction, 0.1, 0.1)
    surfaces = {"link_base": Surface(0.1, 0.0, 0.1, 0.1)}
    for side in ("left", "right"):
        surfaces[f"link_wheel_{side}"] = Surface(1.0, 0.0, 0.1, 0.1)
        surfaces[f"link_finger_{side}"] = surfaces[f"link_finger_tip_{side}"] = grip
        surfaces[f"link_finger_nail_{side}"] = Surface(0.1, 0.1, 0.01, 0.01)
    return surfaces


def _let_fingers_pass(articulation: Any) -> None:
    """Take the contacts between the two fingers away: `FINGERS_MEET` stands in for them, at half the cost of a step."""
    for link in articulation.links:
        for shape in link.collision_shapes if "finger" in link.entity.name else ():
            groups = shape.get_collision_groups()
            shape.set_collision_groups([*groups[:2], groups[2] | FINGER_GROUP, groups[3]])


def google_robot(name: str) -> RobotModel:
    """Describe the Google robot by its name: plain, with one of the worse controls, or another finger friction."""
    tuning = name[-1] if "worse_control" in name else ""
    friction = next((value for key, value in FINGER_FRICTION.items() if f"_{key}_finger" in name), 2.0)
    return RobotModel(
        name=name,
        embodiment="google_robot",
        joints=JOINTS,
        tcp_link="link_gripper_tcp",
        motors=_motors(tuning),
        camera=CAMERA,
        pads=PADS,
        make_planner=GooglePlanner,
        surfaces=_surfaces(friction),
        armatures=dict.fromkeys(FINGERS, FINGER_ARMATURE),
        meeting=FINGERS_MEET,
        after_loading=_let_fingers_pass,
        fingers=FINGERS,
        open_at=0.0,
        closed_at=1.3,
    )
