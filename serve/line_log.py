"""Append lines to a file behind whoever tells them: nobody waits for the disk, and a full one harms nobody.

Several processes may append to the same file: a line goes out in one write of an appending file, so lines never mix. A
full file is set aside as `NAME-TIME.jsonl`, and the oldest of these are deleted once there are more than `keep`. What
the disk refuses, or the thread that writes cannot keep up with, is counted, reported once for each time that it begins,
and said in the file itself as soon as that takes lines again.
"""

import atexit
import errno
import fcntl
import logging
import os
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)
MIB = 2**20
LONGEST_CLOSE_S = 10.0


class LineLog:
    """One file of lines with a thread of its own; `lost` counts the lines that did not get there.

    Args:
        file_mb: when a file is full.
        keep: full files kept beside the one that is written.
        max_waiting: lines that may wait for the disk.
        mode: who may read a file.
        lost_line: writes a line that says how many were lost before it.
        report: is told in a sentence, from the thread, that the file begins to refuse lines.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        file_mb: int,
        keep: int,
        max_waiting: int,
        mode: int,
        lost_line: Callable[[int], str],
        report: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.path = Path(path)
        self.lost = 0
        self._file_bytes, self._keep, self._mode = file_mb * MIB, keep, mode
        self._lost_line, self._report = lost_line, report
        self._is_failing, self._is_closed = False, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: queue.Queue[str | threading.Event | None] = queue.Queue(max_waiting)
        self._file = self._open()
        self._thread = threading.Thread(target=self._run, name=self.path.stem, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, line: str) -> None:
        """Take a line, without its end; never waits and never raises."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def flush(self, timeout_s: float = LONGEST_CLOSE_S) -> bool:
        """Wait until every line taken so far is written or lost; say whether that came in time."""
        reached = threading.Event()
        try:
            self._lines.put(reached, timeout=timeout_s)
        except queue.Full:
            return False
        return reached.wait(timeout_s)

    def close(self) -> None:
        """Write what waits and let go of the file; a disk that hangs keeps both."""
        if self._is_closed or not self.flush():
            return
        self._is_closed = True
        atexit.unregister(self.close)
        self._lines.put(None)
        self._thread.join()
        os.close(self._file)

    def files(self) -> list[Path]:
        """List the full files, oldest first."""
        return sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))

    def _run(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._write(line)
                if (lost := self.lost) > told:
                    self._write(self._lost_line(lost - told))
                    told = lost
                self._is_failing = False
            except OSError as error:
                self.lost += 1
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Report the first refusal in a row."""
        if not self._is_failing:
            self._is_failing = True
            log.error("%s cannot be written, lines are lost: %s; free some space", self.path, error)
            self._report(f"{self.path.name} cannot be written, lines are lost: {error.strerror}; free some space.")

    def _write(self, line: str) -> None:
        content = line.encode() + b"\n"
        self._follow()
        if os.fstat(self._file).st_size + len(content) > self._file_bytes:
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
            if self.path.exists() and self.path.stat().st_size + coming > self._file_bytes:
                stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
                os.replace(self.path, self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}"))
                for old in self.files()[: -self._keep]:
                    old.unlink(missing_ok=True)
        self._follow()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, self._mode)
