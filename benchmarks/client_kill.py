"""Measure what a robot does when its server is killed: `python -m benchmarks.client_kill`.

A point robot acts at 20 Hz under a server process of its own (the openpi protocol, an answer takes 50 ms). In every
trial the server gets SIGKILL in the middle of a chunk and is started again at once. Measured from the kill: until the
robot holds, and until it executes an action again, which includes the new server's start. Every action the robot was
ever told is checked against its limits.
"""

import argparse
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

ISSUE = 6
LONGEST_S = 60.0


def main() -> None:
    """Run the trials, and record where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--record", action="store_true", help="write the figures to benchmarks/results.json")
    options = parser.parse_args()
    held, again, broken = run(options.trials)
    print(
        f"{options.trials} kills: holding within {max(held):.2f} s; actions again after {np.median(again):.2f} s "
        f"in the median, {max(again):.2f} s at most; {broken} actions outside the limits"
    )
    if options.record:
        record_figures(again, broken, f"python -m benchmarks.client_kill --trials {options.trials} --record")


def run(trials: int) -> tuple[list[float], list[float], int]:
    """Give the seconds to the hold and to the next action of every trial, and the actions outside the limits."""
    from st4vla.platform.ports import free_ports
    from st4vla.serve.client import ClientConfig, RobotClient
    from st4vla.serve.client.point_robot import PointRobot
    from st4vla.serve.safety.embodiment import Embodiment

    port, embodiment, robot = free_ports(1)[0], Embodiment.load("point"), Recorder(PointRobot())
    server, held, again = start(port), [], []
    try:
        with RobotClient(ClientConfig(url=f"ws://127.0.0.1:{port}", robot="kill"), embodiment) as client:
            client.wait_until_connected(LONGEST_S)
            for trial in range(trials):
                moment = client.stats.executed + 6 + trial % 7
                until(client, robot, lambda moment=moment: client.stats.executed >= moment)
                server.send_signal(signal.SIGKILL)
                server.wait()
                killed = time.monotonic()
                server = start(port)
                until(client, robot, lambda: robot.holds_in_a_row)
                held.append(time.monotonic() - killed)
                executed = client.stats.executed
                until(client, robot, lambda before=executed: client.stats.executed > before)
                again.append(time.monotonic() - killed)
    finally:
        server.kill()
        server.wait()
    return held, again, robot.broken(embodiment)


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
        time.sleep(period_s)


class Recorder:
    """A robot that remembers its motion, step by step, a hold being none."""

    def __init__(self, robot: Any) -> None:
        self._robot = robot
        self.steps: list[np.ndarray] = []
        self.holds_in_a_row = 0

    def observe(self) -> Any:
        """Look."""
        return self._robot.observe()

    def apply(self, action: np.ndarray) -> None:
        """Move."""
        self.holds_in_a_row = 0
        self.steps.append(action[:3].astype(np.float64))
        self._robot.apply(action)

    def hold(self) -> None:
        """Stay."""
        self.holds_in_a_row += 1
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
