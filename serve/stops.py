"""Stop one robot, or all of them, until somebody with the right to do so lets them go.

A stop is latched: it outlives the request, the connection and the server. Its log is the truth, appended to and never
rewritten: every process that serves from the same file sees a stop at its next request, and a server that comes back
finds its robots stopped. This is a stop in software that arrives with the next answer; it replaces no emergency stop
that is wired to a robot's brakes.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from st4vla.platform.errors import WireError

FLEET = "*"
ADMIN = "admin"


@dataclass(frozen=True)
class Stop:
    """One stop or release: of whom (FLEET for all), by whom, why, and when in Unix time."""

    robot: str
    stopped: bool
    by: str
    reason: str
    time_s: float


class EmergencyStops:
    """Which robots are stopped, by the log at `path`; without a path, in this process alone."""

    def __init__(self, path: str | Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path) if path is not None else None
        self._clock = clock
        self._lock = threading.Lock()
        self._active: dict[str, Stop] = {}
        self._read_bytes = 0
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            self._refresh()

    def engage(self, robot: str, by: str, reason: str) -> Stop:
        """Stop a robot, or FLEET; anybody may. A robot that is stopped already stays so."""
        return self._append(Stop(robot, True, by, reason, self._clock()))

    def release(self, robot: str, by: str, scopes: Collection[str], reason: str = "") -> Stop:
        """Let a robot go, or FLEET; each stop is released by itself: letting the fleet go frees no robot stopped alone.

        Raises:
            WireError: "forbidden": the scopes lack admin; "invalid": it is not stopped.
        """
        if ADMIN not in scopes:
            raise WireError("forbidden", "scope", "Releasing an emergency stop needs the admin scope.")
        if robot not in self.active():
            raise WireError("invalid", "robot", f"{name_of(robot)} is not stopped.")
        return self._append(Stop(robot, False, by, reason, self._clock()))

    def active(self) -> dict[str, Stop]:
        """Give the stops in force by robot, FLEET among them."""
        self._refresh()
        return dict(self._active)

    def check(self, robot: str) -> None:
        """Refuse to act for a stopped robot.

        Raises:
            WireError: "stopped".
        """
        active = self.active() if self._path is not None else self._active
        if stop := active.get(FLEET) or active.get(robot):
            raise WireError("stopped", "robot", f"{name_of(stop.robot)} is stopped by {stop.by}: {stop.reason}")

    def _append(self, stop: Stop) -> Stop:
        if self._path is None:
            self._apply(stop)
            return stop
        line = json.dumps(asdict(stop), separators=(",", ":")) + "\n"
        with self._lock, self._path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())
        self._refresh()
        return stop

    def _refresh(self) -> None:
        """Read what was appended since the last look, here or by another process."""
        if self._path is None or self._path.stat().st_size == self._read_bytes:
            return
        with self._lock, self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file.read().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # somebody is still writing it
                self._read_bytes += len(line)
                self._apply(read_line(line, self._clock()))

    def _apply(self, stop: Stop) -> None:
        if stop.stopped:
            self._active.setdefault(stop.robot, stop)
        else:
            self._active.pop(stop.robot, None)


def read_line(line: bytes, now: float) -> Stop:
    """Read one line of the log; one that cannot be read may have been a stop, so it stops the fleet."""
    try:
        return Stop(**json.loads(line))
    except (ValueError, TypeError):
        return Stop(FLEET, True, "the server", "a line of the log of stops cannot be read", now)


def name_of(robot: str) -> str:
    return "The fleet" if robot == FLEET else f"Robot {robot}"
