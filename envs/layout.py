"""Draw the scene of an episode: which things, where, and what is to be done with them; a pure function of its seed.

World frame: x away from the robot, y to the right of the third-person picture, z up, origin on the table top in the
middle of the workspace. The robot's base stands at `BASE_X` on the x axis and is not turned.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from st4vla.envs import objects
from st4vla.platform.errors import EnvError

TaskName = Literal["reach", "push", "pick_up", "put_on", "sort_three"]
TASKS: tuple[TaskName, ...] = ("reach", "push", "pick_up", "put_on", "sort_three")
VARIANTS = ("default", "unseen_objects")

BASE_X = -0.615
HALF_X, HALF_Y = 0.14, 0.19
CLEARANCE = 0.030  # between the circles around two things: room for an open finger
MAX_YAW = 0.6
PUSH_LENGTH = 0.11  # kept free in front of the pushed thing
SIDES = {
    "left": (0.0, -1.0, 0.0),
    "right": (0.0, 1.0, 0.0),
    "towards the robot": (-1.0, 0.0, 0.0),
    "away from the robot": (1.0, 0.0, 0.0),
}


@dataclass(frozen=True)
class Scene:
    """What stands on the table at the start and what the episode is about.

    Attributes:
        task: name of the task.
        things: what is on the table; everything else of the library is put away.
        poses: float64 [K,7], position m and quaternion wxyz in the world frame, in the order of `things`.
        targets: indices into `things` of what is to be handled; one, or three for sort_three.
        destinations: indices into `things` of where each goes; empty if the task has none.
        side: key of `SIDES` for push, "" otherwise.
    """

    task: TaskName
    things: tuple[objects.Thing, ...]
    poses: np.ndarray
    targets: tuple[int, ...]
    destinations: tuple[int, ...] = ()
    side: str = ""

    @property
    def direction(self) -> np.ndarray:
        """Unit vector of the side in the world frame, zero if the task has none."""
        return np.array(SIDES.get(self.side, (0.0, 0.0, 0.0)))

    def names(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Name the things at these indices."""
        return tuple(self.things[index].name for index in indices)

    def retargeted(self, targets: tuple[int, ...], destinations: tuple[int, ...]) -> "Scene":
        """Give the same scene with another task for the robot."""
        return replace(self, targets=targets, destinations=destinations)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Make the random generator of one purpose within one episode; two purposes never share draws."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def check_task(task: str) -> TaskName:
    """Give back the task's name.

    Raises:
        EnvError: there is no such task.
    """
    if task not in TASKS:
        raise EnvError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}.")
    return task


