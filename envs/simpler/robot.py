"""Describe a robot as data: its joints, motors, contact materials, camera and grasp pads (`agent.py` builds it)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sapien

from st4vla.platform.errors import EnvError

Motors = Mapping[str, tuple[float, float, float]]  # joint -> stiffness, damping, force limit


@dataclass(frozen=True)
class CameraModel:
    """A pinhole camera fixed to a link.

    Attributes:
        name, width, height: as the original calls it, in pixels.
        focal, centre: pixels, horizontal then vertical.
        link: the link it is mounted on.
        pose: pose [7] on that link; SAPIEN's cameras look along their x, z up.
        near, far: m.
    """

    name: str
    width: int
    height: int
    focal: tuple[float, float]
    centre: tuple[float, float]
    link: str
    pose: tuple[float, ...]
    near: float = 0.1
    far: float = 10.0

    @property
    def intrinsic(self) -> np.ndarray:
        """float64 [3,3]."""
        return np.array([[self.focal[0], 0, self.centre[0]], [0, self.focal[1], self.centre[1]], [0, 0, 1.0]])

    @property
    def local_pose(self) -> sapien.Pose:
        """Its pose on its link."""
        return sapien.Pose(self.pose[:3], self.pose[3:])


@dataclass(frozen=True)
class Pads:
    """The links of one side of the gripper, and the link axis (y, by its sign) along which that side opens."""

    links: tuple[str, ...]
    opens: float


@dataclass(frozen=True)
class Surface:
    """How the collision shapes of a link rub; patch radii (m) give torsional friction."""

    static_friction: float
    dynamic_friction: float
    patch_radius: float = 0.0
    min_patch_radius: float = 0.0


@dataclass(frozen=True)
class RobotModel:
    """One robot of the original, by its name there.

    Attributes:
        name: e.g. "google_robot_static".
        embodiment: "google_robot" or "widowx": how a policy's chunks are adapted to its raw actions.
        joints: names of the active joints in the original's order.
        tcp_link: the tool centre point.
        motors: the drives.
        surfaces: of the links that differ from the scene's material.
        camera: what the policies see through.
        pads: left and right side of the gripper.
        make_planner: makes its planner (`control.PlannerFactory`).
        armatures: kg m2 added to a joint's own inertia, so that the solver can hold what is gripped.
        meeting: sum of the two fingers' joint positions at which they meet, where the robot's fingers do not collide
            with each other; None where they do.
        balance_coriolis: whether the forces that the motion itself makes are cancelled at every physics step, as
            gravity always is.
        fingers, open_at, closed_at: the gripper's joints, and where they stand when it is open or closed.
        after_loading: called with each articulation of the robot once it is built.
    """

    name: str
    embodiment: str
    joints: tuple[str, ...]
    tcp_link: str
    motors: Motors
    camera: CameraModel
    pads: tuple[Pads, Pads]
    make_planner: Callable[..., Any]
    surfaces: Mapping[str, Surface] = field(default_factory=dict)
    armatures: Mapping[str, float] = field(default_factory=dict)
    meeting: float | None = None
    balance_coriolis: bool = True
    fingers: tuple[str, ...] = ()
    open_at: float = 1.0
    closed_at: float = 0.0
    after_loading: Callable[[Any], None] | None = None

    def opening(self, qpos: np.ndarray) -> float:
        """Give the gripper's reading, 0 closed .. 1 open, from joint positions in the original's order."""
        where = float(np.mean([qpos[self.joints.index(name)] for name in self.fingers]))
        return float(np.clip((where - self.closed_at) / (self.open_at - self.closed_at), 0.0, 1.0))


def _google(name: str) -> Callable[[], Any]:
    def make() -> Any:
        from st4vla.envs.simpler.google_robot import google_robot

        return google_robot(name)

    return make


def _widowx(name: str) -> Callable[[], Any]:
    def make() -> Any:
        from st4vla.envs.simpler.widowx import widowx

        return widowx(name)

    return make


# Functions that import late, so that one robot's module may use what is here.
ROBOTS: dict[str, Callable[[], Any]] = {
    **{name: _widowx(name) for name in ("widowx", "widowx_bridge_dataset_camera_setup", "widowx_sink_camera_setup")},
    **{
        name: _google(name)
        for name in (
            "google_robot_static",
            "google_robot_static_worse_control1",
            "google_robot_static_worse_control2",
            "google_robot_static_worse_control3",
            "google_robot_static_half_finger_friction",
            "google_robot_static_quarter_finger_friction",
            "google_robot_static_one_eighth_finger_friction",
            "google_robot_static_twice_finger_friction",
        )
    },
}


def robot_model(name: str) -> RobotModel:
    """Give the description of the original's robot of that name.

    Raises:
        EnvError: there is none.
    """
    if name not in ROBOTS:
        raise EnvError(f"There is no robot {name!r}; expected one of {', '.join(ROBOTS)}.")
    return ROBOTS[name]()
