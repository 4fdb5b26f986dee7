"""Know the families of worlds that can be rolled out: how one is built, and how its episodes are planned.

To add a family, write its module under `envs/` and one entry here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.rollout.episode import World
from st4vla.workers.rollout.policies import PolicySource

USUAL_EPISODES = 20


@dataclass(frozen=True)
class Family:
    """One family of worlds.

    Attributes:
        make_world: builds a world, in the process that steps it; the argument is a key that `key_of` gave, "" for any.
        plan: plans the episodes of (suite, tasks, episodes per task, seed) and, where `has_variants`, of some variants;
            pure. No tasks means the suite's usual ones, None episodes its usual number, no variants all.
        training: gives training episode number i of a task, never one that is evaluated; pure.
        make_expert: gives the scripted expert of a world, fresh for one episode; None where there is none.
        control_hz: control steps per second.
        suites: names of its suites, by which a command finds the family.
        key_of: which episodes can share a world: those with the same key; pure.
        scene_of: which episodes need the same scene within a world, dear to build; "" where that is cheap; pure.
        check: raises what keeps an episode of a plan from being run here, e.g. assets that are missing.
        robot_of: the robot of a suite's worlds, as their `embodiment` names it, by which a checkpoint's statistics
            and the preset that carries out its chunks are found; "" where worlds name none; pure.
        stop_on_success: whether an episode ends when it first succeeds, rather than being scored at its last step.
        cameras: how many cameras a policy may ask for at most.
        has_variants: whether a plan can be cut to some variants of its tasks.
    """

    make_world: Callable[[str], World]
    plan: Callable[..., list[EpisodeSpec]]
    training: Callable[[str, int], EpisodeSpec]
    make_expert: Callable[[Any], Any] | None
    control_hz: int = 5
    suites: tuple[str, ...] = ()
    key_of: Callable[[EpisodeSpec], str] = lambda spec: ""
    scene_of: Callable[[EpisodeSpec], str] = lambda spec: ""
    check: Callable[[Sequence[EpisodeSpec]], None] = lambda plan: None
    robot_of: Callable[[str], str] = lambda suite: ""
    stop_on_success: bool = True
    cameras: int = 2
    has_variants: bool = False

    def check_policy(self, policy: PolicySource) -> None:
        """Make sure, before anything is started, that a policy can act here.

        Raises:
            ConfigError: it is an expert that there is not, or asks for more cameras than there are.
        """
        if policy.is_expert:
            self.expert()
        if len(policy.cameras) > self.cameras:
            many = ", ".join(policy.cameras)
            raise ConfigError(
                f"The policy asks for the cameras {many}; these suites show {self.cameras}. Of a policy server's keys "
                "leave one out, e.g. 'remote.keys={observation/wrist_image: null}'; of checkpoints choose another."
            )

    def expert(self) -> Callable[[Any], Any]:
        """Give what makes the scripted expert of a world, fresh for one episode.

        Raises:
            ConfigError: there is none.
        """
        if self.make_expert is None:
            raise ConfigError("These worlds have no scripted expert; choose random, a checkpoint, or a policy server.")
        return self.make_expert


def _make_tabletop(task: str) -> World:
    from st4vla.envs.world import TabletopWorld, WorldConfig

    return TabletopWorld(WorldConfig(task=task))


def _plan_tabletop(suite: str, tasks: Sequence[str], episodes: int | None, seed: int) -> list[EpisodeSpec]:
    from st4vla.envs.suites import plan

    return plan(suite, tasks or ("reach", "push"), episodes or USUAL_EPISODES, seed)


def _training_tabletop(task: str, index: int) -> EpisodeSpec:
    from st4vla.envs.suites import make_spec, training_seed

    return make_spec("training", task, training_seed(index))


def _tabletop_expert(world: Any) -> Any:
    from st4vla.envs.experts import Expert

    return Expert(world)


def _make_dot(task: str) -> World:
    from st4vla.envs.dot_world import DotWorld

    return DotWorld()


def _make_sleeping_dot(key: str) -> World:
    from st4vla.envs.dot_world import DotConfig, DotWorld

    return DotWorld(DotConfig(step_s=0.02))


def _plan_dot(suite: str, tasks: Sequence[str], episodes: int | None, seed: int) -> list[EpisodeSpec]:
    from st4vla.envs.dot_world import plan

    return plan(suite, tasks or ("dot",), episodes or USUAL_EPISODES, seed)


def _training_dot(task: str, index: int) -> EpisodeSpec:
    from st4vla.envs.dot_world import training_spec

    return training_spec(task, index)


def _dot_expert(world: Any) -> Any:
    from st4vla.envs.dot_world import DotExpert

    return DotExpert(world)


def _make_simpler(key: str) -> World:
    from st4vla.envs.simpler.world import SimplerWorld

    return SimplerWorld()


def _make_ray_traced(key: str) -> World:
    from st4vla.envs.simpler.world import SimplerWorld, SimplerWorldConfig

    return SimplerWorld(SimplerWorldConfig(ray_traced=True))


def _plan_simpler(
    suite: str, tasks: Sequence[str], episodes: int | None, seed: int, variants: Sequence[str] = ()
) -> list[EpisodeSpec]:
    from st4vla.envs.simpler.suites import plan

    return plan(suite, tasks, episodes, seed, variants)


def _training_simpler(task: str, index: int) -> EpisodeSpec:
    from st4vla.envs.simpler.suites import training

    return training(task, index)


def _simpler_scene(spec: EpisodeSpec) -> str:
    from st4vla.envs.simpler.suites import scene_of

    return scene_of(spec)


def _simpler_robot(suite: str) -> str:
    from st4vla.envs.simpler import widowx_suites

    return "widowx" if suite in (widowx_suites.SUITE, widowx_suites.TRAINING) else "google_robot"


def _check_simpler(plan: Sequence[EpisodeSpec]) -> None:
    from st4vla.envs.simpler.suites import check

    check(plan)


def warm_up(world: World, spec: EpisodeSpec, pictures: bool) -> None:
    """Pay for a world's first reset, and its first picture where there will be any, before work starts."""
    world.reset(spec)
    if pictures:
        world.render_snapshot(world.snapshot())


