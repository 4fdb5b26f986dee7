"""Serve 64 connected robots at 2 Hz over a policy that takes 20 ms a batch, for five minutes; count what was late.

    python -m benchmarks.serve_fleet [--record] [--seconds N] [--robots N]

A request is late if its answer comes after the next one is due, 500 ms later, or is refused. The robots' clocks are
spread evenly. The serving replica's memory is read after the first tenth and at the end.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass, field

from websockets.asyncio.client import connect

from benchmarks.results import record
from benchmarks.serving import UNBOUNDED, Server, libero_message, members, percentiles, server
from st4vla.platform.wire import openpi

PERIOD_S = 0.5
MB = 1024 * 1024


@dataclass
class Count:
    """What became of the requests."""

    times: list[float] = field(default_factory=list)
    late: int = 0
    wrong: int = 0
    refused: int = 0


async def drive(url: str, robot: int, start: float, until: float, count: Count) -> None:
    """Ask twice a second; a robot that is late asks at once and goes on in its own rhythm."""
    async with connect(url, compression=None, max_size=None) as line:
        await line.recv()
        due, sequence = start, 0
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            stamp = {"robot": f"robot-{robot}", "session": f"robot-{robot}", "sequence": sequence}
            began = time.perf_counter()
            await line.send(libero_message(robot, st4vla={**stamp, "deadline_ms": 1000 * PERIOD_S}))
            answer = openpi.unpack(bytes(await line.recv(decode=False)))
            took = time.perf_counter() - began
            count.times.append(took)
            count.late += took > PERIOD_S
            count.refused += "error" in answer
            count.wrong += "error" not in answer and answer["actions"][0, 0] != robot
            sequence, due = sequence + 1, due + PERIOD_S


def replica_memory(running: Server) -> float:
    """Give the resident megabytes of the serving replica."""
    return members(running, "ServeReplica")[0].memory_info().rss / MB


async def measure(running: Server, robots: int, seconds: float) -> tuple[Count, float, float]:
    """Give the counts, and the memory near the beginning and at the end."""
    count, start = Count(), time.perf_counter() + 2
    driving = asyncio.gather(
        *(drive(running.url, i, start + PERIOD_S * i / robots, start + seconds, count) for i in range(robots))
    )
    await asyncio.sleep(2 + seconds / 10)
    first = replica_memory(running)
    await asyncio.sleep(0.8 * seconds)
    last = replica_memory(running)
    await driving
    return count, first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--robots", type=int, default=64)
    options = parser.parse_args()
    batch = ("post.replica.batch.max_batch=64",)
    with server("fixed-20-0@1", *UNBOUNDED, *batch) as running:
        count, first, last = asyncio.run(measure(running, options.robots, options.seconds))
    p50, p99 = percentiles(count.times)
    late = int(count.late + count.wrong + count.refused)
    print(f"{len(count.times)} requests: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {1000 * max(count.times):.0f} ms")
    print(f"late {count.late}, wrong {count.wrong}, refused {count.refused}; memory {first:.0f} -> {last:.0f} MB")
    if options.record:
        command = "python -m benchmarks.serve_fleet --record"
        record("64 robots at 2 Hz for 5 min, deadlines missed", 6, late, "requests", "<= 0", command)
        record("64 robots at 2 Hz for 5 min, memory growth", 6, round(float(last - first), 1), "MB", "<= 10", command)


if __name__ == "__main__":
    main()
