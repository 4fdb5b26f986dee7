"""Turn a policy's chunks into the actions a world executes, one a control step.

An executor is the piece between the two: it is told of each chunk, gives one action a step, says when it wants the
next chunk, and what the robot does while it waits. `ChunkExecutor` runs a chunk as it is; a world that names an
embodiment, whose controller needs more (ensembling, a sticky gripper, another sign), gets the executor of that name.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from st4vla.platform.contracts import PolicySpec
from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.embodiment import EmbodimentConfig
from st4vla.platform.policy.execution import Execution


class Executor(Protocol):
    """What stands between chunks and control steps, for one episode at a time."""

    def reset(self) -> None: ...

    def forget_chunks(self) -> None:
        """Drop what is left of the chunks, as something else is asked for now."""
        ...

    def must_look(self) -> bool:
        """Say whether the policy has to look before the next action."""
        ...

    def take(self, actions: np.ndarray) -> None:
        """Take a chunk, float32 [T,A], for the step that comes next."""
        ...

    def next_action(self) -> np.ndarray:
        """Give the action of this step, as the world's `step` takes it."""
        ...

    def hold_action(self) -> np.ndarray:
        """Give the action of a step in which the policy's answer is still awaited."""
        ...


class ChunkExecutor:
    """Execute the first `execute` actions of each chunk, all of them if it is None; `hold` gives the hold action."""

    def __init__(self, hold: Callable[[], np.ndarray], execute: int | None = None):
        self.hold_action = hold
        self._execute = execute
        self.reset()

    def reset(self) -> None:
        """Forget the last episode's chunk."""
        self._actions = np.zeros((0, 0), np.float32)
        self._cursor = 0

    forget_chunks = reset

    def must_look(self) -> bool:
        """Say whether the part of the chunk that is executed is used up."""
        return self._cursor >= len(self._actions)

    def take(self, actions: np.ndarray) -> None:
        """Go on with another chunk."""
        self._actions, self._cursor = actions[: self._execute], 0

    def next_action(self) -> np.ndarray:
        """Give the chunk's next action."""
        action = self._actions[self._cursor]
        self._cursor += 1
        return action


def make_executor(
    embodiment: str, hold: Callable[[], np.ndarray], spec: PolicySpec, execute: int | None = None
) -> Executor:
    """Make the executor of an embodiment; "" takes a policy's actions as they are.

    Raises:
        ConfigError: nobody has said how that robot is driven.
    """
    if not embodiment:
        return ChunkExecutor(hold, execute)
    if embodiment not in EXECUTORS:
        raise ConfigError(
            f"The world's robot is {embodiment!r}, and nothing says how chunks drive it; add it to EXECUTORS in "
            "workers/rollout/execution.py."
        )
    return EXECUTORS[embodiment](spec, execute)


def _execution(embodiment: str) -> Callable[[PolicySpec, int | None], Executor]:
    """Give the maker of a packaged embodiment's execution; `execute` overrides its own."""

    def make(spec: PolicySpec, execute: int | None) -> Executor:
        config = EmbodimentConfig.preset(embodiment)
        return Execution(config if execute is None else replace(config, execute=execute), spec.rotation_form)

    return make


EXECUTORS = {name: _execution(name) for name in ("google_robot", "widowx")}
