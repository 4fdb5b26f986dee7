"""Plan the official protocol on the Google robot: Visual Matching, Variant Aggregation, and its unscored cameras.

A variant is what the official results call a directory: success is averaged in each, then over them. An episode's seed
counts the variant's grid, in the official order, and `case_of` turns it back into the original's words.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from st4vla.envs.simpler import drawer, move_near, options, pick
from st4vla.envs.simpler.cases import Case
from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import EnvError

VISUAL_MATCHING, VARIANT_AGGREGATION = "simplerenv_google_vm", "simplerenv_google_va"
CAMERAS = "simplerenv_google_va_cameras"  # officially run, never scored
TRAINING = "simplerenv_google_training"
PICK, MOVE, OPEN, CLOSE, PLACE = "pick_coke_can", "move_near", "open_drawer", "close_drawer", "place_apple"

RATES = {"robot": "google_robot_static", "control_freq": 3, "sim_freq": 513}
TABLE = {**RATES, "scene_name": "google_pick_coke_can_1_v4"}
ROOM = {**RATES, "scene_name": "frl_apartment_stage_simple", "shader_dir": "rt"}
RECOLOURED = {
    **RATES,
    "scene_name": "dummy_drawer",
    "shader_dir": "rt",
    "station_name": "mk_station_recolor",
    "light_mode": "simple",
    "disable_bad_material": True,
}
COLOURS = {
    "plain": "",
    "tabletop_1": "recolor_tabletop_visual_matching_1",
    "tabletop_2": "recolor_tabletop_visual_matching_2",
    "cabinet_1": "recolor_cabinet_visual_matching_1",
}
ORIENTATIONS = {"horizontal": "lr_switch", "vertical": "laid_vertically", "standing": "upright"}
COKE, COKE_DISTRACTED = "GraspSingleOpenedCokeCanInScene-v0", "GraspSingleOpenedCokeCanDistractorInScene-v0"
NEAR, NEAR_BAKED = "MoveNearGoogleInScene-v0", "MoveNearGoogleBakedTexInScene-v0"
APPLE = "PlaceIntoClosedTopDrawerCustomInScene-v0"

SCENES = {
    "base": {},
    "background_1": {"scene_name": "google_pick_coke_can_1_v4_alt_background"},
    "background_2": {"scene_name": "google_pick_coke_can_1_v4_alt_background_2"},
    "brighter": {"slightly_brighter_lighting": True},
    "darker": {"slightly_darker_lighting": True},
    "table_1": {"scene_name": "Baked_sc1_staging_objaverse_cabinet1_h870"},
    "table_2": {"scene_name": "Baked_sc1_staging_objaverse_cabinet2_h870"},
}
DISTRACTORS = {"distractors_less": {"distractor_config": "less"}, "distractors_more": {"distractor_config": "more"}}
ALONE = {"no_distractor": {"no_distractor": True}}
ROOMS = {
    "base": {},
    "bedroom": {"scene_name": "modern_bedroom_no_roof"},
    "office": {"scene_name": "modern_office_no_roof"},
    "brighter": {"light_mode": "brighter"},
    "darker": {"light_mode": "darker"},
    "station_2": {"station_name": "mk_station2"},
    "station_3": {"station_name": "mk_station3"},
}
ALTERNATIVE_CAMERAS = {"camera_1": "AltGoogleCamera", "camera_2": "AltGoogleCamera2"}

COKE_GRID = tuple(itertools.product(np.linspace(-0.35, -0.12, 5).tolist(), np.linspace(-0.02, 0.42, 5).tolist()))
APPLE_GRID = tuple(itertools.product(np.linspace(-0.08, -0.02, 3).tolist(), np.linspace(-0.02, 0.08, 3).tolist()))
ROOM_GRID = tuple(itertools.product((0.65, 0.75, 0.85), (-0.2, 0.0, 0.2)))
ROOM_YS = (-0.2, 0.0, 0.2)
FACING = {"init_rot_quat": (0.0, 0.0, 0.0, 1.0)}
AT_COKE = {"init_xy": (0.35, 0.20), **FACING}
AT_NEAR = {"init_xy": (0.35, 0.21), "init_rot_quat": options.facing(-0.09)}


@dataclass(frozen=True)
class Variant:
    """One directory of official results: an environment, its build options, and the episodes of its grid.

    Attributes:
        env_id, build: of every episode.
        starts: robot options and object options of each episode, in the official order.
    """

    env_id: str
    build: Mapping[str, Any]
    starts: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]

    def case(self, number: int) -> Case:
        """Give episode `number` in the original's words."""
        robot, obj = self.starts[number]
        return Case(self.env_id, self.build, robot, obj)


