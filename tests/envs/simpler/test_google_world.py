"""The Google robot's worlds against recordings of the original, and against themselves.

Needs the original's assets (ST4VLA_ASSETS) and, for the comparisons, its recordings (ST4VLA_DATA); skipped without.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st4vla.envs.simpler import suites
from st4vla.envs.simpler.assets import AssetTree, find_tree, missing_assets
from st4vla.envs.simpler.cases import Case, case_from_meta, resolve, resolvers
from st4vla.envs.simpler.world import SimplerWorld
from st4vla.platform.contracts import EpisodeSpec, PolicySpec
from st4vla.platform.errors import EnvError

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(
        not os.environ.get("ST4VLA_ASSETS"), reason="ST4VLA_ASSETS names no tree of SimplerEnv's assets"
    ),
]
CASES = {
    "drawer": "google_robot_open_top_drawer__a0__smooth",
    "can": "google_robot_pick_horizontal_coke_can__grid00__smooth",
}
STANDING_CAN = Case(
    "GraspSingleOpenedCokeCanInScene-v0",
    {"control_freq": 3, "sim_freq": 513, "upright": True},
    {"init_xy": (0.35, 0.20), "init_rot_quat": (0, 0, 0, 1)},
    {"init_xy": (-0.2, 0.2)},
)


@pytest.fixture(scope="module")
def world() -> Iterator[SimplerWorld]:
    world = SimplerWorld()
    yield world
    world.close()


def recording(name: str) -> tuple[dict, dict]:
    folder = os.environ.get("ST4VLA_DATA")
    if not folder:
        pytest.skip("ST4VLA_DATA names no folder with the original's recordings")
    path = Path(folder) / "simplerenv_parity" / f"{CASES[name]}.npz"
    data = dict(np.load(path))
    return data, json.loads(str(data["meta"]))


def degrees_between(first: Any, second: Any) -> float:
    return float(2 * np.degrees(np.arccos(min(1.0, abs(float(np.dot(first, second)))))))


@pytest.mark.parametrize("name", CASES)
def test_a_recording_replays_within_the_figures(world: SimplerWorld, name: str):
    data, meta = recording(name)
    world.reset_case(case_from_meta(meta["case"]))
    assert world.instruction == meta["instruction"]
    tool = world.view.tcp
    assert np.linalg.norm(tool.p - data["tcp_pose"][0, :3]) < 1e-4
    assert degrees_between(np.asarray(tool.q), data["tcp_pose"][0, 3:]) < 0.1
    for index, model in enumerate(meta["obj_names"]):
        pose = world.view.pose(model)
        assert np.linalg.norm(pose[:3] - data["obj_pose"][0, index, :3]) < 2e-3
        assert degrees_between(pose[3:], data["obj_pose"][0, index, 3:]) < 5
    misses = []
    for number, action in enumerate(data["actions"]):
        world.step(action)
        misses.append(np.linalg.norm(world.view.tcp.p - data["tcp_pose"][number + 1, :3]))
        assert world.verdict["success"] == data["success"][number]
    assert np.mean(misses) < 1e-3
    assert np.max(misses) < 3e-3


@pytest.mark.parametrize("name", CASES)
def test_the_first_picture_is_the_recorded_one(world: SimplerWorld, name: str):
    data, meta = recording(name)
    world.reset_case(case_from_meta(meta["case"]))
    frame = world.render_snapshot(world.snapshot())["overhead_camera"]
    np.testing.assert_allclose(frame.extrinsic, data["cam_extrinsic_cv"][:3], atol=1e-4)
    np.testing.assert_allclose(frame.intrinsic, data["cam_intrinsic_cv"], atol=1e-3)
    kept = [int(number) for number, body in meta["seg_id_to_name"].items() if body != "arena"]
    theirs, ours = np.isin(data["seg_first"], kept), frame.segmentation > 0
    assert (theirs & ours).sum() / (theirs | ours).sum() >= 0.97
    error = np.abs(frame.rgb.astype(int) - data["rgb_first"].astype(int))
    assert error[theirs & ours].mean() <= 3
    assert error[~theirs & ~ours].mean() < 0.5


def test_the_same_snapshot_gives_the_same_picture_and_a_policy_gets_its_size(world: SimplerWorld):
    world.reset_case(STANDING_CAN)
    before = world.snapshot()
    live = world.picture()
    world.step(np.array([0.02, 0, -0.02, 0, 0, 0, 1.0]))
    again = world.render_snapshot(before)["overhead_camera"].rgb
    np.testing.assert_array_equal(again, live)
    seen = world.observe(PolicySpec(("third_person",), 128, 7, 7, 1, 3.0, "google_robot"))
    assert seen.images["third_person"].shape == (128, 128, 3)
    whole = world.observe(PolicySpec(("third_person",), 0, 7, 7, 1, 3.0, "google_robot")).images["third_person"]
    np.testing.assert_array_equal(whole, world.picture())
    assert whole.shape == (512, 640, 3)
    assert seen.state is not None
    assert seen.state[6] == pytest.approx(1.0, abs=0.3)


def run(world: SimplerWorld, spec: EpisodeSpec, steps: int = 4) -> np.ndarray:
    world.reset(spec)
    rng, rows = np.random.default_rng(0), [world.snapshot()]
    for _ in range(steps):
        world.step(np.concatenate([rng.normal(0, 0.03, 3), rng.normal(0, 0.1, 3), rng.uniform(-1, 1, 1)]))
        rows.append(world.snapshot())
    return np.concatenate(rows)


def test_an_episode_after_others_is_bitwise_the_one_of_a_fresh_world(world: SimplerWorld):
    plan = suites.plan("simplerenv_google_vm")
    near, place = (next(spec for spec in plan if spec.task == task) for task in ("move_near", "place_apple"))
    fresh = SimplerWorld()
    expected = run(fresh, place)
    fresh.close()
    run(world, place, steps=1)
    run(world, near)
    np.testing.assert_array_equal(run(world, place), expected)


def grip(world: SimplerWorld, steps: int, height: float, gripper: float) -> None:
    """Bring the tool, pointing down, over the can by measured deltas."""
    from scipy.spatial.transform import Rotation

    base = world.view.robot.pose
    can = world.view.position("opened_coke_can") if height < 0.15 else np.array([-0.2, 0.2, 0.94])
    for _ in range(steps):
        tool = world.view.tcp
        turn = Rotation.from_quat(tool.q[[1, 2, 3, 0]])
        down = np.cross(turn.apply([0, 0, 1]), [0, 0, -1])
        angle = np.arcsin(min(1.0, np.linalg.norm(down)))
        lean = Rotation.from_rotvec(down / max(np.linalg.norm(down), 1e-9) * min(angle, 0.2))
        into_base = Rotation.from_quat(base.q[[1, 2, 3, 0]]).inv()
        shift = into_base.apply(np.clip(can + [0, 0, height] - tool.p, -0.06, 0.06))
        world.step(np.concatenate([shift, into_base.apply(lean.as_rotvec()), [gripper]]))


def test_a_gripped_can_stays_in_the_fingers_and_counts_as_picked(world: SimplerWorld):
    world.reset_case(STANDING_CAN)
    grip(world, 16, 0.14, 0.0)
    grip(world, 8, 0.0, 0.0)
    grip(world, 4, 0.0, 1.0)
    assert world.verdict["is_grasped"]
    assert not world.verdict["success"]
    grip(world, 6, 0.3, 0.0)
    assert world.verdict["success"]
    assert set(world.progress().stages) == set(world.judge.all_stages)
    grip(world, 3, 0.3, -1.0)  # let go: five well lifted steps still count
    assert world.verdict["success"] == (world.verdict["episode_stats"]["n_lift_significant"] >= 5)


def test_a_drawer_counts_as_open_from_15_cm_and_as_closed_to_5_cm(world: SimplerWorld):
    for verb, qpos, success in (("Open", 0.1501, True), ("Open", 0.1499, False), ("Close", 0.0499, True)):
        case = Case(f"{verb}MiddleDrawerCustomInScene-v0", {"scene_name": "dummy_drawer", "prepackaged_config": True})
        world.reset_case(case)
        world.view.set_drawers({"middle": qpos})
        assert world.judge.verdict()["success"] == success


def test_the_apple_task_goes_on_to_its_second_instruction(world: SimplerWorld):
    case = Case("PlaceIntoClosedTopDrawerCustomInScene-v0", {"prepackaged_config": True, "model_ids": "baked_apple_v2"})
    world.reset_case(case)
    assert world.instruction == "open top drawer"
    world.judge.before_step(99)
    assert world.instruction == "open top drawer"
    world.judge.before_step(100)
    assert world.instruction == "place apple into top drawer"


def test_every_environment_of_the_original_resolves_and_says_what_it_lacks():
    tree = find_tree()
    for env_id in resolvers():
        missing_assets(resolve(Case(env_id, seed=0), tree), tree)


def test_missing_files_are_named_before_anything_is_built(tmp_path: Path):
    tree = AssetTree(tmp_path)
    real = find_tree()
    setup = resolve(suites.case_of(suites.plan("simplerenv_google_vm")[0]), real)
    lacking = missing_assets(setup, tree)
    assert "data/tasks/google_real2sim_dataset/custom/models/opened_coke_can/collision.obj" in lacking
    office = [spec for spec in suites.plan("simplerenv_google_va", ("open_drawer",)) if "office" in spec.variant]
    if missing_assets(resolve(suites.case_of(office[0]), real), real):
        with pytest.raises(
            EnvError, match="modern_office_no_roof.glb .* 27 episodes|modern_office_no_roof.glb .27 episodes"
        ):
            suites.check(office)


def test_unknown_options_are_refused_by_name(world: SimplerWorld):
    with pytest.raises(EnvError, match="sparkle"):
        world.reset_case(Case("OpenTopDrawerCustomInScene-v0", {"sparkle": True}))
    with pytest.raises(EnvError, match="OpenFridge"):
        world.reset_case(Case("OpenFridge-v0"))
    world.reset_case(STANDING_CAN)
    with pytest.raises(EnvError, match="7 finite numbers"):
        world.step(np.full(7, np.nan))
