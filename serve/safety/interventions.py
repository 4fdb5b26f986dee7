"""Write down every time safety changed, refused or stopped something: what was asked, what was done, which limit."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from st4vla.serve.line_log import LineLog

FILE_MB, KEEP, MAX_WAITING = 16, 8, 10_000
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


class InterventionLog(LineLog):
    """Append interventions to a JSON-lines file behind whoever intervened; several threads and processes may share it.

    Writing never waits and never raises: a log that cannot be written is counted and reported by `line_log.py`, and
    harms no answer and no control step. A line of the kind "lost" says how many lines are missing before it.

    Args:
        clock: Unix time in seconds.
        report: is told in a sentence that the log begins to refuse lines.
    """

    def __init__(
        self,
        path: str | Path,
        clock: Callable[[], float] = time.time,
        report: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._clock = clock
        super().__init__(path, FILE_MB, KEEP, MAX_WAITING, 0o640, self._lost, report)

    def write(self, *interventions: Intervention) -> None:
        """Append some."""
        for one in interventions:
            self.put(self._line(asdict(one)))

    def _lost(self, lines: int) -> str:
        return self._line({"kind": "lost", "lines": lines})

    def _line(self, entries: Mapping[str, Any]) -> str:
        return json.dumps({"time_s": round(self._clock(), 3), **entries}, separators=(",", ":"))


def read_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read one file's lines as maps, oldest first; a line that a power cut tore is skipped."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
