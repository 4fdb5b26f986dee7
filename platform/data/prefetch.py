"""Run an iterator ahead of its consumer in a background thread."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

# How often a blocked thread looks whether it should stop.
POLL_S = 0.1


class Prefetch:
    """Hand on the items of `items`, at most `depth` of them made ahead.

    An error in making one is raised to the consumer, after the items before it.
    `close` stops the thread and waits for it; a consumer that stops early must call it.
    """

    def __init__(self, items: Iterator[Any], depth: int) -> None:
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="st4vla-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        """Give the items in order."""
        while True:
            kind, value = self._queue.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return

    def close(self) -> None:
        """Stop making items."""
        self._stop.set()
        self._thread.join()

    def _run(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except Exception as error:  # handed to the consumer, which raises it
            self._put(("error", error))

    def _put(self, entry: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