Tables = dict[str, dict[str, Variant]]  # task -> variant -> what it is


def _overlaid(build: Mapping[str, Any], photo: str, colour: str) -> dict[str, Any]:
    overlay = {"rgb_overlay_path": photo, "rgb_overlay_cameras": ["overhead_camera"]}
    return {**build, **overlay, "urdf_version": COLOURS[colour]}


def _coke_starts() -> tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]:
    return tuple((AT_COKE, {"init_xy": place}) for place in COKE_GRID)


def _near_starts() -> tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]:
    return tuple((AT_NEAR, {"episode_id": number}) for number in range(move_near.NUM_EPISODES))


def _drawer_env(verb: str, name: str) -> str:
    return f"{verb.capitalize()}{name.capitalize()}DrawerCustomInScene-v0"


@cache
def visual_matching() -> Tables:
    """Give the variants of Visual Matching: the four colours of the robot's arm, everywhere."""
    photo, near_photo = pick.OVERLAY, move_near.OVERLAY
    tables: Tables = {task: {} for task in (PICK, MOVE, OPEN, CLOSE, PLACE)}
    for colour in COLOURS:
        for name, option in ORIENTATIONS.items():
            build = {**_overlaid(TABLE, photo, colour), option: True}
            tables[PICK][f"{name}/{colour}"] = Variant(COKE, build, _coke_starts())
        tables[MOVE][colour] = Variant(NEAR_BAKED, _overlaid(TABLE, near_photo, colour), _near_starts())
        for verb, name in itertools.product((OPEN, CLOSE), drawer.DRAWERS):
            env_id = _drawer_env(verb.split("_")[0], name)
            starts = tuple((drawer.standpoint(spot), {}) for spot in drawer.STANDPOINTS)
            tables[verb][f"{name}/{colour}"] = Variant(env_id, _overlaid(RECOLOURED, "", colour), starts)
        build = {**_overlaid(RECOLOURED, "", colour), "model_ids": "baked_apple_v2"}
        spots = itertools.product(drawer.PLACE_STANDPOINTS, APPLE_GRID)
        starts = tuple((drawer.standpoint(spot), {"init_xy": place}) for spot, place in spots)
        tables[PLACE][colour] = Variant(APPLE, build, starts)
    return tables


@cache
def variant_aggregation() -> Tables:
    """Give the scored variants of Variant Aggregation: rooms, tables, lights, distractors."""
    tables: Tables = {task: {} for task in (PICK, MOVE, OPEN, CLOSE, PLACE)}
    for name, option in ORIENTATIONS.items():
        for change, build in {**SCENES, **DISTRACTORS}.items():
            env_id = COKE_DISTRACTED if change in DISTRACTORS else COKE
            tables[PICK][f"{name}/{change}"] = Variant(env_id, {**TABLE, option: True, **build}, _coke_starts())
    for change, build in {**SCENES, **ALONE}.items():
        tables[MOVE][change] = Variant(NEAR, {**TABLE, **build}, _near_starts())
    grid = tuple(({"init_xy": place, **FACING}, {}) for place in ROOM_GRID)
    rows = itertools.product(ROOM_YS, APPLE_GRID)
    apples = tuple(({"init_xy": (0.65, y), **FACING}, {"init_xy": place}) for y, place in rows)
    for change, build in ROOMS.items():
        for verb, name in itertools.product((OPEN, CLOSE), drawer.DRAWERS):
            env_id = _drawer_env(verb.split("_")[0], name)
            tables[verb][f"{name}/{change}"] = Variant(env_id, {**ROOM, **build}, grid)
        tables[PLACE][change] = Variant(APPLE, {**ROOM, "model_ids": "apple", **build}, apples)
    return tables


@cache
def cameras() -> Tables:
    """Give the camera variants, which the official protocol runs and does not score."""
    tables: Tables = {PICK: {}, MOVE: {}}
    for name, tag in ALTERNATIVE_CAMERAS.items():
        for orientation, option in ORIENTATIONS.items():
            env_id = COKE.replace("InScene", f"{tag}InScene")
            tables[PICK][f"{orientation}/{name}"] = Variant(env_id, {**TABLE, option: True}, _coke_starts())
        tables[MOVE][name] = Variant(f"MoveNear{tag}InScene-v0", TABLE, _near_starts())
    return tables


SUITES = {VISUAL_MATCHING: visual_matching, VARIANT_AGGREGATION: variant_aggregation, CAMERAS: cameras}
TASKS = (PICK, MOVE, OPEN, CLOSE, PLACE)


