"""Measure what watching costs an answer: the time that telling the watchers takes, and what recording adds to answers.

The first figures are the time of one `Observers.tell` with all watchers on, on the thread that answers: what a robot
waits longer at most. The others are the latency of answers over a fixed 5 ms forward of 16 closed-loop robots with and
without the recorder, taken in turns, at 2 x 224 px.

    python -m benchmarks.recorder_overhead [--seconds 20] [--no-record]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from st4vla.platform.contracts import Observation
from st4vla.serve.events import Observers, Served
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.watch.audit import AuditConfig
from st4vla.serve.watch.observers import Watch, WatchConfig

ROBOTS, FORWARD_S = 16, 0.005


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told, plain, recorded = measure(Path(folder), given.seconds)
    added = [np.quantile(recorded, share) - np.quantile(plain, share) for share in (0.5, 0.99)]
    figures = {
        "watching: time that one answer's thread spends on telling, p50": (np.quantile(told, 0.5), "<= 0.5"),
        "watching: time that one answer's thread spends on telling, p99": (np.quantile(told, 0.99), "<= 2"),
        "recording: added latency of an answer, p50": (added[0], "report"),
        "recording: added latency of an answer, p99": (added[1], "report"),
    }
    for name, (value, goal) in figures.items():
        print(f"{name}: {value:.3f} ms")
        if not given.no_record:
            from benchmarks.results import record

            record(name, 6, round(float(value), 3), "ms", goal, "python -m benchmarks.recorder_overhead")


def measure(folder: Path, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """Give milliseconds: of telling, of answers with nobody watching, of answers with all watching."""
    recorder = RecorderConfig(str(folder / "recordings"), max_spool_mb=65536)
    config = WatchConfig(record=True, audit=True, recorder=recorder, audit_log=AuditConfig(str(folder / "audit")))
    watch, told = Watch(config, "benchmark"), []
    observers = Observers(watch.observers)

    def tell(event: Served) -> None:
        began = time.perf_counter()
        observers.tell(event)
        told.append(1000 * (time.perf_counter() - began))

    plain, recorded = [], []
    for _ in range(4):
        plain += asyncio.run(drive(lambda event: None, seconds / 8))
        recorded += asyncio.run(drive(tell, seconds / 8))
    counts = watch.recorder.counts if watch.recorder else None
    print(f"{len(recorded)} answers recorded; {counts}")
    watch.close(60)
    while any((folder / "recordings" / "spool").iterdir()):
        time.sleep(0.5)
    return told, plain, recorded


async def drive(tell: Callable[[Served], None], seconds: float) -> list[float]:
    """Let every robot ask again as soon as it is answered; give the answers' latencies in milliseconds."""
    latencies: list[float] = []
    ends = time.monotonic() + seconds

    async def robot(number: int) -> None:
        rng, sequence = np.random.default_rng(number), 0
        while time.monotonic() < ends:
            frames = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
            began = time.perf_counter()
            await asyncio.sleep(FORWARD_S)
            seen = Observation({"front": frames[0], "wrist": frames[1]}, np.zeros(7, np.float32), "lift the cup")
            tell(event_of(number, sequence, seen, 1000 * (time.perf_counter() - began)))
            latencies.append(1000 * (time.perf_counter() - began))
            sequence += 1
            # About the robots' own pace: 16 at 10 Hz give 160 requests and 48 MB a second.
            await asyncio.sleep(0.1)

    await asyncio.gather(*(robot(number) for number in range(ROBOTS)))
    return latencies


def event_of(robot: int, sequence: int, seen: Observation, total_ms: float) -> Served:
    """Make the event of one answer."""
    return Served(
        f"arm-{robot}",
        "s",
        sequence,
        seen,
        np.zeros((8, 7), np.float32),
        "panda",
        10.0,
        "st4vla",
        "7",
        timing_ms={"total": total_ms, "queue": 1.0},
        executed_steps=1,
    )


if __name__ == "__main__":
    main()
