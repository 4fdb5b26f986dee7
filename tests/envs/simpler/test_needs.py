"""What `st4vla assets check` says of a tree is what the plans of the suites find in it; needs ST4VLA_ASSETS."""

import os
from pathlib import Path

import pytest

from st4vla.envs.simpler import suites
from st4vla.envs.simpler.assets import find_tree, missing_assets
from st4vla.envs.simpler.cases import resolve
from st4vla.platform.assets import tree as trees
from st4vla.platform.assets.needs import NEEDS, files_for, readiness

ASSETS = Path(os.environ.get("ST4VLA_ASSETS", ""), "data", "robots")
pytestmark = pytest.mark.skipif(not ASSETS.is_dir(), reason="ST4VLA_ASSETS names no tree of assets")


def test_every_suite_of_the_plans_is_known_to_the_check() -> None:
    assert set(NEEDS) == set(suites.SUITES)


@pytest.mark.parametrize("suite", suites.SUITES)
def test_the_check_and_the_plan_miss_the_same_files(suite: str) -> None:
    tree = find_tree()
    setups = {resolve(suites.case_of(spec), tree).build: spec for spec in suites.plan(suite)}
    planned = {
        path.removeprefix("data/")
        for spec in setups.values()
        for path in missing_assets(resolve(suites.case_of(spec), tree), tree)
    }
    standings = trees.survey(trees.AssetTree(tree.root), files_for((suite,)))
    lacking = {place for row in readiness(standings, (suite,)) for place in row.lacking}
    assert lacking == planned
