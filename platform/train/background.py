"""Write checkpoints behind the training step: take what must be kept, copy and write it on another thread.

    begin(folder)   in the loop: takes weights and optimiser state, gives the function that writes them
    finish()        behind the loop: that function; it copies what was taken, then writes the copy

Weights and optimiser state rest from one update to the next, so the copying runs beside the next step's forward and
backward, and only its update waits for it (CheckFreq, Mohan et al. 2021, calls this pipelined snapshots). At most one
checkpoint is being written; the next one waits for it, so memory holds one copy, the same pages each time.
"""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
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

    What is taken is copied by `flush`, all at once; until then nobody may write to it. Whoever comes first copies, on
    whatever thread, and the others wait for it. A copy is good from `settle` until the next `take` of the same place.
    Between two calls of `settle` a tensor is copied once, however often it is taken, unless it was written to in
    between. On a GPU the memory is pinned and all copies run as one queue, in the order of the device's other work.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], torch.Tensor] = {}
        # By address and version; what was taken is held, lest another tensor be given its address.
        self._taken: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._one_copies = threading.Lock()

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
        with self._one_copies:
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

    The loop may be held up more than once, until it says `go_on`. Either end may come first, on a thread of its own;
    both times are told at the second.
    """

    def __init__(self, tell: Callable[[dict[str, float]], None], step: int, clock: Callable[[], float]) -> None:
        self._tell, self._step, self._clock = tell, step, clock
        self._began = clock()
        self._held_up = 0.0
        self._seconds: dict[str, float] = {}
        self._one_end_at_a_time = threading.Lock()

    @contextlib.contextmanager
    def holds_up(self) -> Iterator[None]:
        """Count what is done within as time that the loop was held up."""
        began = self._clock()
        yield
        self._held_up += self._clock() - began

    def go_on(self) -> None:
        """Note that nothing holds the loop up any more."""
        self._end("checkpoint/blocked_s", self._held_up)

    def stands(self) -> None:
        """Note that the checkpoint is stored."""
        self._end("checkpoint/whole_s", self._clock() - self._began)

    def _end(self, name: str, seconds: float) -> None:
        with self._one_end_at_a_time:
            self._seconds[name] = seconds
            if len(self._seconds) == 2:
                self._seconds["checkpoint/whole_s"] = max(self._seconds.values())
                self._tell({"step": float(self._step), **self._seconds})
