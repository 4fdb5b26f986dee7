"""The four WidowX tasks: put one object on another, judged by where their centres of mass lie and what they touch."""

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
from st4vla.envs.simpler.judging import Milestones, Verdict
from st4vla.envs.simpler.scene_view import SceneView
from st4vla.envs.simpler.setup import Build, Drop, Fall, Layout, Setup, Thing
from st4vla.envs.simpler.widowx import BASE_HEIGHT, GRASP_DEGREES, SINK_BASE_HEIGHT, SINK_START_QPOS, START_QPOS

CONTACT_OFFSET = 0.005
OWN_KEYS = (
    "original_lighting",
    "slightly_darker_lighting",
    "slightly_brighter_lighting",
    "ambient_only_lighting",
    "source_obj_name",
    "target_obj_name",
)
OBJECT_KEYS, RESET_KEYS = ("episode_id", "init_z"), ("model_scales",)
Pair = tuple[tuple[float, float], tuple[float, float]]
Turn = tuple[float, float, float, float]

UPRIGHT: Turn = (1.0, 0.0, 0.0, 0.0)
MOVED_M = 0.03
SPARE_M = 0.003
HELD_STEPS = 5
SINK_POSE = (-0.16, 0.13, 0.88, 1.0, 0.0, 0.0, 0.0)
BASKET = "dummy_sink_target_plane"


def _about_z(angle: float) -> Turn:
    return (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))


def _corner_pairs(half_edge: float, centre: tuple[float, float] = (-0.16, 0.0)) -> tuple[Pair, ...]:
    """Give the 12 ordered pairs of corners of a square, in the original's order."""
    signs = ((-1, -1), (-1, 1), (1, -1), (1, 1))
    corners = [(x * half_edge + centre[0], y * half_edge + centre[1]) for x, y in signs]
    return tuple((first, second) for first in corners for second in corners if first != second)


def _basket_pairs() -> tuple[Pair, ...]:
    xs, ys = np.linspace(-0.01, 0.01, 2) - 0.105, np.linspace(-0.015, 0.015, 4) + 0.206
    return tuple(((float(x), float(y)), (-0.125, 0.025)) for x in xs for y in ys)


