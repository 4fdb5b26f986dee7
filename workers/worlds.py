"""Know the families of worlds that can be rolled out: how one is built, and how its episodes are planned.

To add a family, write its module under `envs/` and one entry here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.rollout import World


@dataclass(frozen=True)
class Family:
    """One family of worlds.

    Attributes:
        make_world: builds the world of a task; called in the process that steps it.
        plan: plans the episodes of (suite, tasks, episodes per task, seed); pure.
    """

    make_world: Callable[[str], World]
    plan: Callable[[str, Sequence[str], int, int], list[EpisodeSpec]]


def _make_tabletop(task: str) -> World:
    from st4vla.envs.world import TabletopWorld, WorldConfig

    return TabletopWorld(WorldConfig(task=task))


def _plan_tabletop(suite: str, tasks: Sequence[str], episodes: int, seed: int) -> list[EpisodeSpec]:
    from st4vla.envs.suites import plan

    return plan(suite, tasks, episodes, seed)


def _make_dot(task: str) -> World:
    from st4vla.envs.dot_world import DotWorld

    return DotWorld()


def _plan_dot(suite: str, tasks: Sequence[str], episodes: int, seed: int) -> list[EpisodeSpec]:
    from st4vla.envs.dot_world import plan

    return plan(suite, tasks, episodes, seed)


# Functions that import late: a command loads the simulator only in the processes that step it.
FAMILIES = {"tabletop": Family(_make_tabletop, _plan_tabletop), "dot": Family(_make_dot, _plan_dot)}


def family(name: str) -> Family:
    """Give the family of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(f"world is {name!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
