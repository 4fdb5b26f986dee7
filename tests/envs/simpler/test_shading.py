"""Our shaders draw what SAPIEN's do. Needs the original's assets (ST4VLA_ASSETS); skipped without."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from st4vla.envs.simpler.setup import View
from st4vla.envs.simpler.stage import Stage
from st4vla.envs.simpler.states import case_of_name
from st4vla.envs.simpler.world import POSE_DIM, SimplerWorld

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(
        not os.environ.get("ST4VLA_ASSETS"), reason="ST4VLA_ASSETS names no tree of SimplerEnv's assets"
    ),
]
CASES = (
    "widowx_put_eggplant_in_basket__ep00",  # the sink is under the photograph, and is named
    "google_robot_pick_horizontal_coke_can__grid00",
    "google_robot_open_top_drawer__a0",
)


@pytest.fixture(scope="module")
def world() -> Iterator[SimplerWorld]:
    world = SimplerWorld()
    yield world
    world.close()


def views(view: View) -> list[View]:
    others = [replace(view, overlay=""), replace(view, mode="debug"), replace(view, mode="object")]
    return [view, *others, view]  # back to the first: what was not shaded is shaded again


@pytest.mark.parametrize("name", CASES)
def test_our_shaders_draw_what_sapiens_do(world: SimplerWorld, name: str):
    world.reset_case(case_of_name(name))
    rows = world.snapshot().reshape(-1, POSE_DIM)
    stages = [Stage(replace(world.setup.build, shader="default"), world.tree, lean=lean) for lean in (True, False)]
    assert [stage.lean for stage in stages] == [True, False]
    for stage in stages:
        stage.pose(dict(zip(world.view.names(), rows[:-1], strict=True)), rows[-1])
    for view in views(world.setup.view):
        ours, theirs = (stage.photograph(view) for stage in stages)
        np.testing.assert_array_equal(ours.segmentation, theirs.segmentation)
        apart = np.abs(ours.rgb.astype(int) - theirs.rgb)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-4
    for stage in stages:
        stage.close()
