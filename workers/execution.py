"""Turn a policy's chunks into the actions a world executes, one a control step.

An executor is the piece between the two: it is told of each chunk, gives one action a step, and says when it wants
the next chunk. `ChunkExecutor` runs a chunk as it is; an embodiment whose actions need more (ensembling, a sticky
gripper, another frame) names its executor in `EXECUTORS`.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from st4vla.platform.contracts import PolicySpec


class Executor(Protocol):
    """What stands between chunks and control steps, for one episode at a time."""

    def reset(self) -> None: ...

    @property
    def spent(self) -> bool:
        """Whether the policy has to look before the next action."""
        ...

    def give(self, actions: np.ndarray) -> None:
        """Take a chunk, float32 [T,A], for the step that comes next."""
        ...

    def next(self) -> np.ndarray:
        """Give the action of this step, as the world's `step` takes it."""
        ...


class ChunkExecutor:
    """Execute the first `execute` actions of each chunk, all of them if it is None."""

    def __init__(self, execute: int | None = None):
        self._execute = execute
        self.reset()

    def reset(self) -> None:
        """Forget the last episode's chunk."""
        self._actions = np.zeros((0, 0), np.float32)
        self._cursor = 0

    @property
    def spent(self) -> bool:
        """Whether the part of the chunk that is executed is used up."""
        return self._cursor >= len(self._actions)

    def give(self, actions: np.ndarray) -> None:
        """Go on with another chunk."""
        self._actions, self._cursor = actions[: self._execute], 0

    def next(self) -> np.ndarray:
        """Give the chunk's next action."""
        action = self._actions[self._cursor]
        self._cursor += 1
        return action


MakeExecutor = Callable[[PolicySpec, int | None], Executor]


def make_executor(embodiment: str, spec: PolicySpec, execute: int | None) -> Executor:
    """Make the executor of an embodiment; those without an entry take a policy's actions as they are."""
    make = EXECUTORS.get(embodiment)
    return ChunkExecutor(execute) if make is None else make(spec, execute)


EXECUTORS: dict[str, MakeExecutor] = {}
