"""Keep the actions that are still to be executed, put a new chunk in their place, and know how late chunks come.

Everything counts control steps. The new chunk's row 0 belongs to the step at which its observation was taken, so on
arrival as many rows are dropped as actions were executed since: none from a standstill, and never more than were
really executed, however long the answer took.
"""

from collections import deque

import numpy as np


class ChunkQueue:
    """One robot's actions: a chunk and how far it has been executed."""

    def __init__(self) -> None:
        self._rows = np.zeros((0, 0))
        self._cursor = 0
        self.executed = 0

    def __len__(self) -> int:
        """Count the actions left."""
        return len(self._rows) - self._cursor

    @property
    def cursor(self) -> int:
        """Rows of the present chunk that are passed: executed or dropped."""
        return self._cursor

    @property
    def horizon(self) -> int:
        """Rows of the present chunk, 0 before the first."""
        return len(self._rows)

    def remaining(self) -> np.ndarray:
        """Give the actions left, float32 [K,A]."""
        return self._rows[self._cursor :].astype(np.float32)

    def replace(self, rows: np.ndarray, executed_when_seen: int) -> int:
        """Put a new chunk in place of what is left and give the number of rows dropped.

        Args:
            executed_when_seen: `executed` at the step of the new chunk's observation.
        """
        dropped = min(self.executed - executed_when_seen, len(rows))
        self._rows, self._cursor = rows, dropped
        return dropped

    def pop(self) -> np.ndarray:
        """Give the next action [A]; there must be one."""
        row = self._rows[self._cursor]
        self._cursor += 1
        self.executed += 1
        return row

    def clear(self, unused: int = 0) -> None:
        """Drop what is left; what was passed of the chunk still counts.

        Args:
            unused: actions given last that were not executed after all.
        """
        self._cursor -= unused
        self.executed -= unused
        self._rows = self._rows[: self._cursor]


class DelayEstimate:
    """Foresee how many control steps an answer takes: the most among the last few, those of a warm-up left out.

    Args:
        window: how many answers count.
        warmup: how many are left out after every (re)connection, when a server compiles, loads or fills its caches.
        first: what is foreseen before anything was measured.
    """

    def __init__(self, window: int = 8, warmup: int = 1, first: int = 1) -> None:
        self._seen: deque[int] = deque(maxlen=window)
        self._warmup = warmup
        self._first = first
        self._left_out = 0

    @property
    def steps(self) -> int:
        """The estimate."""
        return max(self._seen, default=self._first)

    def add(self, steps: int) -> None:
        """Take in one answer."""
        if self._left_out < self._warmup:
            self._left_out += 1
            return
        self._seen.append(steps)

    def reconnected(self) -> None:
        """Expect a warm-up again; what was measured before still counts."""
        self._left_out = 0


def look_at(horizon: int, execute: int, delay: int) -> int:
    """Say at which row of a chunk the next one is asked for: d <= s <= H - d, as near to `execute` as that allows.

    A delay of more than half a chunk cannot be bridged: the next chunk is then asked for at the middle, and the robot
    will hold.
    """
    bridged = min(delay, horizon // 2)
    return max(bridged, min(execute, horizon - bridged))
