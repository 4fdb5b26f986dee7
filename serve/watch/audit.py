"""Write down who connected, who was turned away, which key was used, and what an admin changed.

One JSON object a line, appended and never rewritten, in `FOLDER/audit.jsonl`; when that is full it becomes
`audit-TIME.jsonl`, and the oldest are deleted once there are more than `keep` of them. A key appears by its id, never
itself. Several processes may write the same log: a line goes out in one write of an appending file. Lines are written
by a thread of their own. A flood that it cannot keep up with, or a disk that refuses, costs lines but never an answer,
and the log says how many.
"""

import errno
import fcntl
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.serve.events import Admin, Ended, Event, Opened, Refused, Stopped, Trouble

log = logging.getLogger(__name__)
NAMES = {Opened: "opened", Ended: "ended", Refused: "refused", Stopped: "stop", Admin: "admin", Trouble: "trouble"}
LONGEST_TEXT = 500
MIB = 2**20


@dataclass(frozen=True)
class AuditConfig:
    """Where the audit log lies and how large it may become.

    Attributes:
        folder: its folder, which all serving processes of a machine share.
        file_mb: when a file is full.
        keep: full files kept beside the one that is written.
        max_waiting: lines that may wait for the disk.
    """

    folder: str = "runs/serve/audit"
    file_mb: int = 16
    keep: int = 8
    max_waiting: int = 10_000

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field in ("file_mb", "keep", "max_waiting"):
            if getattr(self, field) < 1:
                raise ConfigError(f"audit.{field} is {getattr(self, field)}; expected 1 or more.")


class AuditLog:
    """An observer that writes; `close` waits until every line is on disk."""

    def __init__(self, config: AuditConfig = AuditConfig()) -> None:
        self.config = config
        self.path = Path(config.folder) / "audit.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lost = 0
        self._lines: queue.Queue[str | None] = queue.Queue(config.max_waiting)
        self._file = self._open()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take an event; answered requests are not written down."""
        if name := NAMES.get(type(event)):
            try:
                self._lines.put_nowait(_line(name, asdict(event)))  # type: ignore[call-overload]
            except queue.Full:
                self.lost += 1

    def close(self) -> None:
        """Write what waits and close the file."""
        self._lines.put(None)
        self._thread.join()
        os.close(self._file)

    def _run(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
                if self.lost > told:
                    lost, told = self.lost - told, self.lost
                    self._write(_line("lost", {"at": None, "lines": lost}))
            except OSError as error:
                self.lost += 1
                log.error("the audit log %s cannot be written: %s; free some space", self.path, error)

    def _write(self, line: str) -> None:
        content = line.encode() + b"\n"
        self._follow()
        if os.fstat(self._file).st_size + len(content) > self.config.file_mb * MIB:
            self._rotate(len(content))
        size = os.fstat(self._file).st_size
        if os.write(self._file, content) < len(content):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _follow(self) -> None:
        """Go on in the file that now bears the name, if another process has set the old one aside."""
        try:
            is_ours = os.fstat(self._file).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            old, self._file = self._file, self._open()
            os.close(old)

    def _rotate(self, coming: int) -> None:
        """Set the full file aside, unless another process just did, and delete the oldest beyond `keep`."""
        with self.path.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists() and self.path.stat().st_size + coming > self.config.file_mb * MIB:
                stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
                os.replace(self.path, self.path.with_name(f"audit-{stamp}.jsonl"))
                for old in self.files()[: -self.config.keep]:
                    old.unlink(missing_ok=True)
        self._follow()

    def files(self) -> list[Path]:
        """List the full files, oldest first."""
        return sorted(self.path.parent.glob("audit-*.jsonl"))

    def _open(self) -> int:
        # Readable by the owner alone: it says who works where and when.
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _line(name: str, facts: Mapping[str, Any]) -> str:
    """Give one line: time first, then what happened; long texts from outside are cut."""
    at = facts.get("at")
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    plain = {key: _bounded(value) for key, value in facts.items() if key != "at" and value not in ("", None)}
    return json.dumps({"time": moment.isoformat(timespec="milliseconds"), "event": name, **plain}, default=str)


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    text = json.dumps(value, default=str)
    return value if len(text) <= 4 * LONGEST_TEXT else text[: 4 * LONGEST_TEXT]
