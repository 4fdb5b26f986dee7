"""Know the families of worlds that can be rolled out: how one is built, and how its episodes are planned.

To add a family, write its module under `envs/` and one entry here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.rollout import World


@dataclass(frozen=True)
class Family:
    """One family of worlds.

    Attributes:
        make_world: builds a world, in the process that steps it; the argument is a task, or "" for any.
        plan: plans the episodes of (suite, tasks, episodes per task, seed); pure.
        training: gives training episode number i of a task, never one that is evaluated; pure.
        make_expert: gives the scripted expert of a world, fresh for one episode.
        control_hz: control steps per second.
    """

    make_world: Callable[[str], World]
    plan: Callable[[str, Sequence[str], int, int], list[EpisodeSpec]]
    training: Callable[[str, int], EpisodeSpec]
    make_expert: Callable[[Any], Any]
    control_hz: int = 5


def _make_tabletop(task: str) -> World:
    from st4vla.envs.world import TabletopWorld, WorldConfig

    return TabletopWorld(WorldConfig(task=task))


def _plan_tabletop(suite: str, tasks: Sequence[str], episodes: int, seed: int) -> list[EpisodeSpec]:
    from st4vla.envs.suites import plan

    return plan(suite, tasks, episodes, seed)


def _training_tabletop(task: str, index: int) -> EpisodeSpec:
    from st4vla.envs.suites import make_spec, training_seed

    return make_spec("training", task, training_seed(index))


def _tabletop_expert(world: Any) -> Any:
    from st4vla.envs.experts import Expert

    return Expert(world)


def _make_dot(task: str) -> World:
    from st4vla.envs.dot_world import DotWorld

    return DotWorld()


def _plan_dot(suite: str, tasks: Sequence[str], episodes: int, seed: int) -> list[EpisodeSpec]:
    from st4vla.envs.dot_world import plan

    return plan(suite, tasks, episodes, seed)


def _training_dot(task: str, index: int) -> EpisodeSpec:
    from st4vla.envs.dot_world import training_spec

    return training_spec(task, index)


def _dot_expert(world: Any) -> Any:
    from st4vla.envs.dot_world import DotExpert

    return DotExpert(world)


def warm_up(worlds: Family, task: str, pictures: bool) -> World:
    """Build a world and pay for its first reset, and its first picture where there will be any, before work starts."""
    world = worlds.make_world("")
    world.reset(worlds.training(task, 0))
    if pictures:
        world.render_snapshot(world.snapshot())
    return world


# Functions that import late: a command loads the simulator only in the processes that step it.
FAMILIES = {
    "tabletop": Family(_make_tabletop, _plan_tabletop, _training_tabletop, _tabletop_expert),
    "dot": Family(_make_dot, _plan_dot, _training_dot, _dot_expert),
}


def family(name: str) -> Family:
    """Give the family of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(f"world is {name!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
