"""Send queued records to the store from one background thread, in order, for as long as it takes."""

import logging
import threading
import time
from pathlib import Path

from st4vla.platform.tracking_queue import Record, RunQueue, abandoned
from st4vla.platform.tracking_store import MlflowStore, is_refusal

log = logging.getLogger(__name__)

BATCHED = ("params", "metrics", "tags")
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


class StoreAway(Exception):
    """The store did not answer; what was to be sent stays queued."""


class Sender(threading.Thread):
    """Own the sending side of every run of this process.

    Each round flushes the queues to disk, sends what is new, run by run in the order the runs were opened, and then
    what commands before this one left behind. When the store does not answer, the round ends and the next one comes
    after 1, 2, 4 ... at most 60 seconds.
    """

    def __init__(self, store: MlflowStore, queue_dir: Path):
        super().__init__(name="st4vla-tracking", daemon=True)
        self._store = store
        self._queue_dir = queue_dir
        self._queues: list[RunQueue] = []
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._closing = False
        self._rounds = 0
        self._swept = False
        self._away_reason = ""

    def add(self, queue: RunQueue) -> None:
        """Send this run's records too."""
        with self._changed:
            self._queues.append(queue)

    def wake(self) -> None:
        """Say that there is something new."""
        self._wake.set()

    def close(self, wait_s: float) -> None:
        """Send the rest, unless the store is away or `wait_s` runs out, and stop."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._closing = True
            begun = self._rounds
            self._wake.set()
            # A round may have been under way when the last record came, so the second one to end has seen it.
            self._changed.wait_for(lambda: self._done(begun), timeout=max(0.0, deadline - time.monotonic()))
            waiting = list(self._queues)
        if waiting:
            reason = self._away_reason or f"it took more than {wait_s:.0f} s"
            log.warning(
                "tracking store %s: %s; records of %d runs wait in %s, `st4vla track sync` sends them",
                self._store.uri, reason, len(waiting), self._queue_dir,
            )  # fmt: skip
        for queue in waiting:
            queue.sync()
            queue.release()

    def _done(self, begun: int) -> bool:
        return not self._queues or (self._rounds >= begun + 2 and bool(self._away_reason))

    def run(self) -> None:
        """Send rounds until closed."""
        wait_s = FIRST_WAIT_S
        while not (self._closing and (not self._queues or self._away_reason)):
            self._wake.wait(wait_s)
            self._wake.clear()
            self._round()
            wait_s = min(2 * wait_s, LONGEST_WAIT_S) if self._away_reason else FIRST_WAIT_S
            if self._away_reason and not self._closing:
                self._rest(wait_s)
        self._round()

    def _rest(self, wait_s: float) -> None:
        """Wait out a back-off that new records do not cut short, but closing does."""
        end = time.monotonic() + wait_s
        while not self._closing and time.monotonic() < end:
            time.sleep(0.05)

    def _round(self) -> None:
        with self._changed:
            queues = list(self._queues)
        try:
            for queue in queues:
                queue.sync()
                if send_run(self._store, queue):
                    self._forget(queue)
            if not self._swept:
                self._swept = True
                sweep(self._store, self._queue_dir)
            self._away_reason = ""
        except StoreAway as error:
            if not self._away_reason:
                log.warning(
                    "tracking store %s is away (%s); records wait in %s", self._store.uri, error, self._queue_dir
                )
            self._away_reason = str(error)
            self._swept = False
        with self._changed:
            self._rounds += 1
            self._changed.notify_all()

    def _forget(self, queue: RunQueue) -> None:
        queue.remove()
        with self._changed:
            self._queues.remove(queue)
            self._changed.notify_all()


def sweep(store: MlflowStore, queue_dir: Path) -> int:
    """Send what runs whose process is gone left behind; end as KILLED those that never ended. Give their number."""
    count = 0
    for queue in abandoned(queue_dir):
        try:
            count += 1
            if not send_run(store, queue):
                queue.append("end", {"status": "KILLED", "time_ms": time.time_ns() // 1_000_000}, durable=True)
                send_run(store, queue)
            queue.remove()
        except StoreAway:
            queue.release()
            raise
    return count


def send_run(store: MlflowStore, queue: RunQueue) -> bool:
    """Send all of one run's unsent records; say whether its end is in the store.

    Raises:
        StoreAway: the store did not answer; what was sent until then is remembered.
    """
    while records := queue.unsent():
        while records:
            count = _batch_length(records)
            _send_some(store, queue, records[:count])
            records = records[count:]
    return queue.ended


def _batch_length(records: list[Record]) -> int:
    length = 0
    while length < len(records) and records[length].operation in BATCHED:
        length += 1
    return max(length, 1)


def _send_some(store: MlflowStore, queue: RunQueue, records: list[Record]) -> None:
    run = queue.store_run_id
    try:
        if records[0].operation == "start":
            run = store.start(queue.run_id, records[0].payload)
        elif records[0].operation in BATCHED:
            store.send_batch(run, records)
        else:
            store.send(run, records[0])
    except Exception as error:  # the boundary to a foreign store: a refusal is set aside, the rest waits
        if not is_refusal(error):
            raise StoreAway(f"{type(error).__name__}: {str(error)[:160]}") from error
        if len(records) > 1:
            for record in records:
                _send_some(store, queue, [record])
            return
        log.error("the tracking store refused a %s record of %s: %s", records[0].operation, queue.run_id, error)
        queue.reject(records[0], str(error))
    queue.mark_sent(records[-1].end, run, records[-1].operation == "end")
    _forget_files(queue, records[-1])


def _forget_files(queue: RunQueue, record: Record) -> None:
    for key in ("path", "upload"):
        if record.payload.get(key):
            queue.forget_file(Path(record.payload[key]))
