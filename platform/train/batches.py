"""Make each step's batches ahead of the step, in one order that any run and any number of workers shares."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from st4vla.platform.train.config import BatchConfig

Draw = Callable[[int], Any]
Encode = Callable[[Sequence[Any]], Mapping[str, Any]]


class StepBatches:
    """Draw, encode and queue micro-batches on a thread of their own.

    Every source has an endless sequence of samples, numbered by position. A micro-batch takes the next positions of
    each source, and of these a worker takes every num_workers-th. So the cursor, which is the next position of each
    source, is all that a checkpoint needs, whatever the number of workers that goes on from it.
    """

    def __init__(
        self,
        draws: Mapping[str, Draw],
        encoders: Mapping[str, Encode],
        config: BatchConfig,
        rank: int = 0,
        num_workers: int = 1,
        cursor: Mapping[str, int] | None = None,
    ) -> None:
        """Start drawing at `cursor`; a source of batch size 0 is left out.

        Args:
            draws: by source, position -> sample; called from the thread only.
            encoders: by source, samples -> batch of CPU tensors.
        """
        config.check_divides(num_workers)
        sizes = {"robot": config.robot, "grounding": config.grounding}
        self._sizes = {name: size // config.accumulation for name, size in sizes.items() if size}
        self._draws, self._encoders = draws, encoders
        self._rank, self._num_workers = rank, num_workers
        self._cursor = {name: (cursor or {}).get(name, 0) for name in self._sizes}
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=config.prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(dict(self._cursor),), name="batches", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """Give {source: batch} of the next micro-batch; raise here what went wrong while it was made."""
        made = self._queue.get()
        if isinstance(made, BaseException):
            raise made
        self._cursor = {name: place + self._sizes[name] for name, place in self._cursor.items()}
        return made

    def cursor(self) -> dict[str, int]:
        """Give the next position of every source, counting only batches that were taken."""
        return dict(self._cursor)

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        self._thread.join()

    def _fill(self, places: dict[str, int]) -> None:
        while not self._stop.is_set():
            try:
                made: Any = {name: self._make(name, place) for name, place in places.items()}
            except BaseException as error:  # the thread's end: whoever takes the batch raises it
                made = error
            self._put(made)
            if isinstance(made, BaseException):
                return
            places = {name: place + self._sizes[name] for name, place in places.items()}

    def _make(self, name: str, place: int) -> Mapping[str, Any]:
        mine = range(place + self._rank, place + self._sizes[name], self._num_workers)
        return self._encoders[name]([self._draws[name](position) for position in mine])

    def _put(self, made: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(made, timeout=0.2)
                return
            except queue.Full:
                continue
