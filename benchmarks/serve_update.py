"""Change what is served under load: a canary, its promotion, a rollback, an update, and a new deployment of everything.

    python -m benchmarks.serve_update [--record] [--seconds N]

Eight robots ask at 5 Hz, each with its own session. An answer is wrong if it is another robot's or of a model that was
not to be served, a reply lost if a request is never answered, after one reconnection, with its own sequence number.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass, field

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from benchmarks.results import record
from benchmarks.serving import UNBOUNDED, Server, call_fleet, libero_message, redeploy, server
from st4vla.platform.wire import openpi
from st4vla.platform.wire.stamps import KEY

ROBOTS, PERIOD_S = 8, 0.2
PATIENCE_S = 60.0


@dataclass
class Robot:
    """One robot's story."""

    number: int
    asked: int = 0
    answered: int = 0
    wrong: int = 0
    refused: int = 0
    reconnected: int = 0
    versions: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    async def live(self, url: str, ended: asyncio.Event) -> None:
        """Ask until told to end; a request that got no answer is sent again over a new connection."""
        while not ended.is_set():
            try:
                async with connect(url, compression=None, max_size=None) as line:
                    await line.recv()
                    while not ended.is_set():
                        await self.ask(line)
                        await asyncio.sleep(PERIOD_S)
            except (ConnectionClosed, InvalidHandshake, OSError):
                self.reconnected += 1
                await asyncio.sleep(0.05)

    async def ask(self, line: object) -> None:
        """Send one request and check its answer."""
        name = f"robot-{self.number}"
        sequence = self.answered
        stamp = {"robot": name, "session": name, "sequence": sequence}
        began = time.perf_counter()
        self.asked += 1
        await line.send(libero_message(self.number, st4vla=stamp))  # pyright: ignore[reportAttributeAccessIssue]
        answer = openpi.unpack(bytes(await asyncio.wait_for(line.recv(decode=False), PATIENCE_S)))  # pyright: ignore[reportAttributeAccessIssue]
        if "error" in answer:
            self.refused += 1
            return
        reply = answer[KEY]
        self.wrong += (
            answer["actions"][0, 0] != self.number or reply["sequence"] != sequence or reply["session"] != name
        )
        self.answered += 1
        self.versions.append(reply["model_version"].partition("@")[2])
        self.longest_s = max(self.longest_s, time.perf_counter() - began)


async def change(running: Server, seconds: float) -> list[str]:
    """Make the changes one after another."""
    log = []
    for action, details in (
        ("canary", {"model": "fixed-20-0@2", "share": 0.25, "robots": ["robot-0"]}),
        ("promote", {}),
        ("rollback", {}),
        ("update", {"model": "fixed-20-0@3"}),
    ):
        await asyncio.sleep(seconds)
        began = time.perf_counter()
        state = await asyncio.to_thread(call_fleet, running, action, details)
        log.append(f"{action}: {state['routes']['production']} after {time.perf_counter() - began:.2f} s")
    await asyncio.sleep(seconds)
    began = time.perf_counter()
    await asyncio.to_thread(redeploy, running)
    log.append(f"a new deployment: {time.perf_counter() - began:.1f} s")
    await asyncio.sleep(seconds)
    return log


async def measure(running: Server, seconds: float) -> tuple[list[Robot], list[str]]:
    """Let the robots live while things change."""
    robots, ended = [Robot(10 + i) for i in range(ROBOTS)], asyncio.Event()
    robots[0].number = 0
    living = [asyncio.create_task(robot.live(running.url, ended)) for robot in robots]
    log = await change(running, seconds)
    ended.set()
    await asyncio.gather(*living)
    return robots, log


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    parser.add_argument("--seconds", type=float, default=10.0, help="between changes")
    options = parser.parse_args()
    with server("fixed-20-0@1", *UNBOUNDED, "scale.min_replicas=2", "scale.max_replicas=2") as running:
        robots, log = asyncio.run(measure(running, options.seconds))
    print("\n".join(log))
    for robot in robots:
        runs = [v for i, v in enumerate(robot.versions) if i == 0 or robot.versions[i - 1] != v]
        print(
            f"robot {robot.number}: {robot.answered} answers, {robot.wrong} wrong, {robot.refused} refused, "
            f"{robot.reconnected} reconnections, models {' '.join(runs)}, longest {1000 * robot.longest_s:.0f} ms"
        )
    bad = sum(robot.wrong + robot.refused for robot in robots)
    most = max(robot.reconnected for robot in robots)
    if options.record:
        command = "python -m benchmarks.serve_update --record"
        record("update, canary and rollback under load, wrong or lost replies", 6, bad, "replies", "<= 0", command)
        record("update, canary and rollback under load, reconnections", 6, most, "of one robot", "<= 1", command)


if __name__ == "__main__":
    main()
