"""Everything that watches a serving process, put together: the recorder, the metrics, the audit log, the fleet's view.

Observers([*watch.observers])    is told of every event
watch.report(...)                about once a second, in a thread: what the board is to know
watch.close()                    when the process stops
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from st4vla.serve.events import Observer, Trouble
from st4vla.serve.recorder.figures import RecorderMetrics
from st4vla.serve.recorder.recording import Recorder
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.watch.audit import AuditConfig, AuditLog
from st4vla.serve.watch.board import Report
from st4vla.serve.watch.fleet import FleetConfig, FleetView
from st4vla.serve.watch.metrics import FleetMetrics, MetricsConfig
from st4vla.serve.watch.pages import BoardLink
from st4vla.serve.watch.pictures import ReadOut

log = logging.getLogger(__name__)
REPORT_S = 1.0
Facts = tuple[dict[str, Any], dict[str, Any]]
# Reading all series takes milliseconds; Prometheus asks every 15 s or so.
METRICS_EVERY = 5


@dataclass(frozen=True)
class WatchConfig:
    """What watches a serving process.

    Attributes:
        record: whether served sessions are recorded.
        audit: whether connections, refusals, stops and changes are written down.
    """

    record: bool = False
    audit: bool = False
    recorder: RecorderConfig = field(default_factory=RecorderConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    audit_log: AuditConfig = field(default_factory=AuditConfig)

    def absolute(self) -> "WatchConfig":
        """Give the same config with folders that mean the same in any working directory."""
        recorder = replace(self.recorder, folder=str(Path(self.recorder.folder).resolve()))
        audit_log = replace(self.audit_log, folder=str(Path(self.audit_log.folder).resolve()))
        return replace(self, recorder=recorder, audit_log=audit_log)


class Watch:
    """The watchers of one serving process.

    Args:
        replica: the process's name.
        waiting: gives the number of requests that wait for a batch.
        stops: gives the emergency stops in force, {robot or "*": reason}.
        read_out: asks the planner about a picture of the fleet page.
    """

    def __init__(
        self,
        config: WatchConfig,
        replica: str,
        waiting: Callable[[], int] = lambda: 0,
        stops: Callable[[], Mapping[str, str]] | None = None,
        read_out: ReadOut | None = None,
    ) -> None:
        self.replica = replica
        self.metrics = FleetMetrics(config.metrics, waiting, stops)
        self.fleet = FleetView(config.fleet, stops, read_out=read_out)
        self.audit = AuditLog(config.audit_log) if config.audit else None
        self.recorder = Recorder(config.recorder, self._report_trouble) if config.record else None
        if self.recorder:
            self.metrics.add(RecorderMetrics(self.recorder))
        self._sent: dict[str, float] = {}
        self._reports = 0
        self._lock = threading.Lock()

    @property
    def observers(self) -> list[Observer]:
        """Give those who are to be told of every event."""
        return [one for one in (self.metrics, self.fleet, self.audit, self.recorder) if one is not None]

    def report(
        self, pictures: bool = True, facts: Mapping[str, Any] | None = None, deployment: Mapping[str, Any] | None = None
    ) -> Report:
        """Say how things are; pictures are made only if somebody wants them, and only those that are new."""
        with self._lock:
            made = self.fleet.pictures(self._sent) if pictures else {}
            self._sent |= {robot: at for robot, (at, _) in made.items()}
            families = self.metrics.families() if self._reports % METRICS_EVERY == 0 else None
            self._reports += 1
            return Report(self.replica, self.fleet.snapshot(), families, made, facts or {}, deployment or {})

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish what is being written; a recording that needs longer finishes by itself."""
        if self.recorder:
            self.recorder.close(timeout_s)
        if self.audit:
            self.audit.close()

    def _report_trouble(self, trouble: Trouble) -> None:
        for observer in (self.metrics, self.fleet, self.audit):
            if observer is not None:
                observer(trouble)


async def keep_board(
    watch: Watch,
    board: BoardLink,
    facts: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
    period_s: float = REPORT_S,
) -> None:
    """Tell the board once a second, until cancelled; while it is away, go on as before.

    Args:
        facts: gives what is to be said of this process, and of the deployment.
    """
    wants_pictures = False
    while True:
        about, deployment = facts()
        report = await asyncio.to_thread(watch.report, wants_pictures, about, deployment)
        try:
            wants_pictures = await board.call("post", report)
        except Exception as error:
            # A boundary: the board's process may be restarting, and robots are served all the same.
            log.debug("the board took no report: %s", type(error).__name__)
        await asyncio.sleep(period_s)
