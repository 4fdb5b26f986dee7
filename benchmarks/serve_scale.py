"""Load a server until Serve starts a second replica, and unload it until one goes; count what robots notice.

    python -m benchmarks.serve_scale

Two robots are within what one replica is meant for, eight are not. What counts: how long until two replicas answer,
that no reply is wrong or lost, and that the robots which stay reconnect at most once when their replica is taken away.
"""

import argparse
import asyncio
import time
from collections.abc import Callable

from benchmarks.serve_update import Robot
from benchmarks.serving import UNBOUNDED, Server, fleet, server

MANY = 8
PATIENCE_S = 120.0
SCALE = (
    "scale.min_replicas=1",
    "scale.max_replicas=2",
    "scale.robots_per_replica=2",
    "scale.upscale_delay_s=1",
    "scale.downscale_delay_s=5",
    "scale.drain_s=15",
)


async def until(running: Server, done: Callable[[list[dict]], bool]) -> float:
    """Wait until the living replicas' reports satisfy something; give the seconds."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        try:
            reports = list((await asyncio.to_thread(fleet, running))["replicas"].values())
        except OSError:
            reports = []
        if done([one for one in reports if one["production"] and not one["draining"]]):
            return time.monotonic() - began
        await asyncio.sleep(0.5)
    raise RuntimeError(f"it did not come to that within {PATIENCE_S:g} s:\n{running.log()[-3000:]}")


async def measure(running: Server) -> tuple[list[Robot], float, float]:
    """Give the robots, those that stay first, and the seconds to two replicas and back to one."""
    robots, stayed, gone = [Robot(10 + i) for i in range(MANY)], asyncio.Event(), asyncio.Event()
    living = [asyncio.create_task(robots[0].live(running.url, stayed))]
    await asyncio.sleep(5)
    living += [asyncio.create_task(robot.live(running.url, gone)) for robot in robots[1:]]
    up_s = await until(running, lambda alive: len(alive) == 2)
    # New connections go to the replica with the fewest: let a robot come that it will have.
    late = Robot(30)
    living.append(asyncio.create_task(late.live(running.url, stayed)))
    await until(running, lambda alive: len(alive) == 2 and all(one["connections"] for one in alive))
    gone.set()
    down_s = await until(running, lambda alive: len(alive) == 1)
    await asyncio.sleep(5)
    stayed.set()
    await asyncio.gather(*living)
    return [robots[0], late, *robots[1:]], up_s, down_s


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with server("fixed-20-0@1", *UNBOUNDED, *SCALE) as running:
        robots, up_s, down_s = asyncio.run(measure(running))
    print(f"two replicas after {up_s:.1f} s, one again {down_s:.1f} s after the load had gone")
    for robot in robots:
        print(
            f"robot {robot.number}: {robot.answered} answers, {robot.wrong} wrong, {robot.refused} refused, "
            f"{robot.reconnected} reconnections, longest {1000 * robot.longest_s:.0f} ms"
        )
    if any(robot.wrong or robot.refused or robot.reconnected > 1 for robot in robots):
        raise SystemExit("a robot was answered wrongly, refused, or let go of twice")


if __name__ == "__main__":
    main()
