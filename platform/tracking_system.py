"""Sample what the machine is doing, for a run's system metrics."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil

log = logging.getLogger(__name__)


class SystemSampler(threading.Thread):
    """Hand CPU, memory, disk and GPU readings to `record` every `period_s`, numbered from 0."""

    def __init__(self, record: Callable[[Mapping[str, float], int], None], period_s: float = 10.0):
        super().__init__(name="st4vla-system-metrics", daemon=True)
        self._record = record
        self._period_s = period_s
        self._stopped = threading.Event()
        self._gpus = _open_gpus()

    def run(self) -> None:
        """Sample until stopped; the first CPU reading covers the time since the one before it."""
        psutil.cpu_percent()
        step = 0
        while not self._stopped.wait(self._period_s):
            self._record(read_machine() | read_gpus(self._gpus), step)
            step += 1

    def stop(self) -> None:
        """Stop sampling; a last reading is not taken."""
        self._stopped.set()
        self.join(timeout=5)


def read_machine() -> dict[str, float]:
    """Read the host under the names MLflow's system metrics page shows."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(".")
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / 1e6,
    }


def _open_gpus() -> list[Any]:
    try:
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception as error:  # no driver, no library: this machine simply has no GPU to read
        log.debug("no GPU metrics: %s", error)
        return []


def read_gpus(handles: list[Any]) -> dict[str, float]:
    """Read utilisation and memory of each NVIDIA GPU."""
    readings = {}
    if handles:
        import pynvml

        for index, handle in enumerate(handles):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            readings[f"system/gpu_{index}_utilization_percentage"] = float(
                pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            )
            readings[f"system/gpu_{index}_memory_usage_megabytes"] = float(memory.used) / 1e6
    return readings