def variant_of(suite: str, task: str, variant: str) -> Variant:
    """Give one variant.

    Raises:
        EnvError: the suite, task or variant is not known.
    """
    if suite not in SUITES:
        raise EnvError(f"There is no suite {suite!r} of the Google robot; expected one of {', '.join(SUITES)}.")
    tables = SUITES[suite]()
    if task not in tables:
        raise EnvError(f"{suite} has no task {task!r}; expected one of {', '.join(tables)}.")
    if variant not in tables[task]:
        raise EnvError(f"{task} has no variant {variant!r} in {suite}; expected one of {', '.join(tables[task])}.")
    return tables[task][variant]


def case_of(spec: EpisodeSpec) -> Case:
    """Give an episode of a plan in the original's words.

    Raises:
        EnvError: it is of no plan of this module.
    """
    if spec.suite == TRAINING:
        return training_case(spec.task, spec.seed)
    variant = variant_of(spec.suite, spec.task, spec.variant)
    if not 0 <= spec.seed < len(variant.starts):
        raise EnvError(f"{spec.task} {spec.variant} has episodes 0 to {len(variant.starts) - 1}, not {spec.seed}.")
    case = variant.case(spec.seed)
    if variant.build.get("rgb_overlay_path") == "":
        spots = drawer.PLACE_STANDPOINTS if spec.task == PLACE else tuple(drawer.STANDPOINTS)
        spot = spots[spec.seed * len(spots) // len(variant.starts)]
        build = {**case.build, "rgb_overlay_path": f"open_drawer_{spot}.png"}
        case = Case(case.env_id, build, case.robot, case.obj)
    return case


def plan(suite: str, tasks: tuple[str, ...] = ()) -> list[EpisodeSpec]:
    """Plan a whole suite, or some of its tasks, variant by variant in the official order.

    Raises:
        EnvError: the suite or a task is not known.
    """
    if suite not in SUITES:
        raise EnvError(f"There is no suite {suite!r} of the Google robot; expected one of {', '.join(SUITES)}.")
    tables = SUITES[suite]()
    unknown = [task for task in tasks if task not in tables]
    if unknown:
        raise EnvError(f"{suite} has no task {unknown[0]!r}; expected some of {', '.join(tables)}.")
    return [
        EpisodeSpec(suite, task, name, number, _words(task, variant, number))
        for task in tasks or tuple(tables)
        for name, variant in tables[task].items()
        for number in range(len(variant.starts))
    ]


def _words(task: str, variant: Variant, number: int) -> str:
    """Give the instruction that the policy is told first."""
    if task == PICK:
        return "pick coke can"
    if task == MOVE:
        chosen = move_near.episode(number, bool(variant.build.get("no_distractor")))
        source, target = (options.spoken(chosen.names[index]) for index in (chosen.source, chosen.target))
        return f"move {source} near {target}"
    kind = drawer.KINDS[variant.env_id]
    return f"{'open' if kind.verb == 'place' else kind.verb} {kind.drawers[0]} drawer"


def training_case(task: str, index: int) -> Case:
    """Give training episode `index`: drawn by its number, the robot standing where no evaluation has it.

    Raises:
        EnvError: the task is not known.
    """
    rng = np.random.RandomState(index % 2**32)
    near_drawers = {"init_xy": (rng.uniform(0.66, 0.74), rng.uniform(-0.19, -0.01)), **FACING}
    name = drawer.DRAWERS[index % len(drawer.DRAWERS)]
    cases = {
        PICK: (COKE, TABLE, {}),
        MOVE: (NEAR, TABLE, {}),
        OPEN: (_drawer_env("open", name), ROOM, near_drawers),
        CLOSE: (_drawer_env("close", name), ROOM, near_drawers),
        PLACE: (APPLE, {**ROOM, "model_ids": "apple"}, near_drawers),
    }
    if task not in cases:
        raise EnvError(f"There is no task {task!r} of the Google robot; expected one of {', '.join(cases)}.")
    env_id, build, robot = cases[task]
    return Case(env_id, build, robot, seed=index % 2**32)


def training(task: str, index: int) -> EpisodeSpec:
    """Plan training episode `index` of a task.

    Raises:
        EnvError: the task is not known.
    """
    case = training_case(task, index)
    kind = drawer.KINDS.get(case.env_id)
    words = "pick coke can"
    if kind is not None:
        words = f"{'open' if kind.verb == 'place' else kind.verb} {kind.drawers[0]} drawer"
    elif task == MOVE:
        number = int(case.rng().randint(move_near.NUM_EPISODES))
        words = _words(MOVE, Variant(case.env_id, case.build, ()), number)
    return EpisodeSpec(TRAINING, task, "training", index, words)
