"""Lay out the privileged state of many worlds at once, number for number as `states.privileged` does for one."""

import numpy as np

from st4vla.envs import geometry, layout, tasks
from st4vla.envs.batch import Moment
from st4vla.envs.states import BASE, GOAL_M
from st4vla.envs.states import PRIVILEGED_DIM as STATE_DIM

# What makes each number of the state about one: the scales are fixed, so a policy needs no running statistics.
MEAN = np.zeros(STATE_DIM, dtype=np.float32)
MEAN[:7] = [0.55, 0.0, 0.12, np.pi, 0.0, 0.0, 0.5]
MEAN[[12, 23]] = [0.022, 0.5]
SCALE = np.ones(STATE_DIM, dtype=np.float32)
SCALE[:7] = [0.15, 0.15, 0.1, 0.5, 0.5, 0.5, 0.5]
SCALE[[7, 8, 9, 13, 14, 15, 16, 17, 18]] = 0.1
SCALE[[12, 23]] = [0.01, 0.5]


def current_target(task: str, situation: tasks.Situation) -> np.ndarray:
    """Say which target comes next: [N] indices, 0 unless the task has three; what is held comes first."""
    if task != "sort_three":
        return np.zeros(len(situation.tcp), dtype=np.int64)
    waiting = ~np.stack([tasks.is_placed(situation, index) for index in range(3)], axis=-1)
    held = tasks.is_held(situation.tcp[:, None], situation.opening[:, None], situation.targets)
    order = 2.0 * (waiting & held) + waiting
    return np.where(waiting.any(-1), order.argmax(-1), 2)


def goal(task: str, situation: tasks.Situation, which: np.ndarray) -> np.ndarray:
    """Give where the target should go, or the TCP for reach: [N,3]."""
    rows = np.arange(len(which))
    if task == "reach":
        return tasks.reach_point(situation.targets[rows, which], situation.half_heights[rows, which])
    if task == "push":
        return situation.starts[rows, which] + GOAL_M * situation.direction
    if task == "pick_up":
        return situation.starts[rows, which] + np.array([0.0, 0.0, GOAL_M])
    return situation.destinations[rows, which]


def privileged_state(task: str, moment: Moment, time_left: np.ndarray) -> np.ndarray:
    """Give float32 [N,32]; `time_left` [N] is the share of control steps left."""
    situation = moment.situation
    which = current_target(task, situation)
    rows = np.arange(len(which))
    target, place = situation.targets[rows, which], goal(task, situation, which)
    yaw = geometry.yaws_of(moment.target_turns[rows, which])
    held = tasks.is_held(situation.tcp, situation.opening, target)
    state = np.zeros((len(rows), STATE_DIM), dtype=np.float32)
    state[:, :3], state[:, 3:6] = situation.tcp - BASE, geometry.tool_rotation_vector(moment.tcp_turn)
    state[:, 6], state[:, 7:10] = situation.opening, target - situation.tcp
    state[:, 10], state[:, 11] = np.sin(2 * yaw), np.cos(2 * yaw)
    state[:, 12] = situation.half_heights[rows, which]
    state[:, 13:16], state[:, 16:19] = place - target, place - situation.tcp
    state[:, 19], state[:, 20:23], state[:, 23] = held, situation.direction, time_left
    state[:, 24 + layout.TASKS.index(task)] = 1.0  # type: ignore[arg-type]
    return state
