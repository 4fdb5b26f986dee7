"""Plan SimplerEnv's suites: the official episodes of both robots, by name; pure functions of their arguments.

The episodes of a suite are fixed, so a plan's seed does not change them; fewer than all are spread over a task's
variants and grids.
"""

from collections.abc import Sequence

from st4vla.envs.simpler import google_suites, widowx_suites
from st4vla.envs.simpler.assets import AssetTree, find_tree, missing_assets
from st4vla.envs.simpler.cases import Case, resolve
from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import EnvError

SUITES = (*google_suites.SUITES, widowx_suites.SUITE)


def plan(suite: str, tasks: Sequence[str] = (), episodes: int | None = None, seed: int = 0) -> list[EpisodeSpec]:
    """Plan a suite, all of it or `episodes` of each task; `seed` is not used, the official episodes are fixed.

    Raises:
        EnvError: there is no such suite or task, or it has not that many episodes.
    """
    if suite not in SUITES:
        raise EnvError(f"There is no suite {suite!r} of SimplerEnv; choose one of {', '.join(SUITES)}.")
    home = widowx_suites if suite == widowx_suites.SUITE else google_suites
    every = home.plan(suite, tuple(tasks))
    if episodes is None:
        return every
    return [spec for task in dict.fromkeys(spec.task for spec in every) for spec in _some(every, task, episodes)]


def _some(every: Sequence[EpisodeSpec], task: str, count: int) -> list[EpisodeSpec]:
    mine = [spec for spec in every if spec.task == task]
    if not 1 <= count <= len(mine):
        raise EnvError(f"{task} has {len(mine)} official episodes; {count} were asked for.")
    return [mine[number * len(mine) // count] for number in range(count)]


def case_of(spec: EpisodeSpec) -> Case:
    """Give an episode of a plan in the original's words.

    Raises:
        EnvError: it is of no suite of SimplerEnv.
    """
    if spec.suite in (widowx_suites.SUITE, widowx_suites.TRAINING):
        return widowx_suites.case_of(spec)
    return google_suites.case_of(spec)


def training(task: str, index: int) -> EpisodeSpec:
    """Plan training episode `index` of a task, never one that is evaluated.

    Raises:
        EnvError: no robot has that task, or the index is negative.
    """
    if index < 0:
        raise EnvError(f"Training episode {index} does not exist; choose 0 or more.")
    if task in widowx_suites.TASKS:
        return widowx_suites.training(task, index)
    return google_suites.training(task, index)


def scene_of(spec: EpisodeSpec) -> str:
    """Name what an episode's scene is built for: episodes of one name reuse what a world has built."""
    colour = spec.variant.rpartition("/")[2]
    group = "drawers" if spec.task in (google_suites.OPEN, google_suites.CLOSE) else spec.task
    triplet = spec.seed // 12 if spec.task == google_suites.MOVE else ""
    return f"{group}/{colour}/{triplet}"


def check(plan: Sequence[EpisodeSpec], tree: AssetTree | None = None) -> None:
    """Make sure that the files of every episode are there, before anything is built.

    Raises:
        EnvError: some are not; they are named, with how many episodes need them.
    """
    tree = tree or find_tree()
    lacking: dict[str, int] = {}
    for spec in plan:
        for path in missing_assets(resolve(case_of(spec), tree), tree):
            lacking[path] = lacking.get(path, 0) + 1
    if lacking:
        listed = "; ".join(f"{path} ({count} episodes)" for path, count in sorted(lacking.items()))
        raise EnvError(
            f"The asset tree {tree.root} lacks files that the plan needs: {listed}. Run `st4vla assets fetch "
            "simplerenv`, name a tree that has them in ST4VLA_ASSETS, or leave those tasks out."
        )
