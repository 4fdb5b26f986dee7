"""Kill a replica, Serve's proxy and the gate under load, in turn; measure how long robots go without actions.

    python -m benchmarks.serve_kill [--record] [--trials N]

Two replicas run, four robots ask at 10 Hz and reconnect by themselves. What counts is the longest time from a SIGKILL
to the moment at which every robot has been answered again.
"""

import argparse
import asyncio
import time

from benchmarks.results import record
from benchmarks.serve_update import Robot
from benchmarks.serving import UNBOUNDED, Server, fleet, members, server

ROBOTS, SETTLE_S, PATIENCE_S = 4, 3.0, 60.0
VICTIMS = {"replica": "ServeReplica", "Serve's proxy": "haproxy.cfg", "gate": "gate.cfg"}


async def strike(running: Server, robots: list[Robot], victim: str) -> float:
    """Kill and give the seconds until every robot has an answer to a request sent after that."""
    processes = members(running, VICTIMS[victim])
    if not processes:
        raise RuntimeError(f"there is no {victim} to kill:\n{running.log()[-2000:]}")
    # Of two replicas one; of a proxy every process, since a reloaded HAProxy leaves its old one for a while.
    for process in processes[:1] if victim == "replica" else processes:
        process.kill()
    struck = time.perf_counter()
    # One answer may have been on its way; the second was asked for after the blow.
    wanted = [robot.answered + 2 for robot in robots]
    while any(robot.answered < least for robot, least in zip(robots, wanted, strict=True)):
        if time.perf_counter() - struck > PATIENCE_S:
            raise RuntimeError(f"not every robot was answered within {PATIENCE_S:g} s after the {victim} was killed")
        await asyncio.sleep(0.01)
    return time.perf_counter() - struck


async def recovered(running: Server) -> None:
    """Wait until two replicas report again, so that no trial meets the ruins of the last."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        await asyncio.sleep(0.5)
        alive = {process.pid for process in members(running, "ServeReplica")}
        try:
            reports = await asyncio.to_thread(fleet, running)
        except OSError:
            continue
        serving = [name for name in reports["replicas"] if int(name.rsplit("-", 2)[1]) in alive]
        if len(serving) >= 2:
            return


async def measure(running: Server, trials: int) -> dict[str, list[float]]:
    """Give the seconds of each trial, by what was killed."""
    robots, ended = [Robot(10 + i) for i in range(ROBOTS)], asyncio.Event()
    living = [asyncio.create_task(robot.live(running.url, ended)) for robot in robots]
    times: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    for trial in range(trials):
        await recovered(running)
        await asyncio.sleep(SETTLE_S)
        victim = list(VICTIMS)[trial % len(VICTIMS)]
        times[victim].append(await strike(running, robots, victim))
        print(f"{victim}: actions again after {times[victim][-1]:.2f} s", flush=True)
    ended.set()
    await asyncio.gather(*living)
    wrong = sum(robot.wrong for robot in robots)
    if wrong:
        raise RuntimeError(f"{wrong} answers were another robot's")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    with server("fixed-20-0@1", *UNBOUNDED, "scale.min_replicas=2", "scale.max_replicas=2") as running:
        times = asyncio.run(measure(running, options.trials))
    for victim, seconds in times.items():
        if seconds:
            print(f"{victim}: {len(seconds)} trials, longest {max(seconds):.2f} s")
    if options.record:
        for victim, seconds in times.items():
            command = "python -m benchmarks.serve_kill --record"
            goal = "report" if victim == "Serve's proxy" else "<= 5"
            record(f"SIGKILL of the {victim}, actions again", 6, round(max(seconds), 2), "s", goal, command)


if __name__ == "__main__":
    main()
