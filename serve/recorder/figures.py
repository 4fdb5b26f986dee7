"""Show what the recorder does, and does not, in Prometheus' form."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from st4vla.serve.recorder.recording import Recorder
from st4vla.serve.recorder.settings import MIB


class RecorderMetrics(Collector):
    """Reads a recorder's counts whenever the metrics are read."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def collect(self) -> Iterable[Metric]:
        """Give the recorder's numbers."""
        recorder, counts = self._recorder, self._recorder.counts
        yield _counter("frames", "Answered requests that are on disk.", counts.frames)
        yield _by_reason("cuts", "Recordings cut short.", counts.cut)
        yield _by_reason("left_out", "Answered requests that are in no recording.", counts.left_out)
        yield _counter("episodes", "Recordings that became episodes.", recorder.shelf.done["written"])
        yield _counter("refused", "Recordings that make no episode and are kept aside.", recorder.shelf.done["refused"])
        yield _counter("restarts", "Times the recorder's process was started again.", recorder.shelf.restarts)
        yield _gauge("queue_bytes", "Frames that wait in memory for the disk.", recorder.queued_mb * MIB)
        yield _gauge("spool_bytes", "Recordings that wait on disk, of all replicas.", recorder.spooled_mb * MIB)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"st4vla_recorder_{name}", about, value=value)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"st4vla_recorder_{name}", about, value=value)


def _by_reason(name: str, about: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"st4vla_recorder_{name}", about, labels=["reason"])
    for reason, value in dict(counts).items():
        family.add_metric([reason], value)
    return family
