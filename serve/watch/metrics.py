"""Count what is served, per robot and per model, in Prometheus' form.

Robots name themselves, so the number of label values is bounded: the first `max_robots` names have series of their own
for as long as the process lives, and all later ones share the label "other". The same holds for every other label whose
values come from outside. Several replicas are shown as one target: each hands over its `families`, and `exposition`
writes them together with the label "replica".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from st4vla.platform.errors import ConfigError
from st4vla.serve.events import Ended, Event, Opened, Refused, Served, Stopped, Trouble

OTHER = "other"
LONGEST_LABEL = 64
STAGES = ("total", "queue", "system2", "system1")
LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
PLAN_BUCKETS_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 64)


@dataclass(frozen=True)
class MetricsConfig:
    """How many series there may be.

    Attributes:
        max_robots: robots with series of their own; 17 each, and 3 more for each kind of intervention or refusal.
        max_names: different values of any other label.
    """

    max_robots: int = 200
    max_names: int = 50

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_robots", "max_names"):
            if getattr(self, name) < 1:
                raise ConfigError(f"metrics.{name} is {getattr(self, name)}; expected 1 or more.")


class Names:
    """The first `limit` names that are asked for keep their names, all others are "other"."""

    def __init__(self, limit: int) -> None:
        self._limit, self._known = limit, set[str]()

    def __call__(self, name: str) -> str:
        """Give the label for a name."""
        name = name[:LONGEST_LABEL]
        if name in self._known:
            return name
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(name)
        return name


@dataclass(frozen=True)
class Sample:
    """One number: its name, labels and value."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Family:
    """The samples of one metric, in a form that may cross processes."""

    name: str
    about: str
    kind: str
    samples: Sequence[Sample] = field(default_factory=tuple)


class FleetMetrics:
    """An observer that counts; reading it costs more than telling it.

    Args:
        waiting: gives the number of requests that wait for a batch.
        stops: gives the emergency stops in force by robot, "*" for the fleet; without it they are known from events,
            of which a process hears only its own.
    """

    def __init__(
        self,
        config: MetricsConfig = MetricsConfig(),
        waiting: Callable[[], int] = lambda: 0,
        stops: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self._read_stops = stops
        self.registry = CollectorRegistry()
        self._robot, self._name = Names(config.max_robots), Names(config.max_names)
        counter, gauge, histogram = self._makers()
        self._requests = counter("requests", "Requests answered.", "robot", "model", "version", "canary")
        self._latency = histogram(
            "latency_seconds", "From a request's arrival to its answer.", LATENCY_BUCKETS_S, "robot"
        )
        self._stage = histogram(
            "stage_seconds", "Time in each stage of an answer.", LATENCY_BUCKETS_S, "model", "version", "stage"
        )
        self._plan = histogram("plan_age_seconds", "Age of the plan acted on.", PLAN_BUCKETS_S, "model", "version")
        self._robot_plan = gauge("robot_plan_age_seconds", "Age of the plan last acted on.", "robot")
        self._seen = gauge("robot_last_seen_seconds", "Unix time of the robot's last answered request.", "robot")
        self._batch = histogram("batch_size", "Requests answered together.", BATCH_BUCKETS, "model", "version")
        self._interventions = counter("interventions", "Changes made by safety.", "robot", "kind", "limit")
        self._refusals = counter("refusals", "Requests and connections turned away.", "robot", "kind")
        self._sessions = counter("sessions_opened", "Sessions begun or taken up again.", "protocol", "resumed")
        self._ends = counter("episodes_ended", "Episodes and sessions that ended.", "kind", "success")
        self._stopped = gauge("emergency_stop", "1 where an emergency stop holds; robot * is the fleet.", "robot")
        self._troubles = counter("troubles", "Things beside the answers that failed.", "kind")
        gauge("queue_requests", "Requests that wait for a batch.").set_function(waiting)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Served):
            self._count_served(event)
        elif isinstance(event, Refused):
            self._refusals.labels(self._robot(event.robot), self._name(event.kind)).inc()
        elif isinstance(event, Opened):
            self._sessions.labels(self._name(event.protocol), str(event.resumed).lower()).inc()
        elif isinstance(event, Ended):
            success = "unknown" if event.success is None else str(event.success).lower()
            self._ends.labels(event.kind, success).inc()
        elif isinstance(event, Stopped) and self._read_stops is None:
            self._stopped.labels(self._robot(event.robot or "*")).set(int(event.engaged))
        elif isinstance(event, Trouble):
            self._troubles.labels(self._name(event.kind)).inc()

    def add(self, collector: Collector) -> None:
        """Let something else be read along with the counts."""
        self.registry.register(collector)

    def families(self) -> list[Family]:
        """Give all numbers in a form that may cross processes."""
        if self._read_stops is not None:
            self._stopped.clear()
            for robot in self._read_stops():
                self._stopped.labels(self._robot(robot)).set(1)
        return [_plain(metric) for metric in self.registry.collect()]

    def _count_served(self, event: Served) -> None:
        robot, model, version = self._robot(event.robot), self._name(event.model), self._name(event.model_version)
        self._requests.labels(robot, model, version, str(event.canary).lower()).inc()
        for stage in STAGES:
            if stage in event.timing_ms:
                self._stage.labels(model, version, stage).observe(event.timing_ms[stage] / 1000)
        if "total" in event.timing_ms:
            self._latency.labels(robot).observe(event.timing_ms["total"] / 1000)
        self._plan.labels(model, version).observe(event.plan_age_ms / 1000)
        self._robot_plan.labels(robot).set(event.plan_age_ms / 1000)
        self._seen.labels(robot).set(event.at)
        self._batch.labels(model, version).observe(event.batch_size)
        for change in event.interventions:
            kind, limit = self._name(str(change.get("kind", ""))), self._name(str(change.get("limit", "")))
            self._interventions.labels(robot, kind, limit).inc()

    def _makers(self) -> tuple[Callable[..., Counter], Callable[..., Gauge], Callable[..., Histogram]]:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"st4vla_{name}", about, labels, registry=self.registry)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"st4vla_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"st4vla_{name}", about, labels, registry=self.registry, buckets=buckets)

        return counter, gauge, histogram


def exposition(replicas: Mapping[str, Sequence[Family]]) -> bytes:
    """Write the numbers of all replicas as Prometheus text, each with its "replica"."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(replicas))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, replicas: Mapping[str, Sequence[Family]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for replica, families in self._replicas.items():
            for family in families:
                metric = merged.setdefault(family.name, Metric(family.name, family.about, family.kind))
                for sample in family.samples:
                    metric.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        return merged.values()


def _plain(metric: Any) -> Family:
    # When a series was made is of no use to anybody here and would double their number.
    samples = [Sample(s.name, s.labels, s.value) for s in metric.samples if not s.name.endswith("_created")]
    return Family(metric.name, metric.documentation, metric.type, samples)