def draw_scene(task: str, variant: str, seed: int) -> Scene:
    """Draw the scene of one episode.

    In the variant "unseen_objects" what is to be handled is a held-out combination of colour and form.

    Raises:
        EnvError: there is no such task or variant.
    """
    known = check_task(task)
    if variant not in VARIANTS:
        raise EnvError(f"There is no scene variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    rng = generator(seed, f"scene {known} {variant}")
    targets = objects.HELD_OUT_SOLIDS if variant == "unseen_objects" else objects.SEEN_SOLIDS
    if known == "sort_three":
        return _sorting_scene(rng, targets)
    things = _draw_things(rng, known, targets)
    order = rng.permutation(len(things))
    shuffled = tuple(things[index] for index in order)
    target = int(np.flatnonzero(order == 0)[0])
    destinations = (int(np.flatnonzero(order == len(things) - 1)[0]),) if known == "put_on" else ()
    side = str(rng.choice(sorted(SIDES))) if known == "push" else ""
    return Scene(known, shuffled, _place(rng, shuffled, target, side), (target,), destinations, side)


def _draw_things(rng: np.random.Generator, task: str, targets: Sequence[objects.Thing]) -> list[objects.Thing]:
    """Draw the target, one or two other solids, and for put_on the container last."""
    things = [targets[int(rng.integers(len(targets)))]]
    while len(things) < (2 if task == "put_on" else 3):
        other = objects.SEEN_SOLIDS[int(rng.integers(len(objects.SEEN_SOLIDS)))]
        if other not in things:
            things.append(other)
    if task == "put_on":
        things.append(objects.CONTAINERS[int(rng.integers(len(objects.CONTAINERS)))])
    return things


def _sorting_scene(rng: np.random.Generator, solids: Sequence[objects.Thing]) -> Scene:
    """Draw three solids and the three containers of their colours: containers in a row at the far edge."""
    colours = [str(colour) for colour in rng.permutation(objects.CONTAINER_COLOURS)[:3]]
    by_colour = [[thing for thing in solids if thing.colour == colour] for colour in colours]
    things = [choice[int(rng.integers(len(choice)))] for choice in by_colour]
    form = str(rng.choice(("bin", "plate")))
    things += [objects.Thing(colour, form) for colour in colours]
    row = np.array([[0.10, y] for y in (-0.15, 0.0, 0.15)])[rng.permutation(3)]
    positions = np.concatenate([_scatter(rng, things[:3], x_range=(-HALF_X, -0.005)), row])
    yaws = np.concatenate([rng.uniform(-MAX_YAW, MAX_YAW, 3), np.zeros(3)])
    return Scene("sort_three", tuple(things), _poses(things, positions, yaws), (0, 1, 2), (3, 4, 5))


def _place(rng: np.random.Generator, things: Sequence[objects.Thing], target: int, side: str) -> np.ndarray:
    """Place the things apart from each other, with the way free in front of and behind a thing to be pushed."""
    yaws = rng.uniform(-MAX_YAW, MAX_YAW, len(things)) * [thing.shape.kind == "solid" for thing in things]
    direction = np.array(SIDES.get(side, (0.0, 0.0, 0.0)))[:2]
    while True:
        positions = _scatter(rng, things)
        if not side or way_is_free(positions, things, target, direction):
            return _poses(things, positions, yaws)


def way_is_free(positions: np.ndarray, things: Sequence[objects.Thing], target: int, direction: np.ndarray) -> bool:
    """Tell whether the pushed thing stays in the workspace and meets nothing, nor the gripper behind it."""
    limits = np.array([HALF_X, HALF_Y]) + 0.02
    if np.any(np.abs(positions[target] + direction * PUSH_LENGTH) > limits):
        return False
    others = np.delete(positions, target, axis=0) - positions[target]
    radii = np.array([thing.shape.radius for index, thing in enumerate(things) if index != target])
    along = others @ direction
    across = np.abs(others @ np.array([-direction[1], direction[0]]))
    blocked = (along > -0.13) & (along < PUSH_LENGTH + 0.06 + radii)
    return bool(np.all(~blocked | (across > radii + things[target].shape.radius + 0.015)))


def _scatter(
    rng: np.random.Generator,
    things: Sequence[objects.Thing],
    x_range: tuple[float, float] = (-HALF_X, HALF_X),
) -> np.ndarray:
    """Draw positions [K,2] whose circles keep their clearance, starting over when a layout gets stuck."""
    radii = np.array([thing.shape.radius for thing in things])
    while True:
        low, high = np.array([x_range[0], -HALF_Y]), np.array([x_range[1], HALF_Y])
        inset = np.minimum(radii, 0.04)[:, None]
        positions = rng.uniform(low + inset, high - inset)
        gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1) - radii[:, None] - radii[None]
        if np.all(gaps[np.triu_indices(len(things), 1)] > CLEARANCE):
            return positions


def _poses(things: Sequence[objects.Thing], positions: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """Stand the things on the table: [K,7]."""
    heights = np.array([thing.shape.half_height for thing in things])
    zeros = np.zeros(len(things))
    return np.column_stack([positions, heights, np.cos(yaws / 2), zeros, zeros, np.sin(yaws / 2)])
