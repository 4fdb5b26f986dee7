"""Write down who connected, who was turned away, which key was used, and what an admin changed.

One JSON object a line, appended and never rewritten, in `FOLDER/audit.jsonl`; when that is full it becomes
`audit-TIME.jsonl`, and the oldest are deleted once there are more than `keep` of them. What admins changed and stopped
stands a second time in `FOLDER/changes.jsonl`, bounded likewise: no flood of refusals can push it out. A key appears by
its id, never itself. `line_log.py` writes both: a flood, or a disk that refuses, costs lines but never an answer, and
the log says how many.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.serve.events import Admin, Ended, Event, Opened, Refused, Stopped, Trouble
from st4vla.serve.line_log import LineLog

NAMES = {Opened: "opened", Ended: "ended", Refused: "refused", Stopped: "stop", Admin: "admin", Trouble: "trouble"}
CHANGES = (Admin, Stopped)
LONGEST_TEXT = 500


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


class AuditLog(LineLog):
    """An observer that writes; `close` waits until every line is on disk."""

    def __init__(self, config: AuditConfig = AuditConfig()) -> None:
        self.config = config
        bounds = config.file_mb, config.keep, config.max_waiting
        # Readable by the owner alone: it says who works where and when.
        super().__init__(Path(config.folder) / "audit.jsonl", *bounds, mode=0o600, lost_line=_lost)
        self.changes = LineLog(Path(config.folder) / "changes.jsonl", *bounds, mode=0o600, lost_line=_lost)

    def __call__(self, event: Event) -> None:
        """Take an event; answered requests are not written down."""
        if name := NAMES.get(type(event)):
            line = _line(name, asdict(event))  # type: ignore[call-overload]
            self.put(line)
            if isinstance(event, CHANGES):
                self.changes.put(line)

    def close(self) -> None:
        """Write what waits and let go of both files."""
        self.changes.close()
        super().close()


def _lost(lines: int) -> str:
    return _line("lost", {"at": None, "lines": lines})


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
