"""Write checkpoints behind the training step: copy what must be kept at once, write the copy on another thread.

    begin(folder)   in the loop: copies weights and optimiser state, gives the function that writes them
    finish()        behind the loop: that function; it touches nothing training still changes

At most one checkpoint is being written; the next one waits for it, so memory holds one copy at a time.
"""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

# A loop that failed meanwhile never says that it goes on, and must not keep the process.
PATIENCE_S = 60.0
Finish = Callable[[], object]
Begin = Callable[[Path], Finish]


def copied(value: Any) -> Any:
    """Copy a nested state to host memory, so that later steps leave it as it is; a view becomes as small as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return copy.deepcopy(value)


class Background:
    """Run one function at a time on a thread of its own; what it raises is raised by the next call here."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[object] | None = None

    def start(self, work: Finish) -> None:
        """Wait for the work before it, then run this beside the caller."""
        self.wait()
        self._running = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until nothing runs."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait, and let go of the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


class Stopwatch:
    """Tell how long a checkpoint held up the loop, and how long it took altogether."""

    def __init__(self, tell: Callable[[dict[str, float]], None], step: int, clock: Callable[[], float]) -> None:
        self._tell, self._step, self._clock = tell, step, clock
        self._began = clock()
        self._loop_went_on = threading.Event()
        self._blocked_s = 0.0

    def go_on(self) -> None:
        """Note that the loop goes on."""
        self._blocked_s = self._clock() - self._began
        self._loop_went_on.set()

    def written(self) -> None:
        """Note that the checkpoint is written, and tell both times once the loop is known to have gone on."""
        whole_s = self._clock() - self._began
        self._loop_went_on.wait(PATIENCE_S)
        row = {"checkpoint/blocked_s": self._blocked_s, "checkpoint/whole_s": max(whole_s, self._blocked_s)}
        self._tell({"step": float(self._step), **row})
