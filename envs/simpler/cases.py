"""Say which episode of the original is meant, in the original's own words, and resolve it to a setup.

A case is what a recording's `meta.case` holds: an environment id, the arguments it was made with, the options it was
reset with. Resolving is pure: the same case gives the same setup, draws of the original's random generator included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.setup import Setup
from st4vla.platform.errors import EnvError

FIRST_SEED = 2022  # with which the original, and ManiSkill 3, reset an environment that they make


def next_seed(seed: int) -> int:
    """Give the seed of the original's episode that is reset without one, after an episode of `seed`."""
    return int(np.random.RandomState(seed).randint(2**32))


# What an environment of the original that is reset without a seed right after it was made draws with.
UNSEEDED = next_seed(FIRST_SEED)


@dataclass(frozen=True)
class Case:
    """One episode of the original.

    Attributes:
        env_id: e.g. "GraspSingleOpenedCokeCanInScene-v0".
        build: the arguments of the environment.
        robot: the reset's `robot_init_options`.
        obj: the reset's `obj_init_options`.
        options: its other reset options, e.g. `model_id`.
        seed: the reset's seed; without one the original draws one, always the same in a new environment.
    """

    env_id: str
    build: Mapping[str, Any] = field(default_factory=dict)
    robot: Mapping[str, Any] = field(default_factory=dict)
    obj: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = UNSEEDED

    def rng(self) -> np.random.RandomState:
        """Start the original's generator of this episode anew, as each stage of its reset does."""
        return np.random.RandomState(self.seed)


def case_from_meta(case: Mapping[str, Any], seed: int = 0) -> Case:
    """Read the `meta.case` of a recording, which was reset with that seed unless it says otherwise.

    Raises:
        EnvError: it names no environment.
    """
    if not isinstance(case.get("env_id"), str):
        raise EnvError(f"The case {dict(case)} names no env_id; expected one of the original's environment ids.")
    reset = dict(case.get("reset_options") or case.get("options") or {})
    robot = {**(reset.pop("robot_init_options", None) or {}), **(case.get("robot") or {})}
    obj = {**(reset.pop("obj_init_options", None) or {}), **(case.get("obj") or {})}
    reset.pop("reconfigure", None)
    build = {**(case.get("make") or {}), **(case.get("additional_env_build_kwargs") or {})}
    return Case(case["env_id"], build, robot, obj, reset, int(case.get("seed", seed)))


Resolver = Callable[[Case, AssetTree], Setup]


def resolvers() -> dict[str, Any]:
    """Give the function that resolves each of the original's environment ids."""
    from st4vla.envs.simpler import drawer, move_near, pick, put_on

    return {**pick.RESOLVERS, **move_near.RESOLVERS, **drawer.RESOLVERS, **put_on.RESOLVERS}


def resolve(case: Case, tree: AssetTree) -> Setup:
    """Work out what an episode is built of and how it is set out.

    Raises:
        EnvError: the environment or one of its options is not known, or the model database is missing.
    """
    known = resolvers()
    if case.env_id not in known:
        raise EnvError(f"There is no environment {case.env_id!r}; expected one of {', '.join(known)}.")
    return known[case.env_id](case, tree)
