"""Say what an episode is about at one moment: which object, where to, and the next sub-goal in words.

Judged from poses alone, so that it is the same for an expert, a policy or a replay.
"""

from typing import Literal, NamedTuple

import numpy as np

from st4vla.envs import tasks
from st4vla.envs.instructions import preposition, side_phrase
from st4vla.envs.layout import Scene

SubGoal = Literal["move above", "move beside", "push", "grasp", "lift", "place"]
SUB_GOALS: tuple[SubGoal, ...] = ("move above", "move beside", "push", "grasp", "lift", "place")
BESIDE_M = 0.05  # the TCP is lower than this above the table and behind the object when it pushes


class Focus(NamedTuple):
    """Index of the current target among the scene's targets, and the sub-goal."""

    which: int
    sub_goal: SubGoal


def focus(scene: Scene, situation: tasks.Situation) -> Focus:
    """Find what comes next, for one unbatched situation."""
    which = 0
    if scene.task == "sort_three":
        waiting = [index for index in range(3) if not tasks.is_placed(situation, index)]
        held = [index for index in waiting if tasks.is_held(situation.tcp, situation.opening, situation.targets[index])]
        which = (held or waiting or [2])[0]
    return Focus(which, _sub_goal(scene, situation, which))


def _sub_goal(scene: Scene, situation: tasks.Situation, which: int) -> SubGoal:
    target = situation.targets[which]
    if scene.task == "reach":
        return "move above"
    if scene.task == "push":
        behind = float(np.dot(situation.tcp - target, situation.direction)) < 0.0
        return "push" if behind and situation.tcp[2] < BESIDE_M else "move beside"
    if scene.destinations and tasks.is_placed(situation, which):
        return "place"
    if not tasks.is_held(situation.tcp, situation.opening, target):
        return "grasp"
    return "lift" if scene.task == "pick_up" else "place"


def describe(sub_goal: SubGoal, target: str, destination: str, side: str) -> str:
    """Put a sub-goal into words, e.g. "grasp the red cube"."""
    if sub_goal == "push":
        return f"push the {target} {side_phrase(side)}"
    if sub_goal == "place":
        return f"put the {target} {preposition(destination)} the {destination}"
    return f"{sub_goal} the {target}"