@dataclass(frozen=True)
class PutOn:
    """One task.

    Attributes:
        source, target: model ids.
        instruction: what the policy is told.
        places: where source and target start, xy in m, in the order of the original's grid.
        turns: the source's start quaternions; the target's is upright.
        database: file of model properties.
        max_steps: control steps.
        slack_m: how much higher than resting on the target the source may be.
        clear: whether the source may touch nothing but the target and the robot.
        sink: whether the scene is the sink.
    """

    source: str
    target: str
    instruction: str
    places: tuple[Pair, ...]
    turns: tuple[Turn, ...] = (UPRIGHT,)
    database: str = "info_bridge_custom_v0.json"
    max_steps: int = 60
    slack_m: float = 0.02
    clear: bool = True
    sink: bool = False

    @property
    def num_episodes(self) -> int:
        """How many different starts the grid has."""
        return len(self.places) * len(self.turns)

    def start(self, episode: int) -> tuple[Pair, Turn]:
        """Give the places and the source's turn of a grid episode; any whole number counts, around and around."""
        return self.places[episode % self.num_episodes // len(self.turns)], self.turns[episode % len(self.turns)]


_STACKED = (*_corner_pairs(0.05), *_corner_pairs(0.1))
_STACK_WORDS = "stack the green block on the yellow block"
TASKS: Mapping[str, PutOn] = {
    "PutSpoonOnTableClothInScene-v0": PutOn(
        "bridge_spoon_generated_modified",
        "table_cloth_generated_shorter",
        "put the spoon on the towel",
        _corner_pairs(0.075),
        (UPRIGHT, _about_z(math.pi / 2)),
        clear=False,
    ),
    "PutCarrotOnPlateInScene-v0": PutOn(
        "bridge_carrot_generated_modified",
        "bridge_plate_objaverse_larger",
        "put carrot on plate",
        _corner_pairs(0.075),
        (_about_z(math.pi), _about_z(-math.pi / 2)),
    ),
    "StackGreenCubeOnYellowCubeInScene-v0": PutOn("green_cube_3cm", "yellow_cube_3cm", _STACK_WORDS, _STACKED),
    "StackGreenCubeOnYellowCubeBakedTexInScene-v0": PutOn(
        "baked_green_cube_3cm",
        "baked_yellow_cube_3cm",
        _STACK_WORDS,
        _STACKED,
        database="info_bridge_custom_baked_tex_v0.json",
    ),
    "PutEggplantInBasketScene-v0": PutOn(
        "eggplant",
        BASKET,
        "put eggplant into yellow basket",
        _basket_pairs(),
        (UPRIGHT, _about_z(math.pi / 4), _about_z(-math.pi / 4)),
        max_steps=120,
        slack_m=0.06,
        clear=False,
        sink=True,
    ),
}


@dataclass(frozen=True)
class Situation:
    """What the judge looks at; positions [3] in m, world frame.

    Attributes:
        source: model id of what is to be put.
        settled: actor positions once everything lay still, by model id.
        now: actor positions now.
        source_com, target_com: centres of mass now.
        source_box, target_box: extents of the model's bounding box turned as it settled; entries may be negative.
        grasped: whether the robot grasps the source.
        held_steps: for how many steps in a row it has, this one included.
        touches_other: whether the source touches anything but the target and the robot.
    """

    source: str
    settled: Mapping[str, np.ndarray]
    now: Mapping[str, np.ndarray]
    source_com: np.ndarray
    target_com: np.ndarray
    source_box: np.ndarray
    target_box: np.ndarray
    grasped: bool
    held_steps: int
    touches_other: bool


def packaged(case: Case, task: PutOn) -> Case:
    """Give the case with the build options of the original's prepackaged configuration, where it asks for that."""
    if not case.build.get("prepackaged_config"):
        return case
    build = {
        **case.build,
        "robot": "widowx_sink_camera_setup" if task.sink else "widowx",
        "control_freq": 5,
        "sim_freq": 500,
        "scene_name": "bridge_table_1_v2" if task.sink else "bridge_table_1_v1",
        "rgb_overlay_path": "bridge_sink.png" if task.sink else "bridge_real_eval_1.png",
        "rgb_overlay_cameras": ["3rd_view_camera"],
    }
    robot = {"init_xy": (0.127, 0.06) if task.sink else (0.147, 0.028), "init_rot_quat": (0, 0, 0, 1)}
    return Case(case.env_id, build, robot, case.obj, case.options, case.seed)


def resolve(case: Case, tree: AssetTree, task: PutOn) -> Setup:
    """Resolve one episode of a PutOn environment."""
    options.check_keys(case, OWN_KEYS, OBJECT_KEYS, RESET_KEYS)
    case = packaged(case, task)
    robot = options.robot_name(case, "widowx_sink_camera_setup" if task.sink else "widowx")
    drawn = case.rng().randint(task.num_episodes)
    number = int(case.obj.get("episode_id", drawn))
    models = options.database(case, tree, "bridge", task.database)
    ids = [str(case.build.get(f"{role}_obj_name") or getattr(task, role)) for role in ("source", "target")]
    scales = _scales(case, models, ids)
    build = Build(
        robot,
        options.arena(case, robot),
        lights.sink() if task.sink else lights.asked_for(case.build, lights.ASKED),
        "bridge",
        _things(models, ids, scales, task.sink),
        contact_offset=CONTACT_OFFSET,
        **options.rates(case, robot),
    )
    layout = Layout((_fall(case, task, ids, number),), *_robot_start(case, robot))
    sizes = {model: tuple(options.box_size(models[model], scale)) for model, scale in zip(ids, scales, strict=True)}
    judge = {"kind": "put_on", "task": task, "source": ids[0], "target": ids[1], "sizes": sizes}
    info = {
        "episode_model_ids": ids,
        "episode_model_scales": list(scales),
        "episode_source_obj_name": ids[0],
        "episode_target_obj_name": ids[1],
        "episode_id": number,
    }
    covered = ("sink", BASKET) if task.sink else ()
    return Setup(build, layout, options.view(case, robot, covered=covered), task.max_steps, judge, info)


def _scales(case: Case, models: Mapping[str, Mapping[str, Any]], ids: Sequence[str]) -> tuple[float, ...]:
    given, rng = case.options.get("model_scales"), case.rng()
    if given is None:
        given = [options.choose(options.entry(models, model).get("scales") or [1.0], rng) for model in ids]
    return options.floats(given)


def _things(
    models: Mapping[str, Mapping[str, Any]], ids: Sequence[str], scales: Sequence[float], sink: bool
) -> tuple[Thing, ...]:
    dense = {model: float(options.entry(models, model).get("density", 1000)) for model in ids}
    things = [Thing(model, scale, dense[model]) for model, scale in zip(ids, scales, strict=True)]
    if sink:
        density = float(options.entry(models, "sink").get("density", 1000))
        things.append(Thing("sink", density=density, fixed=SINK_POSE))
    return tuple(things)


def _fall(case: Case, task: PutOn, ids: Sequence[str], number: int) -> Fall:
    places, turn = task.start(number)
    height = float(case.obj.get("init_z", case.build.get("scene_table_height") or options.TABLE_HEIGHT))
    top = height + options.DROP_HEIGHT
    return Fall((Drop(ids[0], (*places[0], top), turn), Drop(ids[1], (*places[1], top))))


def _robot_start(case: Case, robot: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give the base pose [7] and the joints of the WidowX at a reset."""
    sink, given = robot == "widowx_sink_camera_setup", case.robot
    where = given.get("init_xy")
    height, turn, qpos = (given.get(key) for key in ("init_height", "init_rot_quat", "qpos"))
    place = (0.147, 0.07 if sink else 0.028) if where is None else where
    base = (SINK_BASE_HEIGHT if sink else BASE_HEIGHT) if height is None else height
    pose = (*place[:2], base, *((0, 0, 0, 1) if turn is None else turn))
    return options.floats(pose), options.floats((SINK_START_QPOS if sink else START_QPOS) if qpos is None else qpos)


def turned(size: Sequence[float], turn: np.ndarray) -> np.ndarray:
    """Give the extents [3] of a box turned by a quaternion w, x, y, z; signs are kept, as in the original."""
    return Rotation.from_quat(np.asarray(turn, dtype=np.float64)[[1, 2, 3, 0]]).apply(size)


def verdict(task: PutOn, situation: Situation) -> dict[str, bool]:
    """Judge a situation; the names are the original's."""
    moved = {
        name: float(np.linalg.norm((situation.settled[name] - situation.now[name])[:2])) for name in situation.settled
    }
    own = moved.pop(situation.source)
    on_target = _on_target(task, situation)
    return {
        "moved_correct_obj": own > MOVED_M and all(other < own for other in moved.values()),
        "moved_wrong_obj": any(other > MOVED_M for other in moved.values())
        and any(other > own for other in moved.values()),
        "is_src_obj_grasped": situation.grasped,
        "consecutive_grasp": situation.held_steps >= HELD_STEPS,
        "src_on_target": on_target,
        "success": on_target,
    }


def _on_target(task: PutOn, situation: Situation) -> bool:
    offset = situation.source_com - situation.target_com
    half_source, half_target = situation.source_box / 2, situation.target_box / 2
    over = np.linalg.norm(offset[:2]) <= np.linalg.norm(half_target[:2]) + SPARE_M
    resting = 0 < offset[2] and offset[2] - half_target[2] - half_source[2] <= task.slack_m
    return bool(over and resting) and not (task.clear and situation.touches_other)


class PutOnJudge(Milestones):
    """Success: the source lies over the target, as high as it would resting there, and touches nothing else."""

    all_stages = ("is_src_obj_grasped", "consecutive_grasp", "moved_correct_obj", "src_on_target")

    def __init__(self, setup: Setup, view: SceneView):
        super().__init__()
        self._view, self._task = view, setup.judge["task"]
        self._source, self._target = setup.judge["source"], setup.judge["target"]
        sizes = setup.judge["sizes"]
        self._settled = {name: view.position(name) for name in sizes}
        self._boxes = [turned(sizes[name], view.turn(name)) for name in (self._source, self._target)]
        self._held = 0
        self.stats = dict.fromkeys(
            ("moved_correct_obj", "moved_wrong_obj", "is_src_obj_grasped", "consecutive_grasp", "src_on_target"), False
        )

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return self._task.instruction

    def verdict(self) -> Verdict:
        """Judge a control step."""
        grasped = self._view.grasps(self._source, GRASP_DEGREES)
        self._held = self._held + 1 if grasped else 0
        flags = verdict(self._task, self._situation(grasped))
        for name in self.stats:
            # The original keeps a grasp once it was there; the other entries are those of the last step.
            kept = self.stats[name] if name in ("is_src_obj_grasped", "consecutive_grasp") else False
            self.stats[name] = kept or flags[name]
        found: Verdict = {**flags, "episode_stats": dict(self.stats)}
        self.reach(found)
        return found

    def _situation(self, grasped: bool) -> Situation:
        view = self._view
        return Situation(
            source=self._source,
            settled=self._settled,
            now={name: view.position(name) for name in self._settled},
            source_com=view.mass_pose(self._source)[:3],
            target_com=view.mass_pose(self._target)[:3],
            source_box=self._boxes[0],
            target_box=self._boxes[1],
            grasped=grasped,
            held_steps=self._held,
            touches_other=view.touched_by_others(self._source, but=(self._target,)),
        )


RESOLVERS: dict[str, Resolver] = {env_id: partial(resolve, task=task) for env_id, task in TASKS.items()}
