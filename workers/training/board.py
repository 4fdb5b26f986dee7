"""Bring news from training's workers to the driver.

These classes live in processes of Ray's that do nothing else, so this module imports no torch.
"""

import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.train import UserCallback

from st4vla.platform.errors import St4vlaError

Row = dict[str, float]
POLL_S = 0.5


class Board:
    """Hold rows of progress until the driver takes them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def put(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)

    def take(self) -> list[Row]:
        """Give the rows since the last time."""
        rows, self.rows = self.rows, []
        return rows


class StopOnOwnErrors(UserCallback):
    """End the run on an error that would only come again: a bad setting, broken data, a full disk, a lost loss."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first error of our own kind."""
        for error in map(original, worker_exceptions.values()):
            if isinstance(error, St4vlaError):
                raise error


def original(error: BaseException) -> BaseException:
    """Give what the worker raised, without what Ray Train lays around it."""
    return getattr(error, "_base_exc", error)


class Listener:
    """Pass rows from the board on while the driver waits in `fit`."""

    def __init__(self, board: Any, tell: Callable[[Row], None]) -> None:
        self.board, self.tell = board, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(POLL_S)
            for row in ray.get(self.board.take.remote()):
                self.tell(row)
