"""Let a simulated robot act in real time under a policy server, as a real one would: `st4vla robot`.

The world is stepped by the wall clock at its control rate, whatever the server takes; nothing waits for anything.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st4vla.platform.contracts import EpisodeSpec, Observation, PolicySpec
from st4vla.platform.errors import ConfigError
from st4vla.platform.machine import prepare_process
from st4vla.platform.wire.stamps import KEY
from st4vla.serve.client import ClientConfig, RobotClient
from st4vla.serve.client.settings import Pace
from st4vla.serve.safety.embodiment import Embodiment
from st4vla.serve.safety.interventions import InterventionLog
from st4vla.workers.results.intervals import wilson
from st4vla.workers.rollout.episode import World
from st4vla.workers.rollout.worlds import family, warm_up

KEY_VARIABLE = "ST4VLA_API_KEY"


class WorldRobot:
    """A simulated world as a client's robot: an action is one control step of it, and so is a hold."""

    def __init__(self, world: Any, spec: PolicySpec) -> None:
        self._world, self._spec = world, spec

    def observe(self) -> Observation:
        """Render what the policy looks at."""
        return self._world.observe(self._spec)

    def apply(self, action: np.ndarray) -> None:
        """Take one control step."""
        self._world.step(action)

    def hold(self) -> None:
        """Stand for one control step."""
        self._world.step(self._world.hold_action())


@dataclass(frozen=True)
class DriveConfig:
    """What the robot does.

    Attributes:
        world, task, suite, seed: as for `st4vla eval`.
        episodes: how many, one after another.
        connect_s: how long the server is waited for.
    """

    world: str = "tabletop"
    task: str = "reach"
    suite: str = "seen"
    seed: int = 0
    episodes: int = 5
    connect_s: float = 30.0

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; let the robot try at least once.")


@dataclass(frozen=True)
class Tried:
    """One episode: whether it succeeded, its control steps, and those in which the robot had nothing to execute."""

    instruction: str
    success: bool
    steps: int
    waited: int


def main(cfg: Any) -> None:
    """Run `st4vla robot`: build, drive, and print what came of it."""
    from omegaconf import OmegaConf

    prepare_process()
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    drive = DriveConfig(**{name: settings[name] for name in DriveConfig.__dataclass_fields__})
    client = ClientConfig(api_key=read_key(settings["key_file"]), **settings["client"])
    log = InterventionLog(Path(settings["run_dir"]) / "interventions.jsonl")
    robot = RobotClient(client, Embodiment.load(settings["embodiment_from"]), interventions=log)
    worlds = family(drive.world)
    specs = worlds.plan(drive.suite, [drive.task], drive.episodes, drive.seed)
    world = worlds.make_world(worlds.key_of(specs[0]))
    warm_up(world, specs[0], pictures=True)
    try:
        with robot:
            print_tried(run_episodes(robot, world, specs, drive.connect_s))
    finally:
        world.close()
    print_counts(robot)


def read_key(path: str | None) -> str:
    """Give the API key: the first line of a file, else what the environment's ST4VLA_API_KEY holds, else none.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not path:
        return os.environ.get(KEY_VARIABLE, "")
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"key_file={path} cannot be read ({error.strerror}); name a file with the key.") from error


def run_episodes(client: RobotClient, world: Any, specs: Sequence[EpisodeSpec], connect_s: float) -> list[Tried]:
    """Run episodes one after another under one session.

    Raises:
        WireError: the server is not there, or refuses for good.
        ConfigError: its policy does not fit the robot.
    """
    told = client.wait_until_connected(connect_s)
    robot, tried = WorldRobot(world, policy_spec(told, client.embodiment)), []
    for spec in specs:
        world.reset(spec)
        tried.append(run_episode(client, robot, world))
        client.end_episode(tried[-1].success)
    return tried


def run_episode(client: RobotClient, robot: WorldRobot, world: World) -> Tried:
    """Run one episode in real time, until it succeeds or its control steps are used up."""
    executed, instruction = client.stats.executed, world.instruction
    pace = Pace(client.embodiment.period_s, time.monotonic)
    while not world.progress().success and world.steps < world.max_steps:
        command = client.tick(robot.observe)
        robot.hold() if command.action is None else robot.apply(command.action)
        seconds = pace.next()
        client.stats.overruns += seconds < 0
        time.sleep(max(seconds, 0.0))
    return Tried(instruction, world.progress().success, world.steps, world.steps - (client.stats.executed - executed))


def policy_spec(told: Mapping[str, Any], embodiment: Embodiment) -> PolicySpec:
    """Give what the served policy wants to see, from the server's metadata.

    Raises:
        ConfigError: the server does not say.
    """
    ours = told.get(KEY) or {}
    if "cameras" not in ours:
        raise ConfigError("the server does not say which cameras its policy needs; a simulated robot needs our server.")
    return PolicySpec(
        cameras=tuple(ours["cameras"]),
        image_size=int(ours["image_size"]),
        state_dim=embodiment.state_dim,
        action_dim=embodiment.action_dim,
        chunk_length=int(told["action_horizon"]),
        control_hz=embodiment.control_hz,
        statistics_key=str(ours.get("statistics_key", embodiment.name)),
    )


def print_tried(tried: list[Tried]) -> None:
    """Print the episodes."""
    from rich.console import Console
    from rich.table import Table

    table = Table("instruction", "success", "steps", "without an action")
    for one in tried:
        table.add_row(one.instruction, "yes" if one.success else "no", str(one.steps), str(one.waited))
    Console().print(table)
    Console().print(f"success {wilson(sum(one.success for one in tried), len(tried))}")


def print_counts(client: RobotClient) -> None:
    """Print how the server answered."""
    from rich.console import Console

    stats, latency = client.stats, np.array(client.stats.latency_ms or [np.nan])
    Console().print(
        f"{stats.replies} answers, {np.median(latency):.0f} ms in the median, {latency.max():.0f} ms at most; "
        f"delay {client.delay.steps} steps; {stats.late} steps late, {stats.overruns} overrun, {stats.clamps} clamped; "
        f"{stats.losses} connections lost; refused {stats.refusals or 'nothing'}"
    )
