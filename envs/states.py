"""Lay out the state vectors that a policy may ask for; float32, metres and radians.

Every function takes one world or many: leading axes "..." go through.
"""

import numpy as np

from st4vla.envs import geometry, tasks
from st4vla.envs.layout import BASE_X, TASKS, TaskName

PROPRIOCEPTION_DIM, PRIVILEGED_DIM = 7, 32
BASE = np.array([BASE_X, 0.0, 0.0])
GOAL_M = 0.10  # how far from its start an object to be pushed or picked up should go

# What makes each number of the privileged state about one; fixed scales, so a policy needs no running statistics.
MEAN = np.zeros(PRIVILEGED_DIM, dtype=np.float32)
MEAN[:7] = [0.55, 0.0, 0.12, np.pi, 0.0, 0.0, 0.5]
MEAN[[12, 23]] = [0.022, 0.5]
SCALE = np.ones(PRIVILEGED_DIM, dtype=np.float32)
SCALE[:7] = [0.15, 0.15, 0.1, 0.5, 0.5, 0.5, 0.5]
SCALE[[7, 8, 9, 13, 14, 15, 16, 17, 18]] = 0.1
SCALE[[12, 23]] = [0.01, 0.5]


def proprioception(position: np.ndarray, quaternion: np.ndarray, opening: np.ndarray | float) -> np.ndarray:
    """Give [..., 7]: TCP in the robot base frame; rotation vector with x >= 0; gripper opening 0..1.

    Args:
        position: [..., 3] of the TCP in the world frame.
        quaternion: [..., 4] wxyz of the hand.
        opening: [...] of the gripper.
    """
    rotation = geometry.tool_rotation_vector(quaternion)
    own = [position - BASE, rotation, np.asarray(opening)[..., None]]
    return np.concatenate(own, axis=-1).astype(np.float32)


def goal_of(task: TaskName, situation: tasks.Situation, which: np.ndarray) -> np.ndarray:
    """Give the point [..., 3] that the TCP (reach) or the target (all else) should come to, in the world frame."""
    if task == "reach":
        return tasks.reach_point(_chosen(situation.targets, which), _chosen(situation.half_heights, which))
    if task == "push":
        return _chosen(situation.starts, which) + GOAL_M * situation.direction
    if task == "pick_up":
        return _chosen(situation.starts, which) + np.array([0.0, 0.0, GOAL_M])
    return _chosen(situation.destinations, which)


def privileged(
    task: TaskName,
    situation: tasks.Situation,
    which: np.ndarray | int,
    yaw: np.ndarray | float,
    own: np.ndarray,
    time_left: np.ndarray | float,
) -> np.ndarray:
    """Give [..., 32], laid out alike for every task so that one network fits them all; world axes.

        0-6    proprioception                    19     1 if the target is held
        7-9    target - TCP                      20-22  direction to push along
        10-11  sine and cosine of twice its yaw  23     share of the time that is left
        12     half its height                   24-28  one-hot task, in the order of `layout.TASKS`
        13-15  goal - target                     29-31  zero
        16-18  goal - TCP

    Args:
        task: name of the task.
        situation: of one world or many.
        which: [...] index of the target it is about now.
        yaw: [...] of that target.
        own: proprioception [..., 7].
        time_left: [...] share of the episode's steps.
    """
    which, yaw = np.asarray(which), np.asarray(yaw)
    target, goal = _chosen(situation.targets, which), goal_of(task, situation, which)
    state = np.zeros((*which.shape, PRIVILEGED_DIM), dtype=np.float32)
    state[..., :7], state[..., 7:10] = own, target - situation.tcp
    state[..., 10], state[..., 11] = np.sin(2 * yaw), np.cos(2 * yaw)
    state[..., 12] = _chosen(situation.half_heights, which)
    state[..., 13:16], state[..., 16:19] = goal - target, goal - situation.tcp
    state[..., 19] = tasks.is_held(situation.tcp, situation.opening, target)
    state[..., 20:23], state[..., 23] = situation.direction, time_left
    state[..., 24 + TASKS.index(task)] = 1.0
    return state


def _chosen(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Pick entry `which` [...] of values [..., M] or [..., M, 3]."""
    index = which[..., None, None] if values.ndim > which.ndim + 1 else which[..., None]
    return np.take_along_axis(values, index, axis=which.ndim).squeeze(which.ndim)
