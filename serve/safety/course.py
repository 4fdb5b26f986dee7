"""Follow the actions of one part of a robot in positions, velocities, accelerations and jerks, and hold them to limits.

Letters: T rows, M motions, W columns of the part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from st4vla.serve.safety.embodiment import RATES, Part

# A limit counts as kept within this share of it, since actions travel as float32.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class PartMotion:
    """How a part moves after an action: position, velocity and acceleration as commanded, float64 [W] each.

    The position is NaN where nothing has measured it. `stop` holds the accelerations [N,W] of a stop that keeps every
    limit, where one had to be worked out.
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    stop: np.ndarray | None = None

    @property
    def is_at_rest(self) -> bool:
        """Whether holding changes nothing."""
        return not (np.abs(self.velocity) > 1e-9).any() and not (np.abs(self.acceleration) > 1e-7).any()


@dataclass(frozen=True)
class Course:
    """Positions, velocities, accelerations and jerks [...,W], in the part's unit and seconds."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray


class Along(Sequence[PartMotion]):
    """The motion after each row of a course [T,W]; each is made when it is asked for, since few ever are."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def __len__(self) -> int:
        return len(self._course.position)

    @overload
    def __getitem__(self, index: int) -> PartMotion: ...

    @overload
    def __getitem__(self, index: slice) -> "Along": ...

    def __getitem__(self, index: int | slice) -> "PartMotion | Along":
        course = self._course
        if isinstance(index, slice):
            taken = course.position[index], course.velocity[index], course.acceleration[index], course.jerk[index]
            return Along(Course(*taken))
        return PartMotion(course.position[index], course.velocity[index], course.acceleration[index])


def at(position: np.ndarray) -> PartMotion:
    """Stand still at a position."""
    return PartMotion(np.asarray(position, np.float64), np.zeros(len(position)), np.zeros(len(position)))


def follow(part: Part, period_s: float, motion: PartMotion, rows: np.ndarray) -> Course:
    """Say what actions [T,W] do when they follow a motion."""
    position = motion.position + np.cumsum(rows, axis=0) if part.form == "delta" else rows
    velocity = velocity_of(part, period_s, motion, rows)
    acceleration = steps_of(velocity, motion.velocity) / period_s
    jerk = steps_of(acceleration, motion.acceleration) / period_s
    return Course(position, velocity, acceleration, jerk)


def velocity_of(part: Part, period_s: float, motion: PartMotion, rows: np.ndarray) -> np.ndarray:
    """Say how fast actions [T,W] move that follow a motion; a first one from nowhere does not."""
    return (rows if part.form == "delta" else np.nan_to_num(steps_of(rows, motion.position))) / period_s


def steps_of(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Give the differences [T,W] of rows from the row before each; `np.diff` with a prefix is slower."""
    differences = np.empty_like(values)
    np.subtract(values[:1], before, out=differences[:1])
    np.subtract(values[1:], values[:-1], out=differences[1:])
    return differences


def widened(part: Part, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the part's bounds; from outside it may move in, and never further out."""
    low, high = part.bounds
    if not part.low:
        return low, high
    slack = range_slack(part)
    low = np.where(position < low - slack, position + slack, low)
    return low, np.where(position > high + slack, position - slack, high)


def range_slack(part: Part) -> np.ndarray:
    low, high = part.bounds
    return TOLERANCE * (high - low)


def broken(part: Part, course: Course, box: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Tell bool [...] for each limit that the part has where a course breaks it; what is not known breaks nothing."""
    found: dict[str, np.ndarray] = {}
    if part.low:
        slack = range_slack(part)
        outside = (course.position < box[0] - slack) | (course.position > box[1] + slack)
        found["range"] = np.asarray(outside.any(-1))
    for name in RATES:
        if limit := getattr(part, name):
            found[name] = exceeds(getattr(course, name), limit)
    return found


def breaks(part: Part, course: Course, box: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Tell bool [...] where a course breaks any limit."""
    found = np.zeros(course.position.shape[:-1], bool)
    for one in broken(part, course, box).values():
        found |= one
    return found


def exceeds(values: np.ndarray, limit: tuple[float, ...]) -> np.ndarray:
    """Tell bool [...] where vectors [...,W] are longer than one limit, or any column beyond its own."""
    if len(limit) == 1:
        return np.asarray((values * values).sum(-1) > (limit[0] * (1 + TOLERANCE)) ** 2)
    return np.asarray((np.abs(values) > np.array(limit) * (1 + TOLERANCE)).any(-1))


def largest(values: np.ndarray, limit: tuple[float, ...]) -> float:
    """Give the size of the largest of vectors [M,W] as a share of a limit; 0 where there is none."""
    if not limit or not len(values):
        return 0.0
    if len(limit) == 1:
        return math.sqrt(float((values * values).sum(-1).max())) / limit[0]
    return float((np.abs(values) / np.array(limit)).max())
