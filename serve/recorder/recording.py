"""Record every served session as a LeRobot dataset, off the path of the answers.

    answer -> Recorder (a queue, bounded in bytes) -> writer thread -> spool file -> shelf process -> dataset

The answering thread only appends to the queue. A frame counts as accepted once it is in its spool file; from there
it outlives the replica, the shelf's process and, `sync_s` later, the machine. See `tapes.py` for when an episode
begins and ends and what is cut, `recorder_shelf` for how a recording becomes an episode.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from st4vla.platform.data.disk import refused_by_disk
from st4vla.serve.events import Ended, Event, Served
from st4vla.serve.recorder.child import ShelfProcess
from st4vla.serve.recorder.settings import MIB, RecorderConfig
from st4vla.serve.recorder.shelf import own
from st4vla.serve.recorder.tapes import Counts, Key, Report, Tapes

log = logging.getLogger(__name__)
# What an event costs in the queue beside its arrays, about.
EVENT_BYTES = 2048


@dataclass(frozen=True)
class _Cut:
    """Stands in the queue where frames of a session are missing."""

    key: Key


class Recorder:
    """An observer that records; it owns the writer thread and the shelf's process.

    When the replica dies, the recordings it was making are finished by another replica's shelf, or by the next recorder
    that is started on the folder; only what was still in the queue, for which the disk had no time yet, is gone.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, config: RecorderConfig, report: Report = lambda trouble: None) -> None:
        self.config = config
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._held = ExitStack()
        with refused_by_disk(config.spool):
            folder = self._held.enter_context(own(config.spool, self.owner))
        self._tapes = Tapes(folder, config, report)
        self.shelf = ShelfProcess(config, self.owner, report)
        self._queue: deque[Served | Ended | _Cut] = deque()
        self._holes: set[Key] = set()
        self._queued_bytes, self._spooled_mb = 0, 0.0
        self._work, self._closing, self._busy = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """Give what was recorded and left out."""
        return self._tapes.counts

    @property
    def queued_mb(self) -> float:
        """Give what waits in memory, in MiB."""
        return self._queued_bytes / MIB

    @property
    def spooled_mb(self) -> float:
        """Give what waits on disk to become episodes, of all replicas, in MiB, as of the last look."""
        return self._spooled_mb

    def __call__(self, event: Event) -> None:
        """Take an event; never waits for anything but another thread's append."""
        if isinstance(event, Served):
            if self.config.wants(event) and event.is_passing:
                with self._work:
                    self._tapes.counts.left_out["unnamed"] += 1
            elif self.config.wants(event):
                self._put(event)
        elif isinstance(event, Ended):
            with self._work:
                self._append(event)

    def accepted(self, robot: str, session: str) -> int:
        """Give the number of the session's newest request that is on disk, -1 if its recording has not begun."""
        return self._tapes.sequence(robot, session)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the queue is on disk; say whether it is."""
        with self._work:
            return self._work.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """End every recording and make episodes of them; say whether all were made in time."""
        with self._work:
            self._closing = True
            self._work.notify_all()
        self._thread.join(timeout_s)
        # Without the lock the shelf may treat what is left as it treats the recordings of any replica that is gone.
        self._held.close()
        return self.shelf.close(timeout_s)

    def _put(self, event: Served) -> None:
        key = (event.robot, event.session)
        with self._work:
            if key in self._holes:
                self._tapes.counts.left_out["queue"] += 1
            elif self._queued_bytes + _size(event) > self.config.max_queue_mb * MIB:
                # Until the thread has reached the cut, nothing more of this session may follow it.
                self._tapes.counts.left_out["queue"] += 1
                self._holes.add(key)
                self._append(_Cut(key))
            else:
                self._append(event)

    def _append(self, item: Served | Ended | _Cut) -> None:
        self._queue.append(item)
        self._queued_bytes += _size(item)
        self._work.notify_all()

    def _run(self) -> None:
        next_look = 0.0
        while True:
            item = self._next(self.config.sync_s)
            if item is not None:
                self._take(item)
                self._finished(item)
            if time.monotonic() >= next_look:
                self._look_after()
                next_look = time.monotonic() + self.config.sync_s
            if item is None and self._closing:
                break
        self._tapes.end_all("replica stopped")

    def _next(self, timeout_s: float) -> Served | Ended | _Cut | None:
        with self._work:
            self._work.wait_for(lambda: self._queue or self._closing, timeout_s)
            self._busy = bool(self._queue)
            return self._queue.popleft() if self._queue else None

    def _finished(self, item: Served | Ended | _Cut) -> None:
        with self._work:
            self._queued_bytes -= _size(item)
            self._busy = False
            if isinstance(item, _Cut):
                self._holes.discard(item.key)
            self._work.notify_all()

    def _take(self, item: Served | Ended | _Cut) -> None:
        ended = self.counts.ended
        try:
            if isinstance(item, _Cut):
                self._tapes.cut(item.key, "queue", f"more than {self.config.max_queue_mb} MiB waited for the disk.")
            else:
                self._tapes.take(item)
        except Exception:
            # A boundary: one unforeseen event must not end the recording of all the others.
            self.counts.left_out["error"] += 1
            log.exception("an event could not be recorded")
        if self.counts.ended > ended:
            self.shelf.wake()

    def _look_after(self) -> None:
        self._spooled_mb = _folder_mb(self.config.spool)
        ended = self.counts.ended
        self._tapes.look_after(self._spooled_mb)
        self.shelf.look_after()
        if self.counts.ended > ended:
            self.shelf.wake()


def _size(item: Served | Ended | _Cut) -> int:
    if not isinstance(item, Served):
        return EVENT_BYTES
    return sum(image.nbytes for image in item.observation.images.values()) + item.actions.nbytes + EVENT_BYTES


def _folder_mb(folder: Path) -> float:
    total = 0
    for path in folder.glob("[!.]*/[!.]*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            # The shelf has just made an episode of it.
            continue
    return total / MIB
