"""Draw what an episode of SimplerEnv is made of, once: what is built, what is set out, and how it falls.

    Case   the original's own words: environment id, build options, reset options    (cases.py)
      |  a task module resolves it, pure but for the seeded draws of the original
    Setup  = Build (two equal builds are one pooled scene) + Layout (what a reset sets out)

Lengths in m, angles in rad, quaternions w, x, y, z, poses [7] as position then quaternion, in the world frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

AssetFamily = Literal["google", "bridge"]
FREE = (False,) * 6
TILT_LOCKED = (False, False, False, True, True, False)
ONLY_FALLING = (True, True, False, True, True, False)


@dataclass(frozen=True)
class Thing:
    """One object from the model database.

    Attributes:
        model: its id there, which is also its name in the scene.
        scale: of its meshes.
        density: kg/m3.
        fixed: where it stays put all the time, a pose [7]; None for an object that moves freely.
        matte: whether its render materials are made rough and unspecular.
        damped: whether its linear and angular speed is damped by 0.1; else PhysX's own defaults hold.
    """

    model: str
    scale: float = 1.0
    density: float = 1000.0
    fixed: tuple[float, ...] | None = None
    matte: bool = False
    damped: bool = True


@dataclass(frozen=True)
class Arena:
    """The room: a stage mesh by name, or one of the original's "dummy" rooms made of boxes.

    Attributes:
        stage: name of the stage mesh or of the dummy room.
        offset: the arena stands at minus this.
        turn: quaternion of the stage mesh in the arena's frame, y up to z up.
        solid: whether it collides.
    """

    stage: str
    offset: tuple[float, float, float]
    turn: tuple[float, float, float, float] = (0.707, 0.707, 0.0, 0.0)
    solid: bool = True


@dataclass(frozen=True)
class Cabinet:
    """The chest of drawers, by the name of its URDF, and the friction of its joints."""

    station: str = "mk_station"
    joint_friction: float = 0.05


@dataclass(frozen=True)
class Lights:
    """Ambient colour and directional lights as (direction, colour, casts a shadow)."""

    ambient: tuple[float, float, float]
    directional: tuple[tuple[tuple[float, ...], tuple[float, ...], bool], ...] = ()


@dataclass(frozen=True)
class Build:
    """What a scene is built of; scenes with equal builds are the same scene.

    Attributes:
        robot: the original's name of the robot, e.g. "google_robot_static" or "widowx_sink_camera_setup".
        recolouring: the original's `urdf_version`, "" for the plain robot.
        shiny: whether the robot's render materials get the original's specular 0.9 and roughness 0.3.
        family: which asset folders the objects come from.
        contact_offset: m, PhysX's distance at which contacts are made.
        sim_hz, control_hz: physics and control steps per second.
        shader: "default" for the rasteriser, "rt" for the ray tracer (a GPU).
    """

    robot: str
    arena: Arena
    lights: Lights
    family: AssetFamily
    things: tuple[Thing, ...] = ()
    cabinet: Cabinet | None = None
    recolouring: str = ""
    shiny: bool = True
    contact_offset: float = 0.02
    sim_hz: int = 513
    control_hz: int = 3
    shader: str = "default"

    @property
    def substeps(self) -> int:
        """Physics steps in a control step."""
        return self.sim_hz // self.control_hz

    def physics(self) -> "Build":
        """Give the build with everything levelled that physics does not feel: what a pooled simulation is known by."""
        things = tuple(replace(thing, matte=False) for thing in self.things)
        dark = Lights((0.0, 0.0, 0.0))
        return replace(self, things=things, lights=dark, recolouring="", shiny=False, shader="default")


@dataclass(frozen=True)
class Drop:
    """Where one object starts its fall."""

    name: str
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Fall:
    """A group of objects let down onto what is below.

    All are placed with some motions locked and the world runs 0.5 s; they are freed, stopped, and the world runs 0.5 s;
    if they still move it runs 1.5 s more.

    Attributes:
        drops: the objects.
        locked: which of x, y, z and the rotations about them are locked during the first fall.
        one_by_one: whether each object falls, and is freed, alone.
    """

    drops: tuple[Drop, ...]
    locked: tuple[bool, ...] = TILT_LOCKED
    one_by_one: bool = False


@dataclass(frozen=True)
class Layout:
    """What a reset sets out.

    Attributes:
        falls: groups of objects, let down one group after the other while the robot is out of the way.
        robot_pose: pose [7] of the robot's base.
        qpos: the robot's joints in the original's order (the agent maps them by name).
        cabinet_qpos: top, middle and bottom drawer, m; empty without a cabinet.
    """

    falls: tuple[Fall, ...]
    robot_pose: tuple[float, ...]
    qpos: tuple[float, ...]
    cabinet_qpos: tuple[float, ...] = ()


@dataclass(frozen=True)
class View:
    """What a policy sees through: the camera, and the photograph laid over everything but the foreground.

    Attributes:
        camera: its name on the robot.
        overlay: file name of the photograph in the asset tree's `real_inpainting`, "" for the bare rendering.
        mode: "background" keeps the foreground, "object" keeps only the robot, "debug" blends half and half.
        covered: names of actors and articulations that are foreground but are always overlaid.
    """

    camera: str
    overlay: str = ""
    mode: str = "background"
    covered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """One episode, resolved: everything that a world needs to run it, and that a judge needs to judge it.

    Attributes:
        build, layout, view: see there.
        max_steps: control steps after which the time is up.
        judge: what the task's judge needs to know, by name; see the task's module.
        info: what the original reports at a reset about its choices (model ids, orientation, ...).
    """

    build: Build
    layout: Layout
    view: View
    max_steps: int
    judge: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
