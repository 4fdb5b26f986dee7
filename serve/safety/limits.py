"""Bend wanted actions of one part to its limits: range, velocity, acceleration and jerk at once.

A limit kept now is worth nothing if it cannot be kept a moment later: at full speed towards a wall, stopping in time
breaks the jerk limit or the wall. So a step is taken only if the robot could still stop behind it without breaking
any limit. One such stop is always known, and what is not allowed is mixed with its next step: the largest share of
the wanted acceleration that leaves a stop is taken. Since the rest of a stop is a stop, this never runs dry; only a
position that is set anew (`at`) can lie outside, and then the range counts from there.

The stop of n steps from velocity v0 and acceleration a0 is the one of least squared jerk, in closed form:

    a_i = a0 (1 - i/(n+1)) + h_i (-v0/dt - a0 n/2),    h_i = 6 i (n+1-i) / (n (n+1) (n+2)),    i = 1 .. n

Letters: T rows, M motions, N steps of a stop, W columns of the part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from st4vla.serve.safety.course import Along, Course, PartMotion, breaks, broken, follow, largest, widened
from st4vla.serve.safety.embodiment import Part

LONGEST_STOP_S = 2.5
# Shares of the wanted acceleration that are tried if all of it is too much: coarse ones, then finer ones above.
COARSE, FINE = np.linspace(7, 1, 7) / 8, np.linspace(7, 1, 7) / 64


@dataclass(frozen=True)
class Bent:
    """What became of rows: the actions [T,W], the motion after each, and which limits each wanted row broke."""

    actions: np.ndarray
    motions: Sequence[PartMotion]
    broken: tuple[tuple[str, ...], ...]


def bend(part: Part, period_s: float, motion: PartMotion, rows: np.ndarray) -> Bent:
    """Bend rows [T,W] of finite numbers that follow a motion; rows that keep every limit come back bit for bit."""
    rows = np.asarray(rows, np.float64)
    if part.form == "absolute" and not part.has_rates:
        return _clip(part, rows)
    course = follow(part, period_s, motion, rows)
    box = widened(part, motion.position)
    if not breaks(part, course, box).any() and can_stop(part, period_s, course, box):
        return Bent(rows, Along(course), ((),) * len(rows))
    return _bend_one_by_one(part, period_s, motion, rows)


def can_stop(part: Part, period_s: float, course: Course, box: tuple[np.ndarray, np.ndarray]) -> bool:
    """Say whether behind every row of a course [T,W] there is a stop that keeps every limit."""
    if not part.has_rates and not part.low:
        return True
    position, velocity, acceleration = course.position, course.velocity, course.acceleration
    # One stop that is long enough for the fastest row does for most; the shortest is asked for only where it does not.
    tried = stop_path(likely_stop(part, period_s, velocity), period_s, position, velocity, acceleration)
    rest = np.flatnonzero(breaks(part, tried, box).any(-1))
    if not len(rest):
        return True
    return bool(stop_lengths(part, period_s, position[rest], velocity[rest], acceleration[rest], box).all())


def likely_stop(part: Part, period_s: float, velocity_MW: np.ndarray) -> int:
    """Guess the steps of a stop from these velocities by its greatest acceleration, 1.5 v/t, and jerk, 6 v/t^2."""
    slowest = max(
        1.5 * largest(velocity_MW, part.acceleration) / period_s,
        math.sqrt(6 * largest(velocity_MW, part.jerk)) / period_s,
    )
    tried = lengths(max(1, round(LONGEST_STOP_S / period_s)))
    return next((length for length in tried if length >= slowest), tried[-1])


def _clip(part: Part, rows: np.ndarray) -> Bent:
    """Keep what may move at any rate, a gripper mostly, in its range."""
    low, high = part.bounds
    actions = np.clip(rows, low, high) if part.low else rows
    outside = (actions != rows).any(1).tolist()
    still = np.zeros_like(actions)
    return Bent(
        actions, Along(Course(actions, still, still, still)), tuple(("range",) if one else () for one in outside)
    )


def _bend_one_by_one(part: Part, period_s: float, motion: PartMotion, rows: np.ndarray) -> Bent:
    actions, motions, limits = [], [], []
    for row in rows:
        motion, action, names = step(part, period_s, motion, row)
        actions.append(action)
        motions.append(motion)
        limits.append(names)
    return Bent(np.array(actions).reshape(rows.shape), tuple(motions), tuple(limits))


def step(
    part: Part, period_s: float, motion: PartMotion, wanted: np.ndarray
) -> tuple[PartMotion, np.ndarray, tuple[str, ...]]:
    """Bend one action [W]: give the motion behind it, the action, and the limits that the wanted one broke."""
    box = widened(part, motion.position)
    course = follow(part, period_s, motion, wanted[None])
    names = [name for name, found in broken(part, course, box).items() if found[0]]
    if not names:
        if stop_lengths(part, period_s, course.position, course.velocity, course.acceleration, box)[0]:
            return PartMotion(course.position[0], course.velocity[0], course.acceleration[0]), wanted, ()
        names = ["stopping"]
    stop = known_stop(part, period_s, motion, box)
    direct = reachable(part, period_s, motion, course.velocity[0], box)
    bent = _largest_share(part, period_s, motion, direct, stop, box)
    return bent, action_of(part, period_s, bent), tuple(names)


def brake(part: Part, period_s: float, motion: PartMotion) -> tuple[PartMotion, np.ndarray]:
    """Take the next step of a stop: give the motion behind it and the action [W]."""
    stop = known_stop(part, period_s, motion, widened(part, motion.position))
    slower = moved(period_s, motion, stop[:1], stop[1:])
    return slower, action_of(part, period_s, slower)


def shortened(vector: np.ndarray, limit: tuple[float, ...]) -> np.ndarray:
    """Scale a vector [W] down to its limit, keeping its direction."""
    if not limit:
        return vector
    size = np.linalg.norm(vector) / limit[0] if len(limit) == 1 else (np.abs(vector) / np.array(limit)).max()
    return vector / max(1.0, float(size))


def reachable(
    part: Part, period_s: float, motion: PartMotion, wanted_velocity: np.ndarray, box: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Give the acceleration [W] to the nearest allowed velocity; whether a stop remains behind it is not asked here."""
    velocity = shortened(wanted_velocity, part.velocity)
    known = ~np.isnan(motion.position)
    bounds = [(edge - motion.position) / period_s for edge in box]
    velocity = np.where(known, np.clip(velocity, bounds[0], bounds[1]), velocity)
    acceleration = shortened((velocity - motion.velocity) / period_s, part.acceleration)
    change = shortened((acceleration - motion.acceleration) / period_s, part.jerk)
    return motion.acceleration + change * period_s


