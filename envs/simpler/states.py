"""Set recorded states of SimplerEnv and judge them, without a physics step, as the original did."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sapien

from st4vla.envs.simpler import drawer, options
from st4vla.envs.simpler.cases import Case, case_from_meta
from st4vla.envs.simpler.recording import read_recording
from st4vla.envs.simpler.world import SimplerWorld
from st4vla.platform.errors import DataError, St4vlaError

DRAWER_JOINTS = tuple(f"{name}_drawer_joint" for name in drawer.DRAWERS)
ORIENTATIONS = {"horizontal": "lr_switch", "vertical": "laid_vertically", "standing": "upright"}
WIDOWX = {
    "spoon": ("PutSpoonOnTableClothInScene-v0", False),
    "carrot": ("PutCarrotOnPlateInScene-v0", False),
    "stack": ("StackGreenCubeOnYellowCubeBakedTexInScene-v0", False),
    "eggplant": ("PutEggplantInBasketScene-v0", True),
}
CAN_XS, CAN_YS = np.linspace(-0.35, -0.12, 5), np.linspace(-0.02, 0.42, 5)
APPLE_XS, APPLE_YS = np.linspace(-0.08, -0.02, 3), np.linspace(-0.02, 0.08, 3)


def judge_states(
    world: SimplerWorld, states: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[list[dict[str, Any]], int]:
    """Judge each state and give the verdicts in order, with how many could not be judged.

    Args:
        world: where they are set.
        states: as `read_states` gives them.
        folder: where the recordings lie that they name; a case without one is read from its name.
    """
    verdicts, failed = [], 0
    for state in states:
        name = str(state.get("case", ""))
        try:
            verdicts.append({"case": name, **judge_state(world, state, folder)})
        except St4vlaError as error:
            failed += 1
            verdicts.append({"case": name, "error": f"{error}"})
    return verdicts, failed


def judge_state(world: SimplerWorld, state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Set out a state's episode, move things where the state says, and give the flags of the verdict.

    Raises:
        DataError: the state or its case cannot be understood.
        EnvError: the case is not known here, or its assets are missing.
    """
    case, joints = find_case(state, folder)
    world.reset_case(case)
    _move_things(world, state.get("poses") or {})
    _move_drawers(world, state.get("cabinet_qpos") or (), joints)
    world.view.refresh()
    flags = {name: value for name, value in world.judge.verdict().items() if name != "episode_stats"}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in flags.items()}


def _move_things(world: SimplerWorld, poses: Mapping[str, Sequence[float]]) -> None:
    for name, pose in poses.items():
        row = np.asarray(pose, dtype=np.float64)
        if name not in world.view.entities:
            raise DataError(f"The state moves {name!r}; the episode has {', '.join(world.view.entities)}")
        if row.shape != (7,) or not np.isfinite(row).all():
            raise DataError(f"The state puts {name} at {pose}; expected a position and a quaternion w, x, y, z")
        world.view.entities[name].set_pose(sapien.Pose(row[:3].tolist(), row[3:].tolist()))


def _move_drawers(world: SimplerWorld, qpos: Sequence[float], joints: Sequence[str]) -> None:
    if len(qpos) == 0:
        return
    if world.view.cabinet is None or len(qpos) != len(joints):
        raise DataError(f"The state has cabinet_qpos {list(qpos)}; the episode's drawers are {list(joints)}")
    names = [name.removesuffix("_drawer_joint") for name in joints]
    world.view.set_drawers({name: float(value) for name, value in zip(names, qpos, strict=True)})


def find_case(state: Mapping[str, Any], folder: Path) -> tuple[Case, Sequence[str]]:
    """Give the episode a state belongs to, and the order of its drawers.

    Raises:
        DataError: there is neither a recording of that name nor an episode the name stands for.
    """
    name = str(state.get("case", ""))
    file = folder / f"{Path(name).name}.npz"
    if name and file.is_file():
        meta = read_recording(file).meta
        return case_from_meta(meta["case"]), meta.get("cabinet_joints") or DRAWER_JOINTS
    if isinstance(state.get("env_id"), str):
        return case_from_meta(state), DRAWER_JOINTS
    return case_of_name(name), DRAWER_JOINTS


