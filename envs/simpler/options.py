"""Read the options that all environments of the original share: the room, the robot, the overlay, the rates."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.build import BRIDGE_OFFSET, GOOGLE_OFFSET
from st4vla.envs.simpler.cases import Case
from st4vla.envs.simpler.robot import robot_model
from st4vla.envs.simpler.setup import Arena, AssetFamily, View
from st4vla.platform.errors import EnvError

TABLE_HEIGHT = 0.87
DROP_HEIGHT = 0.5
# The pair of controllers that is ported for each robot family: the one of the original's own evaluations.
CONTROL_MODES = {
    "google_robot": "arm_pd_ee_delta_pose_align_interpolate_by_planner_"
    "gripper_pd_joint_target_delta_pos_interpolate_by_planner",
    "widowx": "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
}
ROBOT_KEYS = ("init_xy", "init_height", "init_rot_quat", "qpos")
COMMON_KEYS = (
    "robot",
    "rgb_overlay_path",
    "rgb_overlay_cameras",
    "rgb_overlay_mode",
    "rgb_always_overlay_objects",
    "disable_bad_material",
    "scene_name",
    "scene_offset",
    "scene_pose",
    "scene_table_height",
    "model_json",
    "model_ids",
    "model_db_override",
    "urdf_version",
    "control_freq",
    "sim_freq",
    "control_mode",
    "shader_dir",
    "enable_shadow",
    "prepackaged_config",
)
# Of no consequence here: what the original was asked to return, where its files lie, what nobody sees.
IGNORED_KEYS = (
    "obs_mode",
    "reward_mode",
    "render_mode",
    "camera_cfgs",
    "render_camera_cfgs",
    "renderer",
    "renderer_kwargs",
    "render_config",
    "asset_root",
    "scene_root",
    "max_episode_steps",
)
WORDS_LEFT_OUT = ("opened", "light", "generated", "modified", "objaverse", "bridge", "baked", "v2")
RECOLOURINGS = (
    "",
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)


def check_keys(case: Case, own: Iterable[str], obj: Iterable[str], reset: Iterable[str]) -> None:
    """Make sure that nothing was asked of an environment that is not known here.

    Args:
        case: what was asked.
        own: the environment's own build options, beside the common ones.
        obj: its object options.
        reset: its other reset options.

    Raises:
        EnvError: an option is unknown, or the picture's size or background was asked to change.
    """
    refuse_unknown(f"{case.env_id} has no build option", case.build, (*COMMON_KEYS, *IGNORED_KEYS, *own))
    refuse_unknown(f"{case.env_id} has no robot option", case.robot, ROBOT_KEYS)
    refuse_unknown(f"{case.env_id} has no object option", case.obj, obj)
    refuse_unknown(f"{case.env_id} has no reset option", case.options, reset)
    cameras = dict(case.build.get("camera_cfgs") or {})
    cameras.pop("add_segmentation", None)
    if cameras:
        raise EnvError(f"camera_cfgs asks for {cameras}; only the original's own cameras are ported.")


def refuse_unknown(what: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a key that is not known; None asks for nothing.

    Raises:
        EnvError: there is one; it begins with `what` and names the key.
    """
    listed = sorted(known)
    unknown = [key for key, value in given.items() if key not in listed and value is not None]
    if unknown:
        expected = f"expected some of {', '.join(listed)}" if listed else "it has none"
        raise EnvError(f"{what} {unknown[0]!r}; {expected}.")


def robot_name(case: Case, default: str) -> str:
    """Name the robot."""
    return str(case.build.get("robot") or default)


def recolouring(case: Case) -> str:
    """Name the recolouring of the robot, "" for the plain one."""
    chosen = case.build.get("urdf_version")
    return "" if chosen in (None, "None") else str(chosen)


def arena(case: Case, robot: str, solid: bool = True) -> Arena:
    """Say in which room the episode takes place."""
    google = robot.startswith("google_robot")
    stage = case.build.get("scene_name") or ("google_pick_coke_can_1_v4" if google else "bridge_table_1_v1")
    offset = case.build.get("scene_offset") or (GOOGLE_OFFSET if google else BRIDGE_OFFSET)
    if "modern_bedroom" in stage or "modern_office" in stage:
        offset = GOOGLE_OFFSET
    if stage == "dummy_tabletop":
        offset = (0.0, -0.21, 0.0)
    turn = case.build.get("scene_pose") or (0.707, 0.707, 0.0, 0.0)
    return Arena(stage, floats(offset), floats(turn), solid)  # type: ignore[arg-type]


def view(case: Case, robot: str, overlay: str | None = None, covered: Sequence[str] = ()) -> View:
    """Say what the policy sees through; `overlay` is what an environment chose over its build option."""
    camera = robot_model(robot).camera.name
    cameras = case.build.get("rgb_overlay_cameras") or []
    names = [cameras] if isinstance(cameras, str) else list(cameras)
    photo = overlay if overlay is not None else PurePosixPath(case.build.get("rgb_overlay_path") or "").name
    mode = str(case.build.get("rgb_overlay_mode") or "background")
    if "background" not in mode and "debug" not in mode:
        raise EnvError(f"rgb_overlay_mode is {mode!r}; expected background, object or debug, or a mixture of them.")
    always = (*(case.build.get("rgb_always_overlay_objects") or ()), *covered)
    return View(camera, photo if camera in names else "", mode, always)


