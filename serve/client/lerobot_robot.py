"""Drive a robot that has LeRobot's methods, `get_observation` and `send_action`, as a `client.Robot`.

Nothing of LeRobot is imported: whatever has the two methods will do. Its observation is a flat map, "shoulder_pan.pos"
a number and "front" a picture uint8 [H,W,3]; its action a map of the same joint names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError


class LeRobotDevice(Protocol):
    """The part of LeRobot's `Robot` that is used."""

    def get_observation(self) -> Mapping[str, Any]: ...

    def send_action(self, action: dict[str, float]) -> Any: ...


class LeRobotRobot:
    """A device, the joints it is driven by, and what it is to do; absolute joint positions in the device's own unit.

    Args:
        joints: keys of the joints, in the order of the policy's actions and state; a device of LeRobot lists them as
            `list(device.action_features)`.
        cameras: {camera of the policy: key of the picture}.
    """

    def __init__(
        self, device: LeRobotDevice, joints: Sequence[str], cameras: Mapping[str, str], instruction: str
    ) -> None:
        self.device = device
        self.joints = tuple(joints)
        self.cameras = dict(cameras)
        self.instruction = instruction
        self._held: np.ndarray | None = None

    def observe(self) -> Observation:
        """Read pictures and joints.

        Raises:
            ConfigError: the device gives no entry of that name.
        """
        seen = self.device.get_observation()
        if missing := [key for key in (*self.joints, *self.cameras.values()) if key not in seen]:
            raise ConfigError(f"the robot's observation has no {missing[0]!r}; it has {', '.join(map(str, seen))}.")
        state = np.array([float(seen[joint]) for joint in self.joints], np.float32)
        if self._held is None:
            self._held = state
        images = {camera: np.asarray(seen[key]) for camera, key in self.cameras.items()}
        return Observation(images, state, self.instruction)

    def apply(self, action: np.ndarray) -> None:
        """Send the joints where the action says."""
        self._held = action
        self.device.send_action(dict(zip(self.joints, (float(value) for value in action), strict=True)))

    def hold(self) -> None:
        """Send the joints where they were sent last; before that, to where they were found."""
        if self._held is None:
            self.observe()
        assert self._held is not None
        self.apply(self._held)
