"""Move one object near another on the table: the original's MoveNear environments of the Google robot."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from st4vla.envs.simpler import lights, options
from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.cases import Case, Resolver
from st4vla.envs.simpler.google_robot import START_QPOS
from st4vla.envs.simpler.judging import Milestones, Verdict
from st4vla.envs.simpler.scene_view import SceneView
from st4vla.envs.simpler.setup import Build, Drop, Fall, Layout, Setup, Thing

MAX_STEPS = 80
CONTACT_OFFSET = 0.005
OVERLAY = "google_move_near_real_eval_1.png"
TRIPLETS = (
    ("blue_plastic_bottle", "opened_pepsi_can", "orange"),
    ("opened_7up_can", "apple", "sponge"),
    ("opened_coke_can", "opened_redbull_can", "apple"),
    ("sponge", "blue_plastic_bottle", "opened_7up_can"),
    ("orange", "opened_pepsi_can", "opened_redbull_can"),
)
PAIRS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
PLACES = (((-0.33, 0.04), (-0.33, 0.34), (-0.13, 0.19)), ((-0.13, 0.04), (-0.33, 0.19), (-0.13, 0.34)))
NUM_EPISODES = len(TRIPLETS) * len(PAIRS) * len(PLACES)
UNBAKED = ("blue_plastic_bottle", "orange")
STANDING, TURNED = options.about("x", math.pi / 2), options.about("z", math.pi / 2)
TURNS = {
    "blue_plastic_bottle": options.times(TURNED, STANDING),
    "orange": TURNED,
    "sponge": TURNED,
    "apple": (1.0, 0.0, 0.0, 0.0),
}
TOY_DENSITY = 200.0  # the apple and the orange of the real evaluation are toys
OWN_KEYS = (
    "original_lighting",
    "slightly_darker_lighting",
    "slightly_brighter_lighting",
    "ambient_only_lighting",
    "no_distractor",
    "light_mode",
)
OBJECT_KEYS, RESET_KEYS = ("episode_id", "init_z"), ("model_scales",)
MOVED_M, KNOCKED_M, FALLEN_M, NEAR_M, NEARER_M = 0.03, 0.02, 0.15, 0.10, 0.01


@dataclass(frozen=True)
class Kind:
    """One environment: how its models are named, where they are described, how the camera is tilted."""

    prefix: str = ""
    suffix: str = ""
    database: str = "info_pick_custom_v0.json"
    tilt: float | None = None

    def model(self, name: str) -> str:
        """Give the id of the model of that plain name."""
        return name if name in UNBAKED else f"{self.prefix}{name}{self.suffix}"


KINDS: Mapping[str, Kind] = {
    "MoveNearGoogleInScene-v0": Kind(),
    "MoveNearGoogleBakedTexInScene-v0": Kind("baked_", database="info_pick_custom_baked_tex_v0.json"),
    "MoveNearGoogleBakedTexInScene-v1": Kind("baked_", "_v2", "info_pick_custom_baked_tex_v1.json"),
    "MoveNearAltGoogleCameraInScene-v0": Kind(tilt=0.9351361),
    "MoveNearAltGoogleCamera2InScene-v0": Kind(tilt=0.6651361),
}


@dataclass(frozen=True)
class Episode:
    """One of the 60 episodes: plain names, places, and which is moved near which."""

    names: tuple[str, ...]
    places: tuple[tuple[float, float], ...]
    source: int
    target: int


def episode(number: int, alone: bool) -> Episode:
    """Give episode `number`; `alone` leaves out the object that is neither source nor target."""
    names = TRIPLETS[number // (len(PAIRS) * len(PLACES))]
    source, target = PAIRS[number % len(PAIRS)]
    places = PLACES[number % (len(PAIRS) * len(PLACES)) // len(PAIRS)]
    if not alone:
        return Episode(names, places, source, target)
    return Episode((names[source], names[target]), (places[source], places[target]), 0, 1)


def resolve(case: Case, tree: AssetTree, kind: Kind) -> Setup:
    """Resolve one episode of a MoveNear environment."""
    options.check_keys(case, OWN_KEYS, OBJECT_KEYS, RESET_KEYS)
    case = options.packaged_table(case, OVERLAY, {"init_xy": (0.35, 0.21), "init_rot_quat": options.facing(-0.09)})
    robot = options.robot_name(case, "google_robot_static")
    drawn = case.rng().randint(NUM_EPISODES)
    number = int(case.obj.get("episode_id", drawn))
    chosen = episode(number, bool(case.build.get("no_distractor")))
    models = options.database(case, tree, "google", kind.database)
    ids = [kind.model(name) for name in chosen.names]
    rng = case.rng()
    scales = _scales(case, models, ids, rng)
    rates = options.rates(case, robot)
    if case.build.get("prepackaged_config"):
        rates["recolouring"] = str(rng.choice(list(options.RECOLOURINGS)))
    matte = case.env_id.endswith("-v1")
    things = tuple(
        Thing(model, scale, _density(name, options.entry(models, model)), matte=matte)
        for name, model, scale in zip(chosen.names, ids, scales, strict=True)
    )
    build = Build(
        robot,
        options.arena(case, robot),
        lights.baked(case.build.get("light_mode")) or lights.asked_for(case.build, lights.ASKED),
        "google",
        things,
        contact_offset=CONTACT_OFFSET,
        **rates,
    )
    height = float(case.obj.get("init_z", case.build.get("scene_table_height") or options.TABLE_HEIGHT))
    drops = tuple(
        Drop(model, (*place, height + options.DROP_HEIGHT), TURNS.get(name, STANDING))
        for name, model, place in zip(chosen.names, ids, chosen.places, strict=True)
    )
    tilted = None if kind.tilt is None else {**case.robot, "qpos": (*START_QPOS[:-1], kind.tilt)}
    pose, qpos = options.google_start(case, case.rng(), robot=tilted)
    sizes = {model: tuple(options.box_size(models[model], scale)) for model, scale in zip(ids, scales, strict=True)}
    judge = {"kind": "move_near", "source": ids[chosen.source], "target": ids[chosen.target], "sizes": sizes}
    info = {
        "episode_model_ids": ids,
        "episode_source_obj_name": judge["source"],
        "episode_target_obj_name": judge["target"],
        "episode_id": number,
    }
    layout = Layout((Fall(drops),), pose, qpos)
    return Setup(build, layout, options.view(case, robot), MAX_STEPS, judge, info)


def _scales(
    case: Case, models: Mapping[str, Mapping[str, Any]], ids: Sequence[str], rng: np.random.RandomState
) -> tuple[float, ...]:
    given = case.options.get("model_scales")
    if given is None:
        given = [options.choose(options.entry(models, model).get("scales") or [1.0], rng) for model in ids]
    return options.floats(given)


def _density(name: str, model: Mapping[str, Any]) -> float:
    return TOY_DENSITY if name in ("apple", "orange") else float(model.get("density", 1000))


class MoveNearJudge(Milestones):
    """Success: the source was moved, more than all else, near the target and nothing was knocked over."""

    all_stages = ("moved_correct_obj", "near_tgt_obj", "success")

    def __init__(self, setup: Setup, view: SceneView):
        super().__init__()
        self._view, self._source, self._target = view, setup.judge["source"], setup.judge["target"]
        self._sizes = setup.judge["sizes"]
        self._settled = {name: view.position(name) for name in self._sizes}
        self._halves = self._half_diagonal(self._source) + self._half_diagonal(self._target)

    def _half_diagonal(self, name: str) -> float:
        turn = Rotation.from_quat(self._view.turn(name)[[1, 2, 3, 0]])
        return float(np.linalg.norm(turn.apply(self._sizes[name])[:2])) / 2

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return f"move {options.spoken(self._source)} near {options.spoken(self._target)}"

    def verdict(self) -> Verdict:
        """Judge the scene as it stands."""
        now = {name: self._view.position(name) for name in self._settled}
        masses = {name: self._view.mass_pose(name)[:3] for name in (self._source, self._target)}
        moved = {name: float(np.linalg.norm((self._settled[name] - now[name])[:2])) for name in now}
        own = moved.pop(self._source)
        gap = float(np.linalg.norm((masses[self._source] - masses[self._target])[:2]))
        rivals = [np.linalg.norm((masses[self._source] - now[name])[:2]) for name in moved]
        flags = {
            "all_obj_keep_height": self._all_keep_height(now, masses),
            "moved_correct_obj": own > MOVED_M and all(other < own for other in moved.values()),
            "moved_wrong_obj": any(other > MOVED_M for other in moved.values())
            and any(other > own for other in moved.values()),
            "near_tgt_obj": gap < self._halves + NEAR_M,
            "is_closest_to_tgt": all(gap < rival + NEARER_M for rival in rivals),
        }
        flags = {name: bool(flag) for name, flag in flags.items()}
        needed = ("all_obj_keep_height", "moved_correct_obj", "near_tgt_obj", "is_closest_to_tgt")
        verdict: Verdict = {**flags, "success": all(flags[name] for name in needed), "episode_stats": dict(flags)}
        self.reach(verdict)
        return verdict

    def _all_keep_height(self, now: Mapping[str, np.ndarray], masses: Mapping[str, np.ndarray]) -> bool:
        others = [name for name in now if name not in masses]
        stand = all(now[name][2] - self._settled[name][2] > -KNOCKED_M for name in others)
        return stand and all(mass[2] - self._settled[name][2] > -FALLEN_M for name, mass in masses.items())


RESOLVERS: dict[str, Resolver] = {env_id: partial(resolve, kind=kind) for env_id, kind in KINDS.items()}
