"""Pick an object up from the table: the original's GraspSingle environments."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from st4vla.envs.simpler import lights, options
from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.cases import Case, Resolver
from st4vla.envs.simpler.judging import Milestones, Verdict
from st4vla.envs.simpler.scene_view import SceneView
from st4vla.envs.simpler.setup import ONLY_FALLING, Build, Drop, Fall, Layout, Setup, Thing
from st4vla.platform.errors import EnvError

MAX_STEPS = 80
DATABASE = "info_pick_custom_v0.json"
OVERLAY = "google_coke_can_real_eval_1.png"
LIGHTS = {
    "slightly_brighter_lighting": "brighter",
    "slightly_darker_lighting": "darker",
    "darker_lighting": "darkest",
}
LEAST_XY, MOST_XY = (-0.35, -0.02), (-0.12, 0.42)
ORIENTATIONS = {
    "upright": options.about("x", math.pi / 2),
    "laid_vertically": options.about("z", math.pi / 2),
    "lr_switch": options.about("z", math.pi),
}
DISTRACTORS = {
    "less": ("opened_pepsi_can", "apple", "sponge", "orange"),
    "more": (
        "opened_7up_can",
        "opened_sprite_can",
        "sponge",
        "orange",
        "opened_fanta_can",
        "bridge_spoon_generated_modified",
    ),
}
MANY = (
    "opened_pepsi_can",
    "opened_coke_can",
    "opened_sprite_can",
    "opened_fanta_can",
    "opened_redbull_can",
    "blue_plastic_bottle",
    "apple",
    "orange",
    "sponge",
    "bridge_spoon_generated_modified",
    "bridge_carrot_generated_modified",
    "green_cube_3cm",
    "yellow_cube_3cm",
    "eggplant",
)
OWN_KEYS = (
    "require_lifting_obj_for_success",
    "success_from_episode_stats",
    "distractor_model_ids",
    "slightly_darker_lighting",
    "slightly_brighter_lighting",
    "darker_lighting",
    "upright",
    "laid_vertically",
    "lr_switch",
    "distractor_config",
    "density",
)
OBJECT_KEYS = ("init_xy", "init_z", "init_rot_quat", "init_rand_rot_z", "init_rand_axis_rot_range")
RESET_KEYS = (
    "model_id",
    "model_scale",
    "distractor_model_ids",
    "distractor_model_scales",
    "distractor_obj_init_options",
)
DISTRACTOR_KEYS = ("init_xy", "init_rot_quat")
GRASP_DEGREES, HELD_STEPS = 80.0, 5
LIFTED_M, WELL_LIFTED_M, WELL_LIFTED_STEPS = 0.01, 0.02, 5


@dataclass(frozen=True)
class Kind:
    """One environment: which models it may choose from (none for the case's), and what is special about it.

    Attributes:
        oriented: whether the object may be laid, stood or turned.
        tilt: of the camera, the last joint; None for the usual.
        distracted: whether other objects lie about.
        far: whether the robot is put far away.
    """

    models: tuple[str, ...] = ()
    oriented: bool = True
    tilt: float | None = None
    distracted: bool = False
    far: bool = False


def _cans() -> dict[str, Kind]:
    names = {"7up": "7up", "Pepsi": "pepsi", "Sprite": "sprite", "Fanta": "fanta", "RedBull": "redbull", "Coke": "coke"}
    kinds = {}
    for name, word in names.items():
        kinds[f"GraspSingle{name}CanInScene-v0"] = Kind((f"{word}_can",))
        kinds[f"GraspSingleOpened{name}CanInScene-v0"] = Kind((f"opened_{word}_can",))
    return kinds


COKE = ("opened_coke_can",)
KINDS: Mapping[str, Kind] = {
    **_cans(),
    "GraspSingleCustomInScene-v0": Kind(oriented=False),
    "GraspSingleCustomOrientationInScene-v0": Kind(),
    "GraspSingleRandomObjectInScene-v0": Kind(MANY),
    "GraspSingleAltDensityOpenedCokeCanInScene-v0": Kind(COKE),
    "GraspSingleDummy-v0": Kind(COKE, far=True),
    "GraspSingleOpenedCokeCanAltGoogleCameraInScene-v0": Kind(COKE, tilt=0.9351361),
    "GraspSingleOpenedCokeCanAltGoogleCamera2InScene-v0": Kind(COKE, tilt=0.6651361),
    "GraspSingleOpenedCokeCanDistractorInScene-v0": Kind(COKE, distracted=True),
    "GraspSingleBluePlasticBottleInScene-v0": Kind(("blue_plastic_bottle",)),
    "GraspSingleAppleInScene-v0": Kind(("apple",), oriented=False),
    "GraspSingleOrangeInScene-v0": Kind(("orange",), oriented=False),
    "GraspSingleSpongeInScene-v0": Kind(("sponge",), oriented=False),
    "GraspSingleBridgeSpoonInScene-v0": Kind(("bridge_spoon_generated_modified",), oriented=False),
}


def resolve(case: Case, tree: AssetTree, kind: Kind) -> Setup:
    """Resolve one episode of a GraspSingle environment."""
    own = ("orientation", *OBJECT_KEYS) if kind.oriented else OBJECT_KEYS
    options.check_keys(case, OWN_KEYS, own, RESET_KEYS)
    case = options.packaged_table(case, OVERLAY, {"init_xy": (0.35, 0.20), "init_rot_quat": (0, 0, 0, 1)})
    robot = options.robot_name(case, "google_robot_static")
    models = _models(case, tree)
    orientation, turn = _orientation(case, kind)
    rng = case.rng()
    model, scale = _choose_model(case, kind, models, rng)
    others, scales = _distractors(case, kind, models, rng)
    rates = options.rates(case, robot)
    if case.build.get("prepackaged_config"):
        rates["recolouring"] = str(rng.choice(list(options.RECOLOURINGS)))
    falls, robot_pose, qpos = _set_out(case, kind, model, others, turn)
    things = [Thing(model, scale, options.entry(models, model).get("density", 1000))]
    things += [
        Thing(other, size, options.entry(models, other).get("density", 1000), damped=False)
        for other, size in zip(others, scales, strict=True)
    ]
    build = Build(
        robot, options.arena(case, robot), lights.asked_for(case.build, LIGHTS), "google", tuple(things), **rates
    )
    judge = {
        "kind": "pick",
        "model": model,
        "need_lift": bool(case.build.get("require_lifting_obj_for_success", True)),
        "sticky": bool(case.build.get("success_from_episode_stats", True)),
    }
    info = {"model_id": model, "model_scale": scale, "orientation": orientation, "distractor_model_ids": others or None}
    return Setup(build, Layout(falls, robot_pose, qpos), options.view(case, robot), MAX_STEPS, judge, info)


def _models(case: Case, tree: AssetTree) -> dict[str, dict[str, Any]]:
    models = options.database(case, tree, "google", DATABASE)
    if "AltDensity" in case.env_id:
        coke = {**options.entry(models, COKE[0]), "density": float(case.build.get("density") or 100)}
        models = {**models, COKE[0]: coke}
    return models


def _orientation(case: Case, kind: Kind) -> tuple[str | None, tuple[float, ...]]:
    """Say how the object lies at first: by name where it has one, and as a quaternion."""
    given = case.obj.get("init_rot_quat")
    if given is not None or not kind.oriented:
        return None, options.floats(given if given is not None else (1, 0, 0, 0))
    asked = next((name for name in ORIENTATIONS if case.build.get(name)), None)
    name = case.obj.get("orientation") or asked
    if name is None:
        name = str(case.rng().choice(list(ORIENTATIONS)))
    if name not in ORIENTATIONS and not ("standing" in name or "horizontal" in name):
        raise EnvError(f"There is no orientation {name!r}; expected one of {', '.join(ORIENTATIONS)}.")
    return name, ORIENTATIONS.get(name) or ORIENTATIONS["upright" if "standing" in name else "lr_switch"]


def _choose_model(
    case: Case, kind: Kind, models: dict[str, dict[str, Any]], rng: np.random.RandomState
) -> tuple[str, float]:
    asked = case.build.get("model_ids") or ()
    candidates = kind.models or ((asked,) if isinstance(asked, str) else tuple(asked)) or tuple(sorted(models))
    model = case.options.get("model_id") or options.choose(candidates, rng)
    scale = case.options.get("model_scale")
    if scale is None:
        scale = options.choose(options.entry(models, model).get("scales") or [1.0], rng)
    return str(model), float(scale)


def _distractors(
    case: Case, kind: Kind, models: dict[str, dict[str, Any]], rng: np.random.RandomState
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Name the other objects and their scales."""
    if kind.distracted:
        config = case.build.get("distractor_config") or "less"
        if config not in DISTRACTORS:
            raise EnvError(f"distractor_config is {config!r}; expected less or more.")
        names: tuple[str, ...] = DISTRACTORS[config]
    else:
        asked = case.options.get("distractor_model_ids") if case.build.get("distractor_model_ids") is not None else None
        names = tuple(asked or ())
    given = case.options.get("distractor_model_scales")
    if given is None:
        given = [options.choose(options.entry(models, name).get("scales") or [1.0], rng) for name in names]
    return names, options.floats(given)


def _set_out(
    case: Case, kind: Kind, model: str, others: tuple[str, ...], turn: tuple[float, ...]
) -> tuple[tuple[Fall, ...], tuple[float, ...], tuple[float, ...]]:
    """Say where everything falls from and where the robot stands, by the draws of the original's last stage."""
    rng = case.rng()
    xy = case.obj.get("init_xy")
    xy = rng.uniform(LEAST_XY, MOST_XY, [2]) if xy is None else np.asarray(xy, dtype=float)
    height = float(case.obj.get("init_z", case.build.get("scene_table_height") or options.TABLE_HEIGHT))
    top = height + options.DROP_HEIGHT
    main = Fall((Drop(model, (*xy, top), options.randomly_turned(turn, case.obj, rng)),))  # type: ignore[arg-type]
    drops = [_drop_distractor(case, name, xy, top, turn, rng) for name in others]
    falls = (main, Fall(tuple(drops), ONLY_FALLING, one_by_one=True)) if drops else (main,)
    own = {"init_xy": (100.0, 100.0), "init_height": 50.0} if kind.far else None
    from st4vla.envs.simpler.google_robot import START_QPOS

    tilted = None if kind.tilt is None else (*START_QPOS[:-1], kind.tilt)
    robot = {**case.robot, "qpos": tilted} if tilted is not None else own
    return falls, *options.google_start(case, rng, robot=robot)


def _drop_distractor(
    case: Case, name: str, xy: np.ndarray, top: float, turn: tuple[float, ...], rng: np.random.RandomState
) -> Drop:
    own = (case.options.get("distractor_obj_init_options") or {}).get(name, {})
    options.refuse_unknown("A distractor has no option", own, DISTRACTOR_KEYS)
    place = own.get("init_xy")
    while place is None:
        drawn = np.clip(xy + rng.uniform(-0.3, 0.3, [2]), [-0.50, 0.05], [-0.1, 0.35])
        place = drawn if np.linalg.norm(drawn - xy) > 0.25 else None
    given = own.get("init_rot_quat")
    return Drop(name, (*options.floats(place), top), options.floats(turn if given is None else given))  # type: ignore[arg-type]


class PickJudge(Milestones):
    """Success: lifted off everything but the robot now, or well lifted in five steps so far."""

    all_stages = ("is_grasped", "consecutive_grasp", "lifted_object", "lifted_object_significantly")

    def __init__(self, setup: Setup, view: SceneView):
        super().__init__()
        self._view, self._rules = view, setup.judge
        self._model = setup.judge["model"]
        self._settled = view.position(self._model)[2]
        self._held, self._lifted = 0, False
        self.stats = {"n_lift_significant": 0, "consec_grasp": False, "grasped": False}

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return f"pick {options.spoken(self._model)}"

    def verdict(self) -> Verdict:
        """Judge a control step."""
        grasped = self._view.grasps(self._model, GRASP_DEGREES)
        self._held = self._held + 1 if grasped else 0
        self._lifted = self._lifted and grasped
        height = self._view.position(self._model)[2] - self._settled
        free = not self._view.touched_by_others(self._model)
        self._lifted = bool(self._lifted or (free and height > LIFTED_M))
        well = bool(self._lifted and height > WELL_LIFTED_M)
        held = self._held >= HELD_STEPS
        self.stats["n_lift_significant"] += int(well)
        self.stats["consec_grasp"] |= held
        self.stats["grasped"] |= grasped
        success = self._lifted if self._rules["need_lift"] else held
        if self._rules["sticky"]:
            success = success or self.stats["n_lift_significant"] >= WELL_LIFTED_STEPS
        verdict = {
            "is_grasped": grasped,
            "consecutive_grasp": held,
            "lifted_object": self._lifted,
            "lifted_object_significantly": well,
            "success": bool(success),
            "episode_stats": dict(self.stats),
        }
        self.reach(verdict)
        return verdict


RESOLVERS: dict[str, Resolver] = {env_id: partial(resolve, kind=kind) for env_id, kind in KINDS.items()}
