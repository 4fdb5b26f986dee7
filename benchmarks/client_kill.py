"""Measure what a robot does when its server is killed: `python -m benchmarks.client_kill`.

A point robot acts at 20 Hz under a server process of its own (the openpi protocol, an answer takes 50 ms). In every
trial the server gets SIGKILL in the middle of a chunk and is started again at once. A trial ends with the first action
of an answer that the new server gave; how long that took since the kill, the new server's start included, is the
figure. Until then the robot executes what it has and then brakes and holds; where the new server is there before the
last action is used up it has nothing to hold for, and the trial says so. In either case every step the robot took,
braking and standing included, is checked against its limits.
"""

import argparse
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

ISSUE = 6
LONGEST_S = 60.0


@dataclass(frozen=True)
class Trial:
    """What one kill led to.

    Attributes:
        again_s: from the kill to the first action of an answer of the new server.
        held_s: from the kill to the first step on which the robot braked or stood; None where its actions lasted.
        without_s: the longest time from one action to the next.
    """

    again_s: float
    held_s: float | None
    without_s: float


def main() -> None:
    """Run the trials, and record where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--record", action="store_true", help="write the figures to benchmarks/results.json")
    options = parser.parse_args()
    trials, broken = run(options.trials)
    again = [trial.again_s for trial in trials]
    held = [trial.held_s for trial in trials if trial.held_s is not None]
    print(
        f"{len(trials)} kills: {len(held)} times the robot held, {len(trials) - len(held)} times its actions lasted; "
        f"acting for the new server after {np.median(again):.2f} s in the median, {max(again):.2f} s at most; "
        f"without an action for {max(trial.without_s for trial in trials):.2f} s at most; "
        f"{broken} steps outside the limits"
    )
    if options.record:
        record_figures(again, broken, f"python -m benchmarks.client_kill --trials {options.trials} --record")


def run(count: int) -> tuple[list[Trial], int]:
    """Give every trial, and the steps outside the limits."""
    from st4vla.platform.ports import free_ports
    from st4vla.serve.client import ClientConfig, RobotClient
    from st4vla.serve.client.point_robot import PointRobot
    from st4vla.serve.safety.embodiment import Embodiment

    port, embodiment, robot = free_ports(1)[0], Embodiment.load("point"), Recorder(PointRobot())
    server, trials = start(port), []
    try:
        with RobotClient(ClientConfig(url=f"ws://127.0.0.1:{port}", robot="kill"), embodiment) as client:
            client.wait_until_connected(LONGEST_S)
            for number in range(count):
                moment = client.stats.executed + 6 + number % 7
                until(client, robot, lambda moment=moment: client.stats.executed >= moment)
                server.send_signal(signal.SIGKILL)
                server.wait()
                killed = time.monotonic()
                server = start(port)
                trials.append(watch(client, robot, killed))
    finally:
        server.kill()
        server.wait()
    return trials, robot.broken(embodiment)


def watch(client: Any, robot: "Recorder", killed: float) -> Trial:
    """Let the robot act until it executes what the new server told it.

    The first reply behind the new connection is the new server's own: whatever the old one sent was read before the
    loss was seen.
    """
    connections, first_step = client.stats.connections, len(robot.times)
    until(client, robot, lambda: client.stats.connections > connections)
    replies = client.stats.replies
    until(client, robot, lambda: client.stats.replies > replies)
    executed = client.stats.executed
    until(client, robot, lambda: client.stats.executed > executed)
    steps = robot.times[first_step:]
    acted = [killed, *(at for at, moved in steps if moved)]
    held = next((at - killed for at, moved in steps if not moved), None)
    return Trial(acted[-1] - killed, held, float(np.diff(acted).max()))


def start(port: int) -> subprocess.Popen[bytes]:
    """Start a server process."""
    return subprocess.Popen([sys.executable, "-m", "st4vla.serve.client.point_server", "--port", str(port)])


def until(client: Any, robot: "Recorder", done: Any) -> None:
    """Let the robot act until something holds.

    Raises:
        TimeoutError: it did not come to pass.
    """
    end, period_s = time.monotonic() + LONGEST_S, client.embodiment.period_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came of it within {LONGEST_S:g} s: {client.stats}")
        command = client.tick(robot.observe)
        robot.hold() if command.action is None else robot.apply(command.action)
        robot.times.append((time.monotonic(), command.why == "chunk"))
        time.sleep(period_s)


class Recorder:
    """A robot that remembers its motion, step by step, a hold being none; and when it acted as the server said."""

    def __init__(self, robot: Any) -> None:
        self._robot = robot
        self.steps: list[np.ndarray] = []
        self.times: list[tuple[float, bool]] = []

    def observe(self) -> Any:
        """Look."""
        return self._robot.observe()

    def apply(self, action: np.ndarray) -> None:
        """Move."""
        self.steps.append(action[:3].astype(np.float64))
        self._robot.apply(action)

    def hold(self) -> None:
        """Stay."""
        self.steps.append(np.zeros(3))
        self._robot.hold()

    def broken(self, embodiment: Any) -> int:
        """Count the control steps whose speed, acceleration or jerk was outside the limits."""
        part, hz = embodiment.parts[0], embodiment.control_hz
        moved = np.concatenate([np.zeros((3, 3)), self.steps])
        rates = [
            np.linalg.norm(np.diff(moved, n, axis=0)[-len(self.steps) :], axis=1) * hz ** (n + 1) for n in range(3)
        ]
        limits = (part.velocity[0], part.acceleration[0], part.jerk[0])
        return int(sum((rate > 1.001 * limit).sum() for rate, limit in zip(rates, limits, strict=True)))


def record_figures(again: list[float], broken: int, command: str) -> None:
    """Write the figures."""
    from benchmarks.results import record

    what = "robot client, server killed and started again"
    record(f"{what}: actions again, the slowest of {len(again)}", ISSUE, round(max(again), 2), "s", "<= 5", command)
    record(f"{what}: actions outside the limits", ISSUE, broken, "actions", "<= 0", command)


if __name__ == "__main__":
    main()
