"""Judge the tasks: success and partial credit as pure functions of poses.

Every function takes a `Situation` of NumPy arrays or torch tensors with any leading batch dimensions "..." and gives
an `Outcome` with the same ones, so that one world on a CPU and a thousand on a GPU are judged by the same lines.
M is the number of targets: 1, or 3 for sort_three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from st4vla.envs.layout import Scene, TaskName

REACH_HEIGHT_M = 0.06  # the point to reach lies this far above the object's top
REACH_TOLERANCE_M = 0.03
PUSH_DISTANCE_M = 0.08
LIFT_HEIGHT_M = 0.08
PLACE_RADIUS_M = 0.045  # between the middles of the object and of its container, seen from above
HELD_DISTANCE_M = 0.035  # between the TCP and the middle of a held object
OPEN_FRACTION = 0.6  # a gripper opened further holds nothing

MAX_STEPS: dict[TaskName, int] = {"reach": 25, "push": 40, "pick_up": 40, "put_on": 60, "sort_three": 160}


@dataclass(frozen=True)
class Situation:
    """What the judges look at; metres, world frame.

    Attributes:
        tcp: [..., 3] between the finger tips.
        opening: [...] gripper, 0 closed .. 1 open.
        targets: [..., M, 3] middles of the objects to handle.
        half_heights: [..., M] of those objects.
        starts: [..., M, 3] where they stood when the task was given.
        start_tcp: [..., 3] where the TCP was then.
        destinations: [..., M, 3] middles of the containers they belong in (zeros without containers).
        direction: [..., 3] unit vector to push along (zeros elsewhere).
    """

    tcp: Any
    opening: Any
    targets: Any
    half_heights: Any
    starts: Any
    start_tcp: Any
    destinations: Any
    direction: Any


@dataclass(frozen=True)
class Outcome:
    """Success [...] bool, partial credit [...] 0..1, and one [...] bool per stage in the task's order."""

    success: Any
    credit: Any
    stages: tuple[Any, ...]


def _length(vector: Any) -> Any:
    return (vector * vector).sum(-1) ** 0.5


def reach_point(top: Any, half_height: Any) -> Any:
    """Give the point [..., 3] above objects whose middles are `top` [..., 3] and half heights [...]."""
    raised = top * 1.0
    raised[..., 2] = raised[..., 2] + half_height + REACH_HEIGHT_M
    return raised


def is_held(tcp: Any, opening: Any, target: Any) -> Any:
    """Tell [...] whether a gripper that is not open has the object between its fingers."""
    return (_length(tcp - target) < HELD_DISTANCE_M) & (opening < OPEN_FRACTION + 0.2)


def is_placed(situation: Situation, index: int) -> Any:
    """Tell [...] whether the target lies in its container and the gripper has let go of it."""
    offset = situation.targets[..., index, :] - situation.destinations[..., index, :]
    inside = _length(offset[..., :2]) < PLACE_RADIUS_M
    low = abs(offset[..., 2]) < situation.half_heights[..., index] + 0.035
    away = _length(situation.tcp - situation.targets[..., index, :]) > HELD_DISTANCE_M
    return inside & low & (away | (situation.opening > OPEN_FRACTION))


def judge_reach(situation: Situation) -> Outcome:
    """Reach: the TCP is within 3 cm of the point above the object."""
    point = reach_point(situation.targets[..., 0, :], situation.half_heights[..., 0])
    distance = _length(situation.tcp - point)
    before = _length(situation.start_tcp - point).clip(0.05, None)
    reached = distance < REACH_TOLERANCE_M
    credit = (1.0 - (distance - REACH_TOLERANCE_M) / before).clip(0.0, 1.0)
    return Outcome(reached, credit, (reached,))


def judge_push(situation: Situation) -> Outcome:
    """Push: the object has moved 8 cm along the named side and still stands on the table."""
    moved = situation.targets[..., 0, :] - situation.starts[..., 0, :]
    along = (moved * situation.direction).sum(-1)
    on_table = situation.targets[..., 0, 2] > -0.01
    pushed = (along >= PUSH_DISTANCE_M) & on_table
    return Outcome(pushed, (along / PUSH_DISTANCE_M).clip(0.0, 1.0), (along > 0.01, pushed))


def judge_pick_up(situation: Situation) -> Outcome:
    """Pick up: the object is held, 8 cm above where it stood."""
    held = is_held(situation.tcp, situation.opening, situation.targets[..., 0, :])
    lift = situation.targets[..., 0, 2] - situation.starts[..., 0, 2]
    lifted = held & (lift >= LIFT_HEIGHT_M)
    credit = held * (0.5 + 0.5 * (lift / LIFT_HEIGHT_M).clip(0.0, 1.0))
    return Outcome(lifted, credit, (held, lifted))


def judge_put_on(situation: Situation) -> Outcome:
    """Put on: the object lies in its container and was let go."""
    held = is_held(situation.tcp, situation.opening, situation.targets[..., 0, :])
    lifted = situation.targets[..., 0, 2] - situation.starts[..., 0, 2] > 0.03
    placed = is_placed(situation, 0)
    credit = 0.25 * held + 0.25 * (held & lifted)
    return Outcome(placed, placed * 1.0 + ~placed * credit, (held, held & lifted, placed))


def judge_sort_three(situation: Situation) -> Outcome:
    """Sort three: every object lies in its own container; credit is the share that does."""
    placed = tuple(is_placed(situation, index) for index in range(3))
    return Outcome(placed[0] & placed[1] & placed[2], (placed[0] * 1.0 + placed[1] + placed[2]) / 3.0, placed)


JUDGES: dict[TaskName, Callable[[Situation], Outcome]] = {
    "reach": judge_reach,
    "push": judge_push,
    "pick_up": judge_pick_up,
    "put_on": judge_put_on,
    "sort_three": judge_sort_three,
}


def stage_names(scene: Scene) -> tuple[str, ...]:
    """Name the stages of a scene's task, in the order of `Outcome.stages`."""
    target = scene.things[scene.targets[0]].name
    if scene.task == "sort_three":
        return tuple(f"{name} sorted" for name in scene.names(scene.targets))
    return {
        "reach": (f"{target} reached",),
        "push": (f"{target} touched", f"{target} pushed"),
        "pick_up": (f"{target} grasped", f"{target} lifted"),
        "put_on": (f"{target} grasped", f"{target} lifted", f"{target} placed"),
    }[scene.task]
