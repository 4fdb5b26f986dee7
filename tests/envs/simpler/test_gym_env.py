"""The original's environments behind gymnasium's ids: seeds, colours, and a batch's view against the scene's.

Needs the original's assets (ST4VLA_ASSETS); skipped without.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from st4vla.envs.simpler.cases import UNSEEDED, Case, next_seed, resolve

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(
        not os.environ.get("ST4VLA_ASSETS"), reason="ST4VLA_ASSETS names no tree of SimplerEnv's assets"
    ),
]
DRAWER, CAN = "CloseTopDrawerCustomInScene-v0", "GraspSingleOpenedCokeCanInScene-v0"
PACKAGED = {"prepackaged_config": True}


def make(env_id: str, **original: Any) -> Any:
    import st4vla.envs.simpler.gym_env  # noqa: F401  (registers the ids)

    plain: dict[str, Any] = {
        "obs_mode": "none",
        "reward_mode": "none",
        "sim_backend": "physx_cpu",
        "render_backend": "none",
    }
    return gymnasium.make(f"simpler/{env_id}", original=original, **plain).unwrapped


@pytest.fixture(scope="module")
def drawer() -> Iterator[Any]:
    env = make(DRAWER, **PACKAGED)
    yield env
    env.close()


def expected(env: Any, seed: int) -> Any:
    return resolve(Case(DRAWER, env.original, seed=seed), env.tree)


def test_resets_without_a_seed_follow_the_originals_sequence(drawer: Any):
    new = make(DRAWER, **PACKAGED)
    for seed in (UNSEEDED, next_seed(UNSEEDED), next_seed(next_seed(UNSEEDED))):
        new.reset()
        assert new.setups == [expected(new, seed)]
    new.close()
    drawer.reset(seed=5)
    drawer.reset()
    assert drawer.setups == [expected(drawer, next_seed(5))]
    assert drawer.setups != [expected(drawer, UNSEEDED)]


def test_a_seed_of_another_colour_loads_the_robot_of_that_colour(drawer: Any):
    seeds = {expected(drawer, seed).build.recolouring: seed for seed in range(12)}
    assert len(seeds) == 4
    for colour, seed in seeds.items():
        drawer.reset(seed=seed)
        assert drawer.build.recolouring == colour
        assert Path(drawer.agent.urdf_path) == drawer.tree.robot("google_robot_static", colour)


def test_a_drawer_is_seen_alike_by_both_views(drawer: Any):
    from st4vla.envs.simpler.batch_view import BatchView
    from st4vla.envs.simpler.scene_view import SceneView

    drawer.reset(seed=0)
    drawer.step(np.zeros(7, np.float32))
    scene, batch = SceneView(drawer), BatchView(drawer, 0)
    openings = [batch.drawer(name) for name in ("top", "middle", "bottom")]
    assert openings == pytest.approx([scene.drawer(name) for name in ("top", "middle", "bottom")])
    assert openings == pytest.approx([0.2, 0, 0], abs=1e-3)


def grip(env: Any, scene: Any, steps: int, height: float, gripper: float, target: np.ndarray | None = None) -> None:
    """Bring the tool, pointing down, over the can, or to a target, by measured deltas."""
    for _ in range(steps):
        scene.refresh()
        tool, base = scene.tcp, scene.robot.pose
        turn = Rotation.from_quat(tool.q[[1, 2, 3, 0]])
        down = np.cross(turn.apply([0, 0, 1]), [0, 0, -1])
        angle = np.arcsin(min(1.0, float(np.linalg.norm(down))))
        lean = Rotation.from_rotvec(down / max(np.linalg.norm(down), 1e-9) * min(angle, 0.2))
        into_base = Rotation.from_quat(base.q[[1, 2, 3, 0]]).inv()
        goal = (scene.position("opened_coke_can") if target is None else target) + [0, 0, height]
        shift = into_base.apply(np.clip(goal - tool.p, -0.06, 0.06))
        env.step(np.concatenate([shift, into_base.apply(lean.as_rotvec()), [gripper]]).astype(np.float32))
    scene.refresh()


def test_a_row_of_a_batch_is_judged_as_the_scene_is():
    from st4vla.envs.simpler.batch_view import BatchView
    from st4vla.envs.simpler.scene_view import SceneView

    env = make(CAN, upright=True)
    start = {"init_xy": (0.35, 0.20), "init_rot_quat": (0, 0, 0, 1)}
    env.reset(seed=0, options={"robot_init_options": start, "obj_init_options": {"init_xy": (-0.2, 0.2)}})
    scene, batch = SceneView(env), BatchView(env, 0)
    can = "opened_coke_can"

    def alike() -> tuple[bool, bool]:
        for ours, theirs in (
            (batch.position(can), scene.position(can)),
            (batch.turn(can), scene.turn(can)),
            (batch.mass_pose(can), scene.mass_pose(can)),
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        found = (batch.grasps(can, 80.0), batch.touched_by_others(can))
        assert found == (scene.grasps(can, 80.0), scene.touched_by_others(can))
        return found

    grip(env, scene, 1, 0.14, 0.0)
    assert alike() == (False, True)  # stands on the table
    grip(env, scene, 15, 0.14, 0.0)
    grip(env, scene, 8, 0.0, 0.0)
    grip(env, scene, 4, 0.0, 1.0)
    assert alike() == (True, True)  # in the fingers, on the table still
    grip(env, scene, 6, 0.3, 0.0, np.array([-0.2, 0.2, 0.94]))
    assert alike() == (True, False)  # lifted
    env.close()
