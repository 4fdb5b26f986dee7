"""Turn how far a policy wants its gripper open, 0 closed .. 1 open, into what an environment's gripper is told.

    opening         the same number                                         tabletop_panda
    open_positive   +1 open, -1 closed, nothing between                     widowx, whose gripper is told a position
    close_relative  > 0 closes, < 0 opens, 0 stays; repeated                google_robot, whose gripper is told a change

The wrong sign or a change told once only where it takes ten steps are the usual reasons for a success rate near 0.
"""

from typing import Literal, Protocol

GripperForm = Literal["opening", "open_positive", "close_relative"]
HALF_OPEN = 0.5


class Gripper(Protocol):
    """A gripper of one episode."""

    def reset(self) -> None: ...

    def command(self, opening: float) -> float: ...

    def hold(self) -> float:
        """Give the command that goes on with what it is doing, for a step without a policy's answer."""
        ...


class OpeningGripper:
    """Told its opening; holds the last one, and is open at the start."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._last = 1.0

    def command(self, opening: float) -> float:
        self._last = opening
        return self._last

    def hold(self) -> float:
        return self._last


class OpenPositiveGripper(OpeningGripper):
    """Told +1 for more than half open and -1 otherwise."""

    def command(self, opening: float) -> float:
        return super().command(1.0 if opening > HALF_OPEN else -1.0)


class CloseRelativeGripper:
    """Told a change, which it repeats for `sticky_steps` steps, as it moves only part of its way in one.

    A change is a step of more than a half from the opening at which the last change began, so that one made of small
    steps counts too. While a change is being repeated nothing else is listened to.
    """

    def __init__(self, sticky_steps: int) -> None:
        self.sticky_steps = sticky_steps
        self.reset()

    def reset(self) -> None:
        self._settled: float | None = None
        self._change = 0.0
        self._left = 0

    def command(self, opening: float) -> float:
        if self._settled is None:
            self._settled = opening
        change = self._settled - opening
        if self._left == 0 and abs(change) > HALF_OPEN:
            self._settled, self._change, self._left = opening, change, self.sticky_steps
        return self.hold() if self._left else change

    def hold(self) -> float:
        if self._left == 0:
            return 0.0
        self._left -= 1
        return self._change


def make_gripper(form: GripperForm, sticky_steps: int) -> Gripper:
    if form == "close_relative":
        return CloseRelativeGripper(sticky_steps)
    return OpenPositiveGripper() if form == "open_positive" else OpeningGripper()
