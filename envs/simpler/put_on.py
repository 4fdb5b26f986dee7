"""The four WidowX tasks: put one object on another, judged by where their centres of mass lie and what they touch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

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
        settled: actor positions once everything lay still, by model id.
        now: actor positions now.
        source_com, target_com: centres of mass now.
        source_box, target_box: extents of the model's bounding box turned as it settled; entries may be negative.
        grasped: whether the robot grasps the source.
        held_steps: for how many steps in a row it has, this one included.
        touches_other: whether the source touches anything but the target and the robot.
    """

    settled: Mapping[str, np.ndarray]
    now: Mapping[str, np.ndarray]
    source_com: np.ndarray
    target_com: np.ndarray
    source_box: np.ndarray
    target_box: np.ndarray
    grasped: bool
    held_steps: int
    touches_other: bool


def turned_box(database_entry: Mapping[str, Mapping[str, list[float]]], scale: float, turn: np.ndarray) -> np.ndarray:
    """Give the extents [3] of a model's bounding box, turned by a quaternion w, x, y, z; signs are kept."""
    box = database_entry["bbox"]
    size = (np.array(box["max"]) - np.array(box["min"])) * scale
    return Rotation.from_quat(np.asarray(turn, dtype=np.float64)[[1, 2, 3, 0]]).apply(size)


def verdict(task: PutOn, situation: Situation) -> dict[str, bool]:
    """Judge a situation; the names are the original's."""
    moved = {
        name: float(np.linalg.norm((situation.settled[name] - situation.now[name])[:2])) for name in situation.settled
    }
    source_moved = moved.pop(task.source)
    return {
        "moved_correct_obj": source_moved > MOVED_M and all(other < source_moved for other in moved.values()),
        "moved_wrong_obj": any(other > MOVED_M for other in moved.values())
        and any(other > source_moved for other in moved.values()),
        "is_src_obj_grasped": situation.grasped,
        "consecutive_grasp": situation.held_steps >= HELD_STEPS,
        "src_on_target": (on_target := _on_target(task, situation)),
        "success": on_target,
    }


def _on_target(task: PutOn, situation: Situation) -> bool:
    offset = situation.source_com - situation.target_com
    half_source, half_target = situation.source_box / 2, situation.target_box / 2
    over = np.linalg.norm(offset[:2]) <= np.linalg.norm(half_target[:2]) + SPARE_M
    resting = 0 < offset[2] and offset[2] - half_target[2] - half_source[2] <= task.slack_m
    return bool(over and resting) and not (task.clear and situation.touches_other)
