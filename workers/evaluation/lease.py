"""Let one driver at a time write a file on local or shared storage, without file locks, which NFS does not keep.

The holder leaves a note beside the file: who it is, and, by its modification time, that it lives. A note is made with
O_EXCL and taken over by a rename, both of which are atomic on NFS from version 3 on. A note of a process of this
machine is judged by whether that process lives; one of another machine by whether it is touched while we watch,
so no two clocks are compared. Every write asks `check` first: a driver that was paused and taken for dead stops there.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseConfig:
    """How a holder shows that it lives.

    Attributes:
        beat_s: seconds between two touches of the note.
        silence_s: how long another machine's note is watched without a touch before its holder counts as dead.
    """

    beat_s: float = 5.0
    silence_s: float = 30.0


def this_machine() -> str:
    """Name what a process number is unique in: this boot of this machine, and this container's numbering."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{boot.read_text().strip() if boot.exists() else socket.gethostname()} {space}"


def birth_of(pid: int) -> str | None:
    """Give when a process of this machine started, in ticks since boot; None if there is none.

    Together with its number this identifies a process, as numbers are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


class Lease:
    """The right to write one file; `taken_over` says that an earlier holder did not give it back.

    Raises:
        DataError: another driver holds it and lives, or the disk refuses the note.
    """

    def __init__(
        self,
        path: Path,
        config: LeaseConfig = LeaseConfig(),  # noqa: B008 (frozen)
        machine: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.path = path
        self.note = path.with_name(path.name + ".driver")
        self._config = config
        self._machine = machine or this_machine()
        self._sleep = sleep
        self.taken_over = False
        self._handle = self._acquire()
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beats.start()

    def _acquire(self) -> int:
        try:
            return self._write_note(self.note, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return self._take_over()

    def _write_note(self, path: Path, flags: int) -> int:
        facts = {"host": socket.gethostname(), "machine": self._machine, "pid": os.getpid()}
        content = json.dumps({**facts, "birth": birth_of(os.getpid()), "token": secrets.token_hex(8)}).encode()
        try:
            handle = os.open(path, flags | os.O_RDWR, 0o644)
            os.write(handle, content)
            os.fsync(handle)
        except FileExistsError:
            raise
        except OSError as error:
            raise DataError(f"could not write {path}: {error}; free some space and run again.") from error
        return handle

    def _take_over(self) -> int:
        """Replace the note of a holder that is gone."""
        seen = self._read()
        self._refuse_if_alive(seen)
        scratch = self.note.with_name(f"{self.note.name}.{secrets.token_hex(4)}")
        handle = self._write_note(scratch, os.O_CREAT | os.O_EXCL)
        if self._read() != seen:  # somebody else was quicker
            os.close(handle)
            scratch.unlink()
            raise self._refusal(self._read())
        os.replace(scratch, self.note)
        self.taken_over = True
        log.info("%s: took over from %s", self.path, _who(seen))
        return handle

    def _refuse_if_alive(self, seen: Mapping[str, Any]) -> None:
        if seen.get("machine") == self._machine:
            if birth_of(int(seen["pid"])) == seen["birth"]:
                raise self._refusal(seen)
            return
        before, waited = self._touched(), 0.0
        log.info("%s is held by %s; watching it for %g s", self.path, _who(seen), self._config.silence_s)
        while waited < self._config.silence_s:
            self._sleep(step := min(self._config.beat_s, self._config.silence_s - waited))
            waited += step
            if self._touched() != before:
                raise self._refusal(seen)

    def _refusal(self, seen: Mapping[str, Any]) -> DataError:
        return DataError(
            f"{self.path} is held by another running process ({_who(seen)}); wait for it, or give this run another "
            "run_dir=."
        )

    def _read(self) -> dict[str, Any]:
        """Read the note; {} if it is gone or was torn by a kill."""
        try:
            return json.loads(self.note.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def _touched(self) -> int:
        """Give the note's modification time; opening it makes NFS ask its server."""
        try:
            with self.note.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return 0

    def check(self) -> None:
        """Make sure that this driver still holds the lease.

        Raises:
            DataError: another driver has taken it over.
        """
        try:
            with self.note.open("rb") as file:
                now = os.fstat(file.fileno())
        except FileNotFoundError:
            now = None
        ours = os.fstat(self._handle)
        if now is None or (now.st_ino, now.st_dev) != (ours.st_ino, ours.st_dev):
            raise DataError(
                f"{self.path} was taken over by another driver ({_who(self._read())}) while this one did not answer; "
                "this one stops here, and nothing is lost."
            )

    def _beat(self) -> None:
        while not self._stop.wait(self._config.beat_s):
            # By handle, so that a successor's note is never touched; a refused touch must not end the run.
            with contextlib.suppress(OSError):
                os.utime(self._handle)

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._beats.join()
        try:
            self.check()
            self.note.unlink()
        except (DataError, OSError) as error:
            log.warning("%s: its note stays: %s", self.path, error)
        os.close(self._handle)


def _who(seen: Mapping[str, Any]) -> str:
    return f"process {seen['pid']} on {seen['host']}" if "pid" in seen else "nobody we can name"
