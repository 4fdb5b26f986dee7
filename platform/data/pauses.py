"""Find the frames in which a recorded robot rests, so that training need not start from them.

After the public code of InternVLA-M1, which leaves out frames whose action moves the tool by less than 0.5 mm while the
gripper keeps its command. Here a frame whose action turns the tool is kept as well, unless `rotation_rad` is infinite.
A chunk that starts earlier still runs through a pause as it was recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from st4vla.platform.data.parts import Part, layout
from st4vla.platform.errors import ConfigError, DataError

# What a recording's actions are: end-effector poses in metres and rad in the robot base frame, or joints in rad.
RecordedForm = Literal["delta_end_effector", "absolute_end_effector", "delta_joints", "absolute_joints"]
ARM_WIDTH = 7


@dataclass(frozen=True)
class PauseConfig:
    """From which motion on a frame is no pause.

    Attributes:
        translation_m: distance of the tool in one step, in metres.
        rotation_rad: its angle, in rad; infinity lets a turn on the spot count as a pause, as published.
        joints_rad: the largest change of one joint, in rad.
    """

    translation_m: float = 5e-4
    rotation_rad: float = 5e-3
    joints_rad: float = 1e-3

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("translation_m", "rotation_rad", "joints_rad"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"drop_pauses.{name} is {getattr(self, name)}; expected a number above 0.")


def moving_frames(actions: np.ndarray, parts: Sequence[Part], form: str, config: PauseConfig) -> np.ndarray:
    """Say of each action [F,A] of one episode whether it moves the robot or its gripper: bool [F].

    Args:
        form: a `RecordedForm`; "" is taken for deltas.

    Raises:
        DataError: no part of the action is known to be a position, a rotation or joints.
    """
    limits = {"position": config.translation_m, "rotation": config.rotation_rad, "joint": config.joints_rad}
    moving = np.zeros(len(actions), bool)
    known = False
    for name, values in _named(actions, parts):
        steps = np.abs(np.diff(values, axis=0, prepend=values[:1]))
        if "gripper" in name:
            moving |= (steps > 1e-6).any(1)
        elif sort := next((sort for sort in limits if sort in name), ""):
            motion = steps if form.startswith("absolute") else np.abs(values)
            size = motion.max(1) if sort == "joint" else np.linalg.norm(motion, axis=1)
            moving |= size > limits[sort]
            known = True
    if not known:
        names = ", ".join(part.name for part in parts)
        raise DataError(
            f"drop_pauses needs to know what moves, and the action's parts are called {names}; name them with the "
            "option parts, e.g. {action: {position: {start: 0, end: 3}, gripper: {start: 6, end: 7}}}."
        )
    return moving


def _named(actions: np.ndarray, parts: Sequence[Part]) -> list[tuple[str, np.ndarray]]:
    if [part.name for part in parts] in (["action"], ["all"]) and actions.shape[1] == ARM_WIDTH:
        return [("position", actions[:, :3]), ("rotation", actions[:, 3:6]), ("gripper", actions[:, 6:])]
    return [(part.name, actions[:, start:end]) for part, start, end in layout(parts)]
