"""Keep what a run records in an append-only file until the tracking store has it.

One run is one folder under the queue folder:

    <run id>/records.jsonl    one JSON record a line, in the order they were made; never rewritten
    <run id>/sent.json        {"position": bytes sent, "run": the store's own run id, "ended": its end is sent too};
                              replaced atomically
    <run id>/rejected.jsonl   records the store refused for good, with its reason
    <run id>/files/           hard links (or copies) of artifacts, so that a run folder may be deleted meanwhile

Durability: every record is handed to the operating system before `append` returns, so it outlives the process
whatever kills it. `sync` flushes to the disk; the sender calls it every second or so and a run's start, end and
artifacts call it at once, so that a power cut costs at most that second.

The owner holds a lock on records.jsonl while it lives. Whoever gets the lock of a run whose owner is gone may send
what is left of it.
"""

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.errors import TrackingError


@dataclass(frozen=True)
class Record:
    """One line of the queue: its operation and payload, and the byte position just behind it."""

    operation: str
    payload: Mapping[str, Any]
    end: int


class RunQueue:
    """The records of one run on disk; `append` may be called from any thread."""

    def __init__(self, folder: Path):
        """Open the folder, making it if need be, and take its lock.

        Raises:
            TrackingError: the folder cannot be written.
            BlockingIOError: another process owns it.
        """
        self.folder = folder
        self.run_id = folder.name
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / "records.jsonl", "ab")
        except OSError as error:
            raise TrackingError(
                f"the tracking queue {folder} cannot be written ({error}); set tracking.queue_dir to a writable folder"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._drop_torn_line()
        sent = _read_sent(folder)
        self.position, self.store_run_id, self.ended = sent["position"], sent["run"], sent["ended"]

    def _drop_torn_line(self) -> None:
        """Cut a last line that a crash left without its newline; it was never promised to anybody."""
        data = (self.folder / "records.jsonl").read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(self.folder / "records.jsonl", data.rfind(b"\n") + 1)

    def append(self, operation: str, payload: Mapping[str, Any], durable: bool = False) -> None:
        """Add one record; `durable` also waits for the disk."""
        line = json.dumps({"op": operation, **payload}, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                self._file.write(line)
                self._file.flush()
                if durable:
                    os.fsync(self._file.fileno())
        except OSError as error:
            raise TrackingError(f"a tracking record could not be written to {self.folder} ({error})") from error

    def sync(self) -> None:
        """Flush what was appended to the disk."""
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())

    def keep_file(self, path: Path, number: int) -> Path:
        """Link a file, or every file of a folder, into the queue and give the link's path."""
        kept = self.folder / "files" / str(number) / path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=_link_or_copy, dirs_exist_ok=True)
        else:
            _link_or_copy(path, kept)
        return kept

    def unsent(self, limit: int = 500) -> list[Record]:
        """Give up to `limit` records behind the sent position, in order."""
        records: list[Record] = []
        with open(self.folder / "records.jsonl", "rb") as file:
            file.seek(self.position)
            end = self.position
            for line in file:
                if not line.endswith(b"\n") or len(records) == limit:
                    break
                end += len(line)
                payload = json.loads(line)
                records.append(Record(payload.pop("op"), payload, end))
        return records

    def mark_sent(self, position: int, store_run_id: str, ended: bool) -> None:
        """Remember, crash-safely, that everything before `position` is in the store."""
        self.position, self.store_run_id, self.ended = position, store_run_id, ended
        temporary = self.folder / "sent.json.tmp"
        temporary.write_text(json.dumps({"position": position, "run": store_run_id, "ended": ended}))
        os.replace(temporary, self.folder / "sent.json")

    def reject(self, record: Record, reason: str) -> None:
        """Set a record aside that the store refused for good."""
        with open(self.folder / "rejected.jsonl", "a") as file:
            file.write(json.dumps({"op": record.operation, **record.payload, "reason": reason}) + "\n")

    def forget_file(self, kept: Path) -> None:
        """Remove a link once the store has the artifact."""
        shutil.rmtree(kept.parent, ignore_errors=True)

    def release(self) -> None:
        """Close the file and give up the lock."""
        with self._lock:
            self._file.close()

    def remove(self) -> None:
        """Delete what is wholly in the store; of a run with refused records their file stays."""
        self.release()
        if not (self.folder / "rejected.jsonl").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        shutil.rmtree(self.folder / "files", ignore_errors=True)
        for name in ("records.jsonl", "sent.json"):
            (self.folder / name).unlink(missing_ok=True)


def _read_sent(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "sent.json").read_text())
    except FileNotFoundError:
        return {"position": 0, "run": "", "ended": False}


def _link_or_copy(source: str | Path, target: str | Path) -> str:
    """Link a file; copy it where the file system has no links across these folders."""
    try:
        os.link(source, target)
    except FileExistsError:
        return str(target)
    except OSError:
        shutil.copy2(source, target)
    return str(target)


@dataclass(frozen=True)
class QueueState:
    """How much of one run still waits: records unsent and refused, and whether its owner lives."""

    run_id: str
    unsent: int
    rejected: int
    alive: bool


def abandoned(queue_dir: Path) -> Iterator[RunQueue]:
    """Open, oldest first, every run whose owner is gone; the caller releases or removes each."""
    for folder in _run_folders(queue_dir):
        try:
            yield RunQueue(folder)
        except (BlockingIOError, FileNotFoundError):
            continue


def queue_states(queue_dir: Path) -> list[QueueState]:
    """Count what waits in every run's folder without taking any of them over."""
    return [_state(folder) for folder in sorted(queue_dir.glob("*/"))]


def _state(folder: Path) -> QueueState:
    records, rejected = folder / "records.jsonl", folder / "rejected.jsonl"
    refused = rejected.read_bytes().count(b"\n") if rejected.exists() else 0
    if not records.exists():
        return QueueState(folder.name, 0, refused, False)
    with open(records, "rb") as file:
        alive = _is_locked(file)
        file.seek(_read_sent(folder)["position"])
        return QueueState(folder.name, file.read().count(b"\n"), refused, alive)


def _is_locked(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _run_folders(queue_dir: Path) -> list[Path]:
    """Run folders by the time they were made, so that a parent comes before its children."""
    found = [folder for folder in queue_dir.glob("*/") if (folder / "records.jsonl").exists()]
    return sorted(found)
