"""Open a drawer, close it, or put an object into it: the original's drawer environments."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from st4vla.envs.simpler import lights, options
from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.cases import Case, Resolver
from st4vla.envs.simpler.google_robot import START_QPOS
from st4vla.envs.simpler.judging import Milestones, Verdict
from st4vla.envs.simpler.scene_view import SceneView
from st4vla.envs.simpler.setup import Build, Cabinet, Drop, Fall, Layout, Setup, Thing

DRAWERS = ("top", "middle", "bottom")
OPEN_STEPS, PLACE_STEPS = 113, 200
DATABASE, PLACE_DATABASE = "info_pick_custom_v0.json", "info_pick_custom_baked_tex_v1.json"
PLACE_CONTACT_OFFSET = 0.005
PLACE_LEAST_XY, PLACE_MOST_XY = (-0.10, 0.0), (-0.05, 0.1)
AJAR_M, OPEN_M, CLOSED_M, PLACED_M = 0.2, 0.15, 0.05, 0.05
ADVANCE_STEPS = 100
# Where the robot stands for each photograph: x, y, yaw.
STANDPOINTS = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
PLACE_STANDPOINTS = ("a0", "b0", "c0")
OWN_KEYS = ("light_mode", "camera_mode", "station_name", "cabinet_joint_friction", "force_advance_subtask_time_steps")

# The original's scripts give `init_xy` where there is no object, too; it is of no consequence there.
OBJECT_KEYS = ("cabinet_init_qpos", "init_xy")
PLACED_KEYS = ("init_z", "init_rot_quat", "init_rand_rot_z", "init_rand_axis_rot_range")
MODEL_KEYS = ("model_id", "model_scale")


@dataclass(frozen=True)
class Kind:
    """One environment: what is to be done, and with which of the drawers."""

    verb: Literal["open", "close", "place"]
    drawers: tuple[str, ...] = DRAWERS


def _kinds() -> dict[str, Kind]:
    names: dict[str, Literal["open", "close", "place"]] = {
        "Open": "open",
        "Close": "close",
        "PlaceIntoClosed": "place",
    }
    kinds = {}
    for name, verb in names.items():
        kinds[f"{name}DrawerCustomInScene-v0"] = Kind(verb)
        for drawer in DRAWERS:
            kinds[f"{name}{drawer.capitalize()}DrawerCustomInScene-v0"] = Kind(verb, (drawer,))
    return kinds


KINDS: Mapping[str, Kind] = _kinds()


def standpoint(name: str) -> dict[str, Any]:
    """Give the robot options that fit a photograph."""
    x, y, yaw = STANDPOINTS[name]
    return {"init_xy": (x, y), "init_rot_quat": options.facing(yaw)}


def packaged(case: Case, kind: Kind, rng: np.random.RandomState) -> tuple[Case, str | None, str | None]:
    """Give the case, the photograph and the recolouring that the prepackaged configuration draws, else none."""
    if not case.build.get("prepackaged_config"):
        return case, None, None
    names = PLACE_STANDPOINTS if kind.verb == "place" else tuple(STANDPOINTS)
    name = names[int(rng.choice(len(names)))]
    colour = str(rng.choice(list(options.RECOLOURINGS)))
    build = {
        **case.build,
        "robot": "google_robot_static",
        "control_freq": 3,
        "sim_freq": 513,
        "scene_name": "dummy_drawer",
        "rgb_overlay_cameras": ["overhead_camera"],
        "shader_dir": "rt",
        "station_name": "mk_station_recolor",
        "light_mode": "simple",
        "disable_bad_material": True,
    }
    ready = Case(case.env_id, build, standpoint(name), case.obj, case.options, case.seed)
    return ready, f"open_drawer_{name}.png", colour


def resolve(case: Case, tree: AssetTree, kind: Kind) -> Setup:
    """Resolve one episode of a drawer environment."""
    placing = kind.verb == "place"
    options.check_keys(case, OWN_KEYS, (*OBJECT_KEYS, *(PLACED_KEYS if placing else ())), MODEL_KEYS if placing else ())
    model, scale = _choose_model(case, kind, tree)
    rng = case.rng()
    drawer = str(rng.choice(list(kind.drawers)))
    case, photo, colour = packaged(case, kind, rng)
    robot = options.robot_name(case, "google_robot_static")
    rates = options.rates(case, robot)
    if colour is not None:
        rates["recolouring"] = colour
    last = case.rng()
    falls, things = _object(case, tree, model, scale, last)
    pose, qpos = options.google_start(case, last, qpos=_joints(case))
    friction = case.build.get("cabinet_joint_friction")
    build = Build(
        robot,
        options.arena(case, robot, solid=False),
        lights.drawers(case.build.get("light_mode")),
        "google",
        things,
        Cabinet(str(case.build.get("station_name") or "mk_station"), 0.05 if friction is None else float(friction)),
        contact_offset=PLACE_CONTACT_OFFSET if kind.verb == "place" else 0.02,
        **rates,
    )
    layout = Layout(falls, pose, qpos, _drawer_positions(case, kind, drawer))
    judge = {
        "kind": "place" if kind.verb == "place" else "drawer",
        "verb": kind.verb,
        "drawer": drawer,
        "model": model,
        "advance_after": int(case.build.get("force_advance_subtask_time_steps") or ADVANCE_STEPS),
    }
    info = {"station_name": build.cabinet and build.cabinet.station, "light_mode": case.build.get("light_mode")}
    steps = PLACE_STEPS if kind.verb == "place" else OPEN_STEPS
    return Setup(build, layout, options.view(case, robot, photo), steps, judge, info)


def _choose_model(case: Case, kind: Kind, tree: AssetTree) -> tuple[str, float]:
    """Choose the object that is placed, "" where none is."""
    if kind.verb != "place":
        return "", 1.0
    models, rng = options.database(case, tree, "google", PLACE_DATABASE), case.rng()
    asked = case.build.get("model_ids") or ()
    candidates = ((asked,) if isinstance(asked, str) else tuple(asked)) or tuple(sorted(models))
    model = str(case.options.get("model_id") or options.choose(candidates, rng))
    scale = case.options.get("model_scale")
    if scale is None:
        scale = options.choose(options.entry(models, model).get("scales") or [1.0], rng)
    return model, float(scale)


def _object(
    case: Case, tree: AssetTree, model: str, scale: float, rng: np.random.RandomState
) -> tuple[tuple[Fall, ...], tuple[Thing, ...]]:
    if not model:
        return (), ()
    xy = case.obj.get("init_xy")
    xy = rng.uniform(PLACE_LEAST_XY, PLACE_MOST_XY, [2]) if xy is None else xy
    height = float(case.obj.get("init_z", case.build.get("scene_table_height") or options.TABLE_HEIGHT))
    turn = options.randomly_turned(case.obj.get("init_rot_quat", (1, 0, 0, 0)), case.obj, rng)
    place = (float(xy[0]), float(xy[1]), height + options.DROP_HEIGHT)
    models = options.database(case, tree, "google", PLACE_DATABASE)
    density = float(options.entry(models, model).get("density", 1000))
    return (Fall((Drop(model, place, turn),)),), (Thing(model, scale, density),)


def _joints(case: Case) -> tuple[float, ...]:
    if case.build.get("camera_mode") != "variant":
        return START_QPOS
    return (*START_QPOS[:-2], START_QPOS[-2] - 0.025, START_QPOS[-1] + 0.008)


def _drawer_positions(case: Case, kind: Kind, drawer: str) -> tuple[float, ...]:
    """Say how far each drawer is open at first."""
    given = case.obj.get("cabinet_init_qpos", AJAR_M if kind.verb == "close" else None)
    if given is None:
        return (0.0, 0.0, 0.0)
    if isinstance(given, int | float):
        return tuple(float(given) if name == drawer else 0.0 for name in DRAWERS)
    return options.floats(given)


class DrawerJudge(Milestones):
    """Success: the drawer is open by 15 cm, or closed to 5 cm."""

    all_stages = ("success",)

    def __init__(self, setup: Setup, view: SceneView):
        super().__init__()
        self._view, self._verb, self._drawer = view, setup.judge["verb"], setup.judge["drawer"]

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return f"{self._verb} {self._drawer} drawer"

    def verdict(self) -> Verdict:
        """Judge the drawer as it stands."""
        qpos = self._view.drawer(self._drawer)
        success = qpos >= OPEN_M if self._verb == "open" else qpos <= CLOSED_M
        verdict = {"success": bool(success), "qpos": qpos, "episode_stats": {"qpos": f"{qpos:.3f}"}}
        self.reach(verdict)
        return verdict


class PlaceJudge(Milestones):
    """Success in the second sub-task: the drawer is open a little and its floor has borne the object at some step."""

    all_stages = ("is_drawer_open", "has_contact", "success")

    def __init__(self, setup: Setup, view: SceneView):
        super().__init__()
        self._view, self._rules, self._subtask = view, setup.judge, 0
        self._drawer, self._model = setup.judge["drawer"], setup.judge["model"]
        self.stats = {"qpos": 0.0, "is_drawer_open": False, "has_contact": 0}

    @property
    def instruction(self) -> str:
        """What the policy is told in this sub-task."""
        if self._subtask == 0:
            return f"open {self._drawer} drawer"
        return f"place {options.spoken(self._model)} into {self._drawer} drawer"

    def before_step(self, steps: int) -> None:
        """Go on to the second sub-task when its time has come."""
        if steps >= self._rules["advance_after"]:
            self.advance()

    def advance(self) -> None:
        """Go on to the second sub-task."""
        self._subtask = 1

    def verdict(self) -> Verdict:
        """Judge a control step."""
        qpos = self._view.drawer(self._drawer)
        self.stats["qpos"] = qpos
        self.stats["is_drawer_open"] |= qpos >= OPEN_M
        self.stats["has_contact"] += int(self._view.lies_in_drawer(self._model, self._drawer))
        success = self._subtask == 1 and qpos >= PLACED_M and self.stats["has_contact"] >= 1
        verdict = {"success": bool(success), "episode_stats": dict(self.stats)}
        self.reach({**self.stats, "success": success})
        return verdict


RESOLVERS: dict[str, Resolver] = {env_id: partial(resolve, kind=kind) for env_id, kind in KINDS.items()}