def rates(case: Case, robot: str) -> dict[str, Any]:
    """Give the fields of a build that say how fast physics and control run, and how pictures are drawn.

    Raises:
        EnvError: other controllers were asked for than those that are ported for the robot.
    """
    ported, asked = CONTROL_MODES[robot_model(robot).embodiment], case.build.get("control_mode")
    if asked not in (None, ported):
        raise EnvError(f"control_mode is {asked!r}; of {robot} only {ported} is ported.")
    return {
        "sim_hz": int(case.build.get("sim_freq") or 500),
        "control_hz": int(case.build.get("control_freq") or 20),
        "shader": "rt" if case.build.get("shader_dir") == "rt" else "default",
        "recolouring": recolouring(case),
        "shiny": not case.build.get("disable_bad_material"),
    }


def database(case: Case, tree: AssetTree, family: AssetFamily, default: str) -> dict[str, dict[str, Any]]:
    """Read the model database of an episode, with what the case overrides in it."""
    name = PurePosixPath(case.build.get("model_json") or default).name
    return {**tree.database(family, name), **(case.build.get("model_db_override") or {})}


def entry(models: Mapping[str, Mapping[str, Any]], model: str) -> Mapping[str, Any]:
    """Give one model's entry of the database.

    Raises:
        EnvError: it has none.
    """
    if model not in models:
        raise EnvError(f"There is no model {model!r} in the database; expected one of {', '.join(sorted(models))}.")
    return models[model]


def box_size(model: Mapping[str, Any], scale: float) -> np.ndarray:
    """Give the extents [3] of a model's bounding box."""
    return (np.array(model["bbox"]["max"]) - np.array(model["bbox"]["min"])) * scale


def choose(options: Sequence[Any], rng: np.random.RandomState) -> Any:
    """Draw as the original does: a single option costs no draw."""
    return options[0] if len(options) == 1 else options[rng.randint(len(options))]


def spoken(model: str) -> str:
    """Give the words for a model in an instruction."""
    words = [word for word in model.split("_") if not word.endswith("cm")]
    return " ".join(word for word in words if word not in WORDS_LEFT_OUT)


def floats(values: Sequence[Any]) -> tuple[float, ...]:
    """Give plain floats."""
    return tuple(float(value) for value in values)


def facing(yaw: float) -> tuple[float, ...]:
    """Give the quaternion of a robot that looks along -x, turned by `yaw` about z."""
    return (-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2))


def about(axis: str, angle: float) -> tuple[float, float, float, float]:
    """Give the quaternion of a turn about x, y or z."""
    sine = math.sin(angle / 2)
    return (math.cos(angle / 2), *(sine if name == axis else 0.0 for name in "xyz"))  # type: ignore[return-value]


def times(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float, float]:
    """Multiply two quaternions."""
    a, b, c, d = first
    e, f, g, h = second
    return (
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    )


def randomly_turned(
    turn: Sequence[float], options: Mapping[str, Any], rng: np.random.RandomState
) -> tuple[float, float, float, float]:
    """Turn an object's start by what the reset options leave to chance."""
    if options.get("init_rand_rot_z"):
        turn = times(about("z", rng.uniform(0, 2 * np.pi)), turn)
    reach = options.get("init_rand_axis_rot_range", 0.0)
    if reach > 0:
        axis = rng.uniform(-1, 1, 3)
        axis = axis / max(np.linalg.norm(axis), 1e-6)
        angle = rng.uniform(0, reach)
        turn = times(turn, (math.cos(angle / 2), *(math.sin(angle / 2) * axis)))
    return floats(turn)  # type: ignore[return-value]


def google_start(
    case: Case, rng: np.random.RandomState, qpos: Sequence[float] | None = None, robot: Mapping[str, Any] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give the base pose [7] and the joints of the Google robot at a reset.

    Args:
        case: its robot options decide, unless `robot` stands in for them.
        rng: draws where the robot stands if nobody says.
        qpos: the environment's own joints, where no option says otherwise.
        robot: an environment's own robot options.
    """
    from st4vla.envs.simpler.google_robot import BASE_HEIGHT, START_QPOS

    options = case.robot if robot is None else robot
    where = options.get("init_xy")
    if where is None:
        where = (rng.uniform(0.30, 0.40), rng.uniform(0.0, 0.2))
    height = options.get("init_height")
    turn = options.get("init_rot_quat")
    joints = options.get("qpos")
    pose = (*where[:2], BASE_HEIGHT if height is None else height, *((0, 0, 0, 1) if turn is None else turn))
    return floats(pose), floats(joints if joints is not None else qpos or START_QPOS)


def packaged_table(case: Case, overlay: str, robot: Mapping[str, Any]) -> Case:
    """Give the case with the build of the original's prepackaged Google table, where it asks for that.

    Args:
        overlay: file of the photograph.
        robot: where the robot stands.
    """
    if not case.build.get("prepackaged_config"):
        return case
    build = {
        **case.build,
        "robot": "google_robot_static",
        "control_freq": 3,
        "sim_freq": 513,
        "scene_name": "google_pick_coke_can_1_v4",
        "rgb_overlay_path": overlay,
        "rgb_overlay_cameras": ["overhead_camera"],
    }
    return Case(case.env_id, build, dict(robot), case.obj, case.options, case.seed)
