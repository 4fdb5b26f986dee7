"""Measure what an answer's delay costs on *reach*: real-time chunking against waiting against no delay.

    python -m benchmarks.realtime_chunking runs/demo/action/checkpoint

The client, the policy and the inpainting are those that serve robots; only the wire is cut out, and with it every
clock: an answer arrives a number of control steps after its picture was taken, so no figure depends on how fast the
machine is. 300 ms at 5 Hz are 1.5 control steps; the chunk can be executed from the second on. All arms run the same
scenes with the same noise keys, and have the same number of control steps, those spent waiting included: 25, or 5 s,
which is long for a reach of 2 to 3 s. Success within 3 s says more of what a delay costs.

    none       the answer is there at once
    realtime   the robot goes on with the old chunk, and the new one continues it (frozen rows, soft mask)
    switch     as realtime, but the new chunk knows nothing of the old one
    wait       the robot stands until the answer is there
"""

import argparse
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from st4vla.platform.machine import prepare_process

ISSUE = 6
DELAY_S = 0.3
LONGER_S = (0.6, 0.8)
SOON_S = 3.0


class SimulatedLink:
    """A server whose answers come a number of control steps after they were asked for."""

    def __init__(self, policy: Any, seed: int, delay: int, continues: bool) -> None:
        self.is_up = True
        self.step = 0
        self._policy, self._seed, self._delay, self._continues = policy, seed, delay, continues
        self._events: deque[tuple[int, Any]] = deque()

    def start(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def send(self, ticket: int, message: Mapping[str, Any]) -> None:
        """Answer now, to be delivered later."""
        from st4vla.serve.client.link import Reply

        answer = act(self._policy, message, (self._seed, ticket - 1), self._continues)
        self._events.append((self.step + self._delay, Reply(ticket, {"actions": answer})))

    def poll(self) -> Any:
        """Deliver what is due."""
        if self._events and self._events[0][0] <= self.step:
            return self._events.popleft()[1]
        return None


def act(policy: Any, message: Mapping[str, Any], noise_key: tuple[int, int], continues: bool) -> np.ndarray:
    """Give the policy's chunk for a request, continuing the old one if the request announces a delay."""
    from st4vla.platform.contracts import Observation
    from st4vla.platform.policy.realtime import Inpainting, continuation
    from st4vla.platform.wire.stamps import KEY, RequestStamp

    spec = policy.spec
    stamp = RequestStamp.read(message[KEY])
    images = {camera: message[f"images/{camera}"] for camera in spec.cameras}
    seen = Observation(images, message["state"], message["prompt"])
    kept = None
    if continues and stamp.remaining is not None:
        kept = continuation(stamp.remaining, stamp.delay_steps, spec.chunk_length)
    scale = policy.processor.normalizer(spec.statistics_key)
    guide = Inpainting.of(kept, scale, spec.action_form) if kept else None
    actions = policy.actions([seen], policy.plan([seen]), [noise_key], [guide])[0].actions
    return kept.keep_frozen(actions) if kept else actions


def run_episode(world: Any, policy: Any, spec: Any, arm: str, delay: int, execute: int) -> dict[str, float]:
    """Run one episode; give its success, its steps, and what the client counted."""
    from st4vla.serve.client import ClientConfig, RobotClient
    from st4vla.serve.safety.embodiment import Embodiment
    from st4vla.workers.robot import WorldRobot

    world.reset(spec)
    link: Any = SimulatedLink(policy, spec.seed, delay, arm == "realtime")
    chunking = "wait" if arm == "wait" else "realtime"
    config = ClientConfig(
        chunking=chunking, execute_steps=execute, delay_warmup=0, first_delay_steps=delay, deadline_ms=0
    )
    client = RobotClient(config, Embodiment.load(policy.spec.statistics_key), link, clock=lambda: 0.0)
    robot, actions, waited = WorldRobot(world, policy.spec), [], 0
    while not world.progress().success and world.steps < world.max_steps:
        command = client.tick(robot.observe)
        robot.hold() if command.action is None else robot.apply(command.action)
        waited += command.why != "chunk"
        actions.append(np.zeros(3) if command.action is None else command.action[:3])
        link.step += 1
    jumps = np.linalg.norm(np.diff(actions, axis=0), axis=1)
    return {
        "success": float(world.progress().success),
        "soon": float(world.progress().success and world.steps <= SOON_S * policy.spec.control_hz),
        "steps": float(world.steps),
        "waited": float(waited),
        "clamps": float(client.stats.clamps),
        "jump_mm": 1000 * float(np.mean(jumps)) if len(jumps) else 0.0,
    }


def measure(
    checkpoint: str, episodes: int, execute: int, delays_s: Sequence[float], seed: int, every: int = 20
) -> dict[Any, list]:
    """Run every arm over the same scenes, the arms taking turns; every so many scenes, say how it stands."""
    import torch

    from st4vla.platform.checkpoint import load_policy
    from st4vla.workers.rollout.progress import EpisodeProgress
    from st4vla.workers.rollout.worlds import family, warm_up

    torch.set_num_threads(1)
    policy = load_policy(checkpoint)
    worlds = family("tabletop")
    specs = worlds.plan("seen", ["reach"], episodes, seed)
    world = worlds.make_world(worlds.key_of(specs[0]))
    warm_up(world, specs[0], pictures=True)
    arms = [("none", 0.0)] + [(arm, delay) for delay in delays_s for arm in ("realtime", "switch", "wait")]
    rows: dict[Any, list] = {arm: [] for arm in arms}
    with EpisodeProgress("episodes", episodes * len(arms)) as progress:
        for done, spec in enumerate(specs):
            if done and done % every == 0:
                report(rows)
            for arm, delay_s in arms:
                delay = math.ceil(delay_s * policy.spec.control_hz - 1e-9)
                rows[arm, delay_s].append(run_episode(world, policy, spec, arm, delay, execute))
                progress.add(rows[arm, delay_s][-1])
    world.close()
    return rows


def report(rows: Mapping[Any, list]) -> None:
    """Print a table: success with its interval, the difference to no delay, pair by pair, and what the robot did."""
    from rich.console import Console
    from rich.table import Table

    from st4vla.workers.results.intervals import wilson

    table = Table("arm", "delay ms", "success", "points less", "within 3 s", "steps", "waited", "jump mm", "clamps")
    reference = np.array([row["success"] for row in rows["none", 0.0]])
    for (arm, delay_s), found in rows.items():
        success = np.array([row["success"] for row in found])
        means = {name: np.mean([row[name] for row in found]) for name in ("steps", "waited", "jump_mm", "clamps")}
        table.add_row(
            arm,
            f"{1000 * delay_s:.0f}",
            str(wilson(int(success.sum()), len(success))),
            f"{100 * (reference - success).mean():.1f}",
            str(wilson(int(sum(row["soon"] for row in found)), len(found))),
            *(f"{means[name]:.2f}" for name in ("steps", "waited", "jump_mm", "clamps")),
        )
    Console().print(table)


def record_figures(rows: Mapping[Any, list], command: str) -> None:
    """Write the issue's figures."""
    from benchmarks.results import record

    rates = {arm: 100 * float(np.mean([row["success"] for row in found])) for arm, found in rows.items()}
    none = rates["none", 0.0]
    for arm, delay_s in rates:
        if arm in ("realtime", "wait"):
            goal = "<= 5" if (arm, delay_s) == ("realtime", DELAY_S) else "report"
            name = f"reach with {1000 * delay_s:.0f} ms delay, {arm}: success less than without delay"
            record(name, ISSUE, round(none - rates[arm, delay_s], 1), "points", goal, command)
    lead = rates["realtime", DELAY_S] - rates["wait", DELAY_S]
    record("reach with 300 ms delay: real-time chunking over waiting", ISSUE, round(lead, 1), "points", ">= 0", command)
    for arm, found in rows.items():
        if arm[0] != "switch":
            soon = 100 * float(np.mean([row["soon"] for row in found]))
            name = f"reach with {1000 * arm[1]:.0f} ms delay, {arm[0]}: success within 3 s"
            record(name, ISSUE, round(soon, 1), "%", "report", command)
    record("reach without delay: success", ISSUE, round(none, 1), "%", "report", command)


def main() -> None:
    """Measure, and record where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkpoint", nargs="?", default="runs/demo/action/checkpoint")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--execute", type=int, default=4, help="actions of a chunk before the next is asked for")
    parser.add_argument("--longer", action="store_true", help="longer delays as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the figures to benchmarks/results.json")
    options = parser.parse_args()
    prepare_process()
    delays = (DELAY_S, *LONGER_S) if options.longer else (DELAY_S,)
    rows = measure(options.checkpoint, options.episodes, options.execute, delays, options.seed)
    report(rows)
    if options.record:
        longer = " --longer" if options.longer else ""
        record_figures(rows, f"python -m benchmarks.realtime_chunking --episodes {options.episodes}{longer} --record")


if __name__ == "__main__":
    main()
