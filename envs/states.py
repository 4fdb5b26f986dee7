"""Lay out the state vectors that a policy may ask for; float32, metres and radians."""

import numpy as np

from st4vla.envs import geometry, tasks
from st4vla.envs.layout import BASE_X, TASKS, TaskName

PROPRIOCEPTION_DIM, PRIVILEGED_DIM = 7, 32
BASE = np.array([BASE_X, 0.0, 0.0])
GOAL_M = 0.10  # how far from its start an object to be pushed or picked up should go


def proprioception(position: np.ndarray, quaternion: np.ndarray, opening: float) -> np.ndarray:
    """Give [7]: TCP in the robot base frame; rotation vector with x >= 0; gripper opening 0..1.

    Args:
        position: [3] of the TCP in the world frame.
        quaternion: [4] wxyz of the hand.
        opening: of the gripper.
    """
    rotation = geometry.tool_rotation_vector(quaternion)
    return np.concatenate([position - BASE, rotation, [opening]]).astype(np.float32)


def goal_of(task: TaskName, situation: tasks.Situation, which: int) -> np.ndarray:
    """Give the point [3] that the TCP (reach) or the target (all else) should come to, in the world frame."""
    if task == "reach":
        return tasks.reach_point(situation.targets[which], situation.half_heights[which])
    if task == "push":
        return situation.starts[which] + GOAL_M * situation.direction
    if task == "pick_up":
        return situation.starts[which] + np.array([0.0, 0.0, GOAL_M])
    return situation.destinations[which]


def privileged(
    task: TaskName, situation: tasks.Situation, which: int, yaw: float, own: np.ndarray, time_left: float
) -> np.ndarray:
    """Give [32], laid out alike for every task so that one network fits them all; world axes.

        0-6    proprioception                    19     1 if the target is held
        7-9    target - TCP                      20-22  direction to push along
        10-11  sine and cosine of twice its yaw  23     share of the time that is left
        12     half its height                   24-28  one-hot task, in the order of `layout.TASKS`
        13-15  goal - target                     29-31  zero
        16-18  goal - TCP

    Args:
        task: name of the task.
        situation: unbatched.
        which: the target it is about now.
        yaw: of that target.
        own: proprioception [7].
        time_left: share of the episode's steps.
    """
    target, goal = situation.targets[which], goal_of(task, situation, which)
    held = float(tasks.is_held(situation.tcp, situation.opening, target))
    about_target = [target - situation.tcp, [np.sin(2 * yaw), np.cos(2 * yaw), situation.half_heights[which]]]
    about_goal = [goal - target, goal - situation.tcp, [held], situation.direction]
    rest = [[time_left], np.eye(len(TASKS))[TASKS.index(task)], np.zeros(3)]
    return np.concatenate([own, *about_target, *about_goal, *rest]).astype(np.float32)