TABLETOP_SUITES = (
    "seen",
    "unseen_objects",
    "unseen_wording",
    "new_words",
    "long_horizon",
    "moved_object",
    "changed_instruction",
)

SIMPLER_SUITES = (
    "simplerenv_google_vm",
    "simplerenv_google_va",
    "simplerenv_google_va_cameras",
    "simplerenv_widowx",
)

SIMPLER = Family(
    _make_simpler,
    _plan_simpler,
    _training_simpler,
    None,
    suites=SIMPLER_SUITES,
    scene_of=_simpler_scene,
    check=_check_simpler,
    robot_of=_simpler_robot,
    stop_on_success=False,
    cameras=1,
    has_variants=True,
)

# Functions that import late: a command loads the simulator only in the processes that step it.
FAMILIES = {
    "tabletop": Family(_make_tabletop, _plan_tabletop, _training_tabletop, _tabletop_expert, suites=TABLETOP_SUITES),
    "simpler": SIMPLER,
    "dot": Family(_make_dot, _plan_dot, _training_dot, _dot_expert),
    # Takes time and no processor, for trying out faults and many actors.
    "sleeping_dot": Family(_make_sleeping_dot, _plan_dot, _training_dot, _dot_expert),
    # Draws drawers and apples as the official protocol does; needs a GPU that traces rays.
    "simpler_ray_traced": replace(SIMPLER, make_world=_make_ray_traced, suites=()),
}


def family(name: str) -> Family:
    """Give the family of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(f"world is {name!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def family_of(suites: Sequence[str]) -> str:
    """Name the family that has these suites.

    Raises:
        ConfigError: a suite is unknown, or they are of several families, whose worlds no actor can share.
    """
    homes = {}
    for suite in suites:
        found = [name for name, known in FAMILIES.items() if suite in known.suites]
        if not found:
            every = [suite for known in FAMILIES.values() for suite in known.suites]
            raise ConfigError(f"suite {suite!r} is unknown; expected one of {', '.join(every)}.")
        homes[suite] = found[0]
    if len(set(homes.values())) > 1:
        raise ConfigError(f"suite={list(suites)} mixes families of worlds ({homes}); evaluate each family by itself.")
    return next(iter(homes.values()))
