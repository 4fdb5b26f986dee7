"""Reward the tasks densely: for each task one potential, a pure function of the situation.

    reward = SCALE * (potential after - potential before) + SUCCESS * solved - STEP_COST

A potential is 0 far from the goal and grows by about one per stage, so that rewards of all tasks are of one size; only
its differences are paid, hence no loop of moves earns anything. Like the judges these take `tasks.Situation` with
leading dimensions [N] in NumPy and give [N].
"""

from collections.abc import Callable

import numpy as np

from st4vla.envs import tasks
from st4vla.envs.layout import TaskName

SCALE, SUCCESS, STEP_COST = 3.0, 3.0, 0.05
FAR_M = 0.25  # distances are counted in this: about the way from home to an object
PUSH_HEIGHT_M, PUSH_GAP_M = 0.022, 0.045
FUNNEL_SLOPE, FUNNEL_MOUTH_M, FUNNEL_HEIGHT_M = 2.0, 0.012, 0.09


def _length(vector: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vector, axis=-1)


def funnel_distance(tcp: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Give how far [N] the TCP is from a low place along a funnel: first over it, then down, m.

    Beside the place the TCP should be as high as the funnel's wall, so that it does not run into the object sidewards.
    """
    aside = _length(tcp[..., :2] - place[..., :2])
    wall = ((aside - FUNNEL_MOUTH_M) * FUNNEL_SLOPE).clip(0.0, FUNNEL_HEIGHT_M)
    return aside + abs(tcp[..., 2] - place[..., 2] - wall)


def reach_potential(situation: tasks.Situation) -> np.ndarray:
    """Reach: minus the distance to the point above the object."""
    point = tasks.reach_point(situation.targets[..., 0, :], situation.half_heights[..., 0])
    return -_length(situation.tcp - point) / FAR_M


def push_potential(situation: tasks.Situation) -> np.ndarray:
    """Push: minus the funnel distance to the place behind the object, plus three times the share pushed."""
    target = situation.targets[..., 0, :]
    moved = ((target - situation.starts[..., 0, :]) * situation.direction).sum(-1)
    behind = target - PUSH_GAP_M * situation.direction
    behind[..., 2] = PUSH_HEIGHT_M
    approach = funnel_distance(situation.tcp, behind).clip(0.02, None)
    return -approach / FAR_M + 3.0 * (moved / tasks.PUSH_DISTANCE_M).clip(-0.5, 1.0)


def grasp_potential(situation: tasks.Situation, index: int = 0) -> np.ndarray:
    """Grasp: minus the funnel distance to the object, half a point for closing around it when there."""
    target = situation.targets[..., index, :]
    approach = funnel_distance(situation.tcp, target)
    held = tasks.is_held(situation.tcp, situation.opening, target)
    return -approach / FAR_M + 0.5 * held


def pick_up_potential(situation: tasks.Situation) -> np.ndarray:
    """Pick up: the grasp, plus two times the share lifted."""
    held = tasks.is_held(situation.tcp, situation.opening, situation.targets[..., 0, :])
    lift = situation.targets[..., 0, 2] - situation.starts[..., 0, 2]
    return grasp_potential(situation) + 2.0 * held * (lift / tasks.LIFT_HEIGHT_M).clip(0.0, 1.0)


def place_potential(situation: tasks.Situation, index: int = 0) -> np.ndarray:
    """Put one object into its container: the grasp, plus up to two for the carrying, plus two once it lies there."""
    target, place = situation.targets[..., index, :], situation.destinations[..., index, :]
    held = tasks.is_held(situation.tcp, situation.opening, target)
    lifted = (target[..., 2] - situation.starts[..., index, 2] > 0.03) | (_length((target - place)[..., :2]) < 0.03)
    near = (1.0 - _length(target - place) / FAR_M).clip(0.0, 1.0)
    placed = tasks.is_placed(situation, index)
    return np.where(placed, 4.5, grasp_potential(situation, index) + held * lifted * (0.5 + 1.5 * near))


def sort_three_potential(situation: tasks.Situation) -> np.ndarray:
    """Sort three: the best of what is not placed yet, plus five for each object that is."""
    each = np.stack([place_potential(situation, index) for index in range(3)], axis=-1)
    placed = np.stack([tasks.is_placed(situation, index) for index in range(3)], axis=-1)
    waiting = np.where(placed, -np.inf, each).max(-1)
    return 5.0 * placed.sum(-1) + np.where(placed.all(-1), 0.0, waiting)


POTENTIALS: dict[TaskName, Callable[[tasks.Situation], np.ndarray]] = {
    "reach": reach_potential,
    "push": push_potential,
    "pick_up": pick_up_potential,
    "put_on": place_potential,
    "sort_three": sort_three_potential,
}


def reward(before: np.ndarray, after: np.ndarray, solved: np.ndarray) -> np.ndarray:
    """Give the reward [N] of a control step: from the potentials before and after it, and whether it solved the task."""
    return SCALE * (after - before) + SUCCESS * solved - STEP_COST
