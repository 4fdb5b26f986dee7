"""Carry out a policy's chunks in one episode, one raw action of an environment's controller at a time.

Per step: merge what the chunks in force say of it (ensemble.py), turn its rotation into a rotation vector
(rotation.py), scale the motion, and translate the gripper (gripper.py). The embodiment's config says which.

    execution = Execution(EmbodimentConfig.preset("widowx"), policy.spec.rotation_form)
    execution.reset()                            # once per episode
    if execution.must_look():                    # the chunk is used up, or every step is planned anew
        execution.take(chunk.actions)
    env.step(execution.next_action())
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from st4vla.platform.contracts import RotationForm
from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.embodiment import EmbodimentConfig
from st4vla.platform.policy.ensemble import ensemble
from st4vla.platform.policy.gripper import make_gripper
from st4vla.platform.policy.rotation import as_rotation_vector

ARM_WIDTH, GRIPPER = 7, 6


@dataclass
class _InForce:
    """A chunk [T,A] and how many of its steps are over."""

    actions: np.ndarray
    over: int = 0


class Execution:
    """The way from chunks to raw actions in one episode; remembers chunks in force and what the gripper does."""

    def __init__(self, config: EmbodimentConfig, rotation_form: RotationForm = "rotation_vector") -> None:
        self.config = config
        self.rotation_form: RotationForm = rotation_form
        self._gripper = make_gripper(config.gripper, config.sticky_steps)
        self._chunks: deque[_InForce] = deque(maxlen=config.ensemble_horizon)

    def reset(self) -> None:
        """Begin an episode: forget every chunk and what the gripper did."""
        self._chunks.clear()
        self._gripper.reset()

    def forget_chunks(self) -> None:
        """Ask for a new look under a changed instruction; the gripper goes on as it was."""
        self._chunks.clear()

    def must_look(self) -> bool:
        """Say whether the next action needs a new chunk."""
        if not self._chunks:
            return True
        newest = self._chunks[-1]
        return newest.over >= min(self.config.execute or len(newest.actions), len(newest.actions))

    def take(self, actions: np.ndarray, late_steps: int = 0) -> None:
        """Put a chunk [T,A] in force; its first action was for the step `late_steps` before the next one."""
        self._chunks.append(_InForce(np.asarray(actions), late_steps))

    def next_action(self) -> np.ndarray:
        """Give the raw action [A] of the next step, float32; a chunk goes on past its look where none has come.

        Raises:
            PolicyError: no chunk in force reaches so far.
        """
        reaching = [chunk.actions[chunk.over] for chunk in self._chunks if chunk.over < len(chunk.actions)]
        if not reaching:
            raise PolicyError("No chunk is in force for this step; show the policy a new frame first.")
        merged = reaching[-1] if len(reaching) == 1 else ensemble(reaching, self.config.ensemble_alpha)
        for chunk in self._chunks:
            chunk.over += 1
        return self._raw(merged)

    def hold_action(self) -> np.ndarray:
        """Give the raw action [7] that keeps the arm where it is, for a step without a policy's answer."""
        held = np.zeros(ARM_WIDTH, np.float32)
        held[GRIPPER] = self._gripper.hold()
        return held

    def _raw(self, action: np.ndarray) -> np.ndarray:
        if len(action) != ARM_WIDTH:
            return np.array(action, np.float32)
        raw = np.array(as_rotation_vector(action, self.rotation_form), np.float64)
        raw[:GRIPPER] *= self.config.action_scale
        raw[GRIPPER] = self._gripper.command(float(action[GRIPPER]))
        return raw.astype(np.float32)
