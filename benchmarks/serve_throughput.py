"""Compare eight robots in closed loop with one, over a policy that takes 50 ms whatever the size of its batch.

    python -m benchmarks.serve_throughput [--record] [--seconds N]

Each robot sends its next observation, two 224 px images, as soon as it has its last answer, and checks that the answer
is its own.
"""

import argparse
import asyncio
import time

from websockets.asyncio.client import connect

from benchmarks.results import record
from benchmarks.serving import UNBOUNDED, Server, batch_sizes, libero_message, percentiles, server
from st4vla.platform.wire import openpi

ROBOTS = 8
WARM_UP_S = 4.0


async def drive(url: str, pixel: int, until: float, times: list[tuple[float, float]]) -> None:
    """Ask in closed loop; collect when each answer came and how long it took."""
    message = libero_message(pixel)
    async with connect(url, compression=None, max_size=None) as line:
        await line.recv()
        while time.perf_counter() < until:
            began = time.perf_counter()
            await line.send(message)
            answer = openpi.unpack(bytes(await line.recv(decode=False)))
            ended = time.perf_counter()
            if answer["actions"][0, 0] != pixel:
                raise AssertionError(f"robot {pixel} was given the answer of robot {answer['actions'][0, 0]:g}")
            times.append((ended, ended - began))


async def load(url: str, robots: int, seconds: float) -> tuple[float, list[float]]:
    """Give answers a second and the seconds of each, after a warm-up."""
    began = time.perf_counter()
    times: list[tuple[float, float]] = []
    until = began + WARM_UP_S + seconds
    await asyncio.gather(*(drive(url, 10 + robot, until, times) for robot in range(robots)))
    kept = [took for ended, took in times if ended > began + WARM_UP_S]
    return len(kept) / seconds, kept


def measure(running: Server, seconds: float) -> dict[str, float]:
    """Give what is compared."""
    one, one_times = asyncio.run(load(running.url, 1, seconds))
    many, many_times = asyncio.run(load(running.url, ROBOTS, seconds))
    one_p99, many_p99 = percentiles(one_times)[1], percentiles(many_times)[1]
    print(f"1 robot: {one:.1f}/s, p50 {percentiles(one_times)[0]:.1f} ms, p99 {one_p99:.1f} ms")
    print(f"{ROBOTS} robots: {many:.1f}/s, p50 {percentiles(many_times)[0]:.1f} ms, p99 {many_p99:.1f} ms")
    time.sleep(2)
    print(f"batches by size: {batch_sizes(running)}")
    return {"throughput": many / one, "p99": many_p99 / one_p99}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with server("fixed-50-0@1", *UNBOUNDED) as running:
        ratio = measure(running, options.seconds)
    print(f"throughput {ratio['throughput']:.2f} times one robot's, p99 {ratio['p99']:.2f} times")
    if options.record:
        command = "python -m benchmarks.serve_throughput --record"
        record(
            "8 robots over a 50 ms forward, throughput", 6, round(ratio["throughput"], 2), "times one", ">= 6", command
        )
        record("8 robots over a 50 ms forward, p99", 6, round(ratio["p99"], 2), "times one", "<= 2", command)


if __name__ == "__main__":
    main()