def _largest_share(
    part: Part,
    period_s: float,
    motion: PartMotion,
    direct: np.ndarray,
    stop: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
) -> PartMotion:
    """Move by the largest share of `direct`, the rest being the stop's own first step, behind which a stop is left."""
    best = 0.0
    for shares in (np.ones(1), COARSE, FINE):
        tried = shares if shares is not FINE else best + FINE
        candidates = stop[0] + tried[:, None] * (direct - stop[0])
        if (good := _is_allowed(part, period_s, motion, candidates, box)).any():
            best = float(tried[int(good.argmax())])
        if best == 1.0:
            break
    if best == 0.0:
        return moved(period_s, motion, stop[:1], stop[1:])
    return moved(period_s, motion, (stop[0] + best * (direct - stop[0]))[None], None)


def _is_allowed(
    part: Part, period_s: float, motion: PartMotion, accelerations_MW: np.ndarray, box: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Tell bool [M] whether an acceleration keeps every limit for this step and leaves a stop behind it."""
    velocity = motion.velocity + accelerations_MW * period_s
    position = motion.position + velocity * period_s
    jerk = (accelerations_MW - motion.acceleration) / period_s
    course = Course(position, velocity, accelerations_MW, jerk)
    good = ~breaks(part, course, box)
    good[good] = stop_lengths(part, period_s, position[good], velocity[good], accelerations_MW[good], box) > 0
    return good


def moved(period_s: float, motion: PartMotion, acceleration_1W: np.ndarray, rest: np.ndarray | None) -> PartMotion:
    """Accelerate for one step; `rest` is what remains of a known stop. Behind a whole stop the part stands."""
    if rest is not None and not len(rest):
        return PartMotion(motion.position, np.zeros_like(motion.velocity), acceleration_1W[0])
    velocity = motion.velocity + acceleration_1W[0] * period_s
    return PartMotion(motion.position + velocity * period_s, velocity, acceleration_1W[0], rest)


def action_of(part: Part, period_s: float, after: PartMotion) -> np.ndarray:
    return after.velocity * period_s if part.form == "delta" else after.position


def known_stop(part: Part, period_s: float, motion: PartMotion, box: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Give the accelerations [N,W] of a stop: the one that is known, one within all limits, or the quickest there is.

    The last two differ only where a position was set anew, or a motion began outside its limits.
    """
    if motion.stop is not None and len(motion.stop):
        return motion.stop
    everywhere = np.full(part.width, -np.inf), np.full(part.width, np.inf)
    for bounds in (box, everywhere):
        state = motion.position[None], motion.velocity[None], motion.acceleration[None]
        if length := int(stop_lengths(part, period_s, *state, bounds)[0]):
            return stops(length, period_s, motion.velocity[None], motion.acceleration[None])[0]
    return -motion.velocity[None] / period_s


def stop_lengths(
    part: Part,
    period_s: float,
    position_MW: np.ndarray,
    velocity_MW: np.ndarray,
    acceleration_MW: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Give the number of steps [M] of the shortest stop that keeps every limit; 0 where there is none."""
    found = np.zeros(len(position_MW), int)
    for length in lengths(max(1, round(LONGEST_STOP_S / period_s))):
        open_rows = np.flatnonzero(found == 0)
        if not len(open_rows):
            break
        start = velocity_MW[open_rows], acceleration_MW[open_rows]
        course = stop_path(length, period_s, position_MW[open_rows], *start)
        bad = breaks(part, course, box).any(-1)
        found[open_rows[~bad]] = length
    return found


def stop_path(
    length: int, period_s: float, position_MW: np.ndarray, velocity_MW: np.ndarray, acceleration_MW: np.ndarray
) -> Course:
    """Follow the stop of that many steps, and one step more at rest: [M,N+1,W]."""
    acceleration = stops(length, period_s, velocity_MW, acceleration_MW)
    acceleration = np.concatenate([acceleration, np.zeros_like(acceleration[:, :1])], axis=1)
    velocity = velocity_MW[:, None] + np.cumsum(acceleration, axis=1) * period_s
    position = position_MW[:, None] + np.cumsum(velocity, axis=1) * period_s
    jerk = np.empty_like(acceleration)
    np.subtract(acceleration[:, 0], acceleration_MW, out=jerk[:, 0])
    np.subtract(acceleration[:, 1:], acceleration[:, :-1], out=jerk[:, 1:])
    return Course(position, velocity, acceleration, jerk / period_s)


def stops(length: int, period_s: float, velocity_MW: np.ndarray, acceleration_MW: np.ndarray) -> np.ndarray:
    """Give the accelerations [M,N,W] of the stop of least squared jerk."""
    i = np.arange(1, length + 1)[None, :, None]
    hump = 6 * i * (length + 1 - i) / (length * (length + 1) * (length + 2))
    missing = -velocity_MW / period_s - acceleration_MW * length / 2
    return acceleration_MW[:, None] * (1 - i / (length + 1)) + hump * missing[:, None]


@cache
def lengths(longest: int) -> tuple[int, ...]:
    """Choose which numbers of steps are tried: each up to 4, then about a third more each time."""
    chosen = [1]
    while chosen[-1] < longest:
        chosen.append(max(chosen[-1] + 1, round(chosen[-1] * 1.35)))
    return tuple(chosen)
