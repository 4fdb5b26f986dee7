"""A simulated robot in plain numpy: a point that goes to a goal, seen by a camera; for tests and first steps.

Its action is an arm's, [dx, dy, dz] m, a rotation vector that it has no use for, and a gripper; its state is the
position, zeros for the rotation, and the gripper. The picture shows the goal as a green and the point as a red square.
"""

from dataclasses import dataclass, field

import numpy as np

from st4vla.platform.contracts import Observation

SPAN_M = 0.5


@dataclass
class PointRobot:
    """A `client.Robot`; counts what it was told."""

    goal: tuple[float, float, float] = (0.2, -0.1, 0.1)
    size: int = 32
    instruction: str = "go to the green square"
    position: np.ndarray = field(default_factory=lambda: np.zeros(3))
    gripper: float = 1.0
    applied: list[np.ndarray] = field(default_factory=list)
    holds: int = 0
    looks: int = 0

    def observe(self) -> Observation:
        """Take a picture and read the state."""
        self.looks += 1
        image = np.zeros((self.size, self.size, 3), np.uint8)
        for channel, place in ((1, self.goal), (0, self.position)):
            column, row = ((np.clip(place[:2], -SPAN_M, SPAN_M) / SPAN_M + 1) / 2 * (self.size - 2)).astype(int)
            image[row : row + 2, column : column + 2, channel] = 255
        state = np.concatenate([self.position, np.zeros(3), [self.gripper]]).astype(np.float32)
        return Observation({"camera": image}, state, self.instruction)

    def apply(self, action: np.ndarray) -> None:
        """Move by the action."""
        self.applied.append(np.array(action))
        self.position = self.position + action[:3]
        self.gripper = float(action[6])

    def hold(self) -> None:
        """Stay."""
        self.holds += 1

    @property
    def distance(self) -> float:
        """Metres to the goal."""
        return float(np.linalg.norm(np.subtract(self.goal, self.position)))
