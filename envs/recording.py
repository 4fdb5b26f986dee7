"""Pack one moment of a world into one small float32 row, and read it again.

[target, destination, sub-goal]   indices; things of the scene, -1 for no destination; `focus.SUB_GOALS`
tcp [3]                           m, world frame
qpos [9]                          seven joints, two fingers
poses [K,7]                       of the scene's things, position and quaternion wxyz, world frame
"""

from dataclasses import dataclass

import numpy as np

from st4vla.envs.focus import SUB_GOALS, SubGoal

HEAD, NUM_JOINTS = 6, 9


@dataclass(frozen=True)
class View:
    """One recorded moment, see the module's table."""

    target: int
    destination: int
    sub_goal: SubGoal
    tcp: np.ndarray
    qpos: np.ndarray
    poses: np.ndarray


def pack(view: View) -> np.ndarray:
    """Pack a moment: float32 [6 + 9 + 7 K]."""
    head = [view.target, view.destination, SUB_GOALS.index(view.sub_goal), *view.tcp]
    return np.concatenate([head, view.qpos, view.poses.ravel()]).astype(np.float32)


def unpack(row: np.ndarray) -> View:
    """Read a moment back."""
    return View(
        target=int(row[0]),
        destination=int(row[1]),
        sub_goal=SUB_GOALS[int(row[2])],
        tcp=row[3:HEAD],
        qpos=row[HEAD : HEAD + NUM_JOINTS],
        poses=row[HEAD + NUM_JOINTS :].reshape(-1, 7),
    )