def case_of_name(name: str) -> Case:
    """Give the Visual Matching episode that a recording's name stands for, e.g. "widowx_carrot_on_plate__ep05__smooth".

    Raises:
        DataError: it stands for none.
    """
    task, _, rest = name.partition("__")
    place = rest.split("__")[0]
    number = int(found[0]) if (found := re.findall(r"\d+", place)) else 0
    if task.startswith("widowx_"):
        return _widowx_case(task, number)
    if "coke_can" in task:
        return _can_case(task, number)
    if "move_near" in task:
        return _near_case(task, number)
    if "drawer" in task:
        return _drawer_case(task, place, rest)
    raise DataError(f"{name!r} is no recording here and no name of an episode; lay its recording beside the states")


def _widowx_case(task: str, number: int) -> Case:
    env_id, _ = next((kind for word, kind in WIDOWX.items() if word in task), ("", False))
    if not env_id:
        raise DataError(f"{task!r} is no WidowX task; expected one with {', '.join(WIDOWX)} in its name")
    return Case(env_id, {"prepackaged_config": True}, obj={"episode_id": number}, seed=0)


GOOGLE = {"robot": "google_robot_static", "control_freq": 3, "sim_freq": 513}
TABLE = {**GOOGLE, "scene_name": "google_pick_coke_can_1_v4", "rgb_overlay_cameras": ["overhead_camera"]}


def _can_case(task: str, number: int) -> Case:
    lying = {option: True for word, option in ORIENTATIONS.items() if f"_{word}_" in task}
    build = {**TABLE, **lying, "rgb_overlay_path": "google_coke_can_real_eval_1.png"}
    robot = {"init_xy": (0.35, 0.20), "init_rot_quat": (0, 0, 0, 1)}
    place = (float(CAN_XS[number // 5 % 5]), float(CAN_YS[number % 5]))
    return Case("GraspSingleOpenedCokeCanInScene-v0", build, robot, {"init_xy": place}, seed=0)


def _near_case(task: str, number: int) -> Case:
    version = 0 if task.endswith("_v0") else 1
    build = {**TABLE, "rgb_overlay_path": "google_move_near_real_eval_1.png"}
    robot = {"init_xy": (0.35, 0.21), "init_rot_quat": options.facing(-0.09)}
    return Case(f"MoveNearGoogleBakedTexInScene-v{version}", build, robot, {"episode_id": number}, seed=0)


def _drawer_case(task: str, place: str, rest: str) -> Case:
    stand = next((name for name in drawer.STANDPOINTS if re.search(rf"(^|_){name}(_|$)", rest)), "a0")
    which = next((name.capitalize() for name in drawer.DRAWERS if f"_{name}_" in task), "Top")
    verb = "PlaceIntoClosed" if "place" in task else "Close" if "close" in task else "Open"
    build: dict[str, Any] = {
        **GOOGLE,
        "scene_name": "dummy_drawer",
        "station_name": "mk_station_recolor",
        "light_mode": "simple",
        "disable_bad_material": True,
        "rgb_overlay_path": f"open_drawer_{stand}.png",
        "rgb_overlay_cameras": ["overhead_camera"],
    }
    obj = {}
    if verb == "PlaceIntoClosed":
        number = int(found[-1]) if (found := re.findall(r"(?:grid|ep)(\d+)", rest)) else 0
        build["model_ids"] = "baked_apple_v2"
        obj = {"init_xy": (float(APPLE_XS[number // 3 % 3]), float(APPLE_YS[number % 3]))}
    return Case(f"{verb}{which}DrawerCustomInScene-v0", build, drawer.standpoint(stand), obj, seed=0)
