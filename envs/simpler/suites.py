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


def plan(
    suite: str, tasks: Sequence[str] = (), episodes: int | None = None, seed: int = 0, variants: Sequence[str] = ()
) -> list[EpisodeSpec]:
    """Plan a suite, all of it or `episodes` of each task; `seed` is not used, the official episodes are fixed.

    Args:
        variants: keeps those of that name, "top/brighter", or of one part of it, "top" or "brighter"; none keeps all.

    Raises:
        EnvError: there is no such suite, task or variant, or it has not that many episodes.
    """
    if suite not in SUITES:
        raise EnvError(f"There is no suite {suite!r} of SimplerEnv; choose one of {', '.join(SUITES)}.")
    home = widowx_suites if suite == widowx_suites.SUITE else google_suites
    every = _of_variants(home.plan(suite, tuple(tasks)), variants)
    if episodes is None:
        return every
    return [spec for task in dict.fromkeys(spec.task for spec in every) for spec in _some(every, task, episodes)]


def _names(spec: EpisodeSpec) -> tuple[str, ...]:
    """Give the words by which an episode's variant is chosen, the narrowest last."""
    return (*reversed(spec.variant.split("/")), spec.variant)


def _of_variants(every: Sequence[EpisodeSpec], variants: Sequence[str]) -> list[EpisodeSpec]:
    known = dict.fromkeys(name for spec in every for name in _names(spec))
    unknown = [name for name in variants if name not in known]
    if unknown:
        short = ", ".join(name for name in known if "/" not in name)
        raise EnvError(
            f"There is no variant {unknown[0]!r} of {', '.join(dict.fromkeys(spec.task for spec in every))} in "
            f"{every[0].suite}; variants takes some of {short}, or whole names such as {every[0].variant}."
        )
    return [spec for spec in every if not variants or set(_names(spec)) & set(variants)]


def _some(every: Sequence[EpisodeSpec], task: str, count: int) -> list[EpisodeSpec]:
    mine = [spec for spec in every if spec.task == task]
    if not 1 <= count <= len(mine):
        raise EnvError(f"{task} has {len(mine)} official episodes to choose from; {count} were asked for.")
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
    poor: list[EpisodeSpec] = []
    for spec in plan:
        missing = missing_assets(resolve(case_of(spec), tree), tree)
        poor += [spec] if missing else []
        for path in missing:
            lacking[path] = lacking.get(path, 0) + 1
    if lacking:
        listed = "; ".join(f"{path} ({count} episodes)" for path, count in sorted(lacking.items()))
        raise EnvError(
            f"The asset tree {tree.root} lacks files that the plan needs: {listed}. Run `st4vla assets fetch "
            "simplerenv`, name a tree that has them in ST4VLA_ASSETS, or leave out what needs them: "
            f"{_leaving_out(plan, poor)}."
        )


def _leaving_out(plan: Sequence[EpisodeSpec], poor: Sequence[EpisodeSpec]) -> str:
    """Say by which settings the episodes that lack files are left out."""
    without = {_names(spec)[0] for spec in poor}
    rest = dict.fromkeys(name for spec in plan if (name := _names(spec)[0]) not in without)
    if rest and len({spec.suite for spec in plan}) == 1:
        return f"variants=[{','.join(rest)}] needs none of them"
    return "choose with variants= or tasks="
