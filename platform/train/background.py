"""Write checkpoints behind the training step: copy what must be kept at once, write the copy on another thread.

    begin(folder)   in the loop: copies weights and optimiser state, gives the function that writes them
    finish()        behind the loop: that function; it touches nothing training still changes

At most one checkpoint is being written; the next one waits for it, so memory holds one copy, the same pages each time.
"""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

# A loop that failed meanwhile never says that it goes on, and must not keep the process.
PATIENCE_S = 60.0
Finish = Callable[[], object]
Begin = Callable[[Path], Finish]


class Snapshot:
    """Copy nested states to host memory that is used again by the next copy: fresh pages cost more than the copying.

    What is taken is copied by `flush`, all at once; until then nobody may write to it. A copy is good from `settle`
    until the next `take` of the same place. Between two calls of `settle` a tensor is copied once, however often it is
    taken, unless it was written to in between. On a GPU the memory is pinned and all copies run as one queue.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], torch.Tensor] = {}
        # By address and version; what was taken is held, lest another tensor be given its address.
        self._taken: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def take(self, value: Any, *place: Any) -> Any:
        """Give a state's copy, which `flush` fills; a view becomes as small as it is."""
        if isinstance(value, torch.Tensor):
            few = value.numel() == 1 and value.device.type == "cpu"  # an optimiser's step counters: no page is spared
            return value.detach().clone() if few else self._copy(value.detach(), place)
        if isinstance(value, dict):
            return type(value)((key, self.take(item, *place, key)) for key, item in value.items())
        if isinstance(value, list | tuple):
            return type(value)(self.take(item, *place, number) for number, item in enumerate(value))
        return copy.deepcopy(value)

    def flush(self) -> None:
        """Begin to copy what was taken; on a CPU it is copied when this returns."""
        if self._waiting:
            values, kept = zip(*self._waiting, strict=True)
            torch._foreach_copy_(kept, values, non_blocking=True)  # pyright: ignore[reportPrivateImportUsage]
        self._waiting = []

    def settle(self) -> None:
        """Wait until every copy is whole, and let go of what was copied."""
        self.flush()
        for device in {value.device for value, _ in self._taken.values() if value.is_cuda}:
            torch.cuda.synchronize(device)
        self._taken.clear()

    def _copy(self, value: torch.Tensor, place: tuple[Any, ...]) -> torch.Tensor:
        key = (value.data_ptr(), value._version, value.dtype, value.shape, value.stride(), value.device)
        if value.numel() and key in self._taken:
            return self._taken[key][1]
        kept = self._kept.get(place)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            kept = self._kept[place] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        self._taken[key] = value, kept
        self._waiting.append((value, kept))
        return kept


def copied(value: Any) -> Any:
    """Copy a nested state to host memory of its own."""
    snapshot = Snapshot()
    kept = snapshot.take(value)
    snapshot.settle()
    return kept


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

    def leave(self) -> None:
        """Give what runs a while to end, and let go of the thread: for a loop that failed with an error of its own."""
        if self._running is not None:
            wait([self._running], PATIENCE_S)
        self._thread.shutdown(wait=False)


class Stopwatch:
    """Tell how long a checkpoint held up the loop, and how long it took until it was stored.

    Either end may come first, on a thread of its own; both times are told at the second.
    """

    def __init__(self, tell: Callable[[dict[str, float]], None], step: int, clock: Callable[[], float]) -> None:
        self._tell, self._step, self._clock = tell, step, clock
        self._began = clock()
        self._seconds: dict[str, float] = {}
        self._one_end_at_a_time = threading.Lock()

    def go_on(self) -> None:
        """Note that the loop goes on."""
        self._end("checkpoint/blocked_s")

    def stands(self) -> None:
        """Note that the checkpoint is stored."""
        self._end("checkpoint/whole_s")

    def _end(self, name: str) -> None:
        with self._one_end_at_a_time:
            self._seconds[name] = self._clock() - self._began
            if len(self._seconds) == 2:
                self._seconds["checkpoint/whole_s"] = max(self._seconds.values())
                self._tell({"step": float(self._step), **self._seconds})
