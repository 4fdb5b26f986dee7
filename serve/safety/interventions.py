"""Write down every time safety changed, refused or stopped something: what was asked, what was done, which limit."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["clamped", "refused", "held", "stopped", "released"]


@dataclass(frozen=True)
class Intervention:
    """One intervention.

    Attributes:
        kind: what was done.
        robot, session, sequence: to whom, in which request.
        place: "server" or "client".
        part: of the action, "" where it concerns the whole.
        limit: which limit or rule: "velocity", "not finite", "stale", "emergency stop", ...
        asked, given: the worst row of that part, before and after, where something was clamped.
        rows: first and last row of the chunk concerned.
        message: one sentence.
    """

    kind: Kind
    robot: str
    limit: str
    session: str = ""
    sequence: int = -1
    place: Literal["server", "client"] = "server"
    part: str = ""
    asked: tuple[float, ...] = ()
    given: tuple[float, ...] = ()
    rows: tuple[int, int] | None = None
    message: str = ""

    def as_plain(self) -> dict[str, Any]:
        """Give the form that watchers are told: every field, the first row concerned as "row", and the words."""
        return {**asdict(self), "row": self.rows[0] if self.rows else None, "text": self.text}

    @property
    def text(self) -> str:
        """Say it in one line, as a reply's stamp carries it."""
        if self.kind != "clamped":
            return f"{self.kind}: {self.message or self.limit}"
        first, last = self.rows or (0, 0)
        rows = f"row {first}" if first == last else f"rows {first}..{last}"
        return f"clamped: {self.part} {self.limit}, {rows}, {numbers(self.asked)} to {numbers(self.given)}"


def numbers(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


class InterventionLog:
    """Append interventions to a JSON-lines file, which is never rewritten; safe from several threads and processes.

    Each line goes out in one write of an appending file, so lines of several writers never mix. A line that a power
    cut tore is skipped when the log is read.

    Args:
        clock: Unix time in seconds.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(self, *interventions: Intervention) -> None:
        """Append some."""
        now = round(self._clock(), 3)
        lines = [json.dumps({"time_s": now, **asdict(one)}, separators=(",", ":")) + "\n" for one in interventions]
        if lines:
            with self._lock:
                os.write(self._file, "".join(lines).encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read a log's lines as maps, oldest first."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
