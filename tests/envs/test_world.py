"""One pooled world on a CPU: same spec, same trajectory; same state, same picture."""

from collections.abc import Iterator
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from st4vla.envs import annotate, layout, recording, suites, tabletop
from st4vla.envs.experts import Expert
from st4vla.envs.states import PRIVILEGED_DIM
from st4vla.envs.world import TabletopWorld, WorldConfig
from st4vla.platform.contracts import EpisodeSpec, PolicySpec
from st4vla.platform.errors import ConfigError, EnvError

EYES = PolicySpec(("third_person", "wrist"), 128, 7, 7, 8, 5.0, "tabletop_panda")
BLIND = PolicySpec((), 128, PRIVILEGED_DIM, 7, 8, 5.0, "tabletop_panda", state_form="privileged")


@pytest.fixture(scope="module")
def world() -> Iterator[TabletopWorld]:
    world = TabletopWorld()
    yield world
    world.close()


def run_expert(world: TabletopWorld, spec: EpisodeSpec) -> None:
    world.reset(spec)
    expert = Expert(world)
    while world.steps < world.max_steps and not world.progress().success:
        world.step(expert.act())


def trajectory(world: TabletopWorld, spec: EpisodeSpec, steps: int = 20) -> np.ndarray:
    """Record an expert disturbed by fixed noise."""
    world.reset(spec)
    expert, rng, rows = Expert(world), np.random.default_rng(0), []
    for _ in range(steps):
        noise = np.concatenate([rng.normal(0, 0.01, 3), np.zeros(4)])
        world.step((expert.act() + noise).astype(np.float32))
        rows.append(np.concatenate([world._robot.qpos, world._robot.qvel, world._poses().ravel()]))
    return np.array(rows)


@pytest.mark.parametrize("task", ["push", "put_on"])
def test_an_episode_after_another_is_bitwise_the_one_of_a_fresh_world(world: TabletopWorld, task: str):
    spec, other = suites.make_spec("seen", task, 1_000_000_003), suites.make_spec("seen", "pick_up", 1_000_000_004)
    fresh = TabletopWorld(WorldConfig(cameras=()))
    expected = trajectory(fresh, spec)
    fresh.close()
    trajectory(world, other)
    np.testing.assert_array_equal(trajectory(world, spec), expected)
    np.testing.assert_array_equal(trajectory(world, spec), expected)


@pytest.mark.parametrize("task", layout.TASKS)
def test_the_expert_solves_three_layouts(world: TabletopWorld, task: str):
    for index in range(3):
        run_expert(world, suites.make_spec("seen", task, suites.evaluation_seed(7, index)))
        assert world.progress().success, f"{task} {index}: {world.progress()}"
        assert world.progress().partial_credit == 1.0


def test_sorting_reaches_its_stages_one_after_the_other(world: TabletopWorld):
    run_expert(world, suites.make_spec("long_horizon", "sort_three", 1_000_000_000))
    names = world.scene.names(world.scene.targets)
    assert sorted(world.progress().stages) == sorted(f"{name} sorted" for name in names)


def test_hold_action_keeps_the_arm_within_a_millimetre(world: TabletopWorld):
    world.reset(suites.make_spec("seen", "reach", 1))
    before = world.tcp[0]
    for _ in range(3):
        world.step(world.hold_action())
    assert np.linalg.norm(world.tcp[0] - before) < 0.001


def test_ten_actions_of_two_centimetres_move_the_tcp_by_twenty(world: TabletopWorld):
    world.reset(suites.make_spec("seen", "reach", 1))
    before = world.tcp[0]
    for _ in range(10):
        world.step(np.array([0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=np.float32))
    world.step(world.hold_action())
    world.step(world.hold_action())
    np.testing.assert_allclose(world.tcp[0] - before, [0.0, 0.2, 0.0], atol=0.005)


def test_a_moved_object_is_moved_once_and_the_expert_recovers(world: TabletopWorld):
    spec = suites.plan("moved_object", ["pick_up"], 1, seed=3)[1]
    run_expert(world, spec)
    assert world.perturbed_at is not None
    assert 2 <= world.perturbed_at <= 5
    assert world.progress().success


def test_a_changed_instruction_names_the_object_that_is_then_judged(world: TabletopWorld):
    spec = suites.plan("changed_instruction", ["reach"], 1, seed=3)[1]
    run_expert(world, spec)
    assert world.instruction != spec.instruction
    assert world.scene.names(world.scene.targets)[0] in world.instruction
    assert world.progress().success


def test_the_disturbed_twin_is_the_same_until_the_disturbance(world: TabletopWorld):
    twin, disturbed = suites.plan("moved_object", ["push"], 1, seed=4)
    calm = trajectory(world, twin, steps=8)
    rough = trajectory(world, disturbed, steps=8)
    at = world.perturbed_at
    assert at is not None
    np.testing.assert_array_equal(rough[:at], calm[:at])
    assert not np.array_equal(rough[at], calm[at])


def test_privileged_state_is_laid_out_alike_for_every_task(world: TabletopWorld):
    for task in layout.TASKS:
        world.reset(suites.make_spec("seen", task, 5))
        state = world.observe(BLIND).state
        assert state is not None
        assert (state.shape, state.dtype) == ((32,), np.float32)
        target = world.thing_pose(world.scene.targets[0])[:3]
        np.testing.assert_allclose(state[7:10], target - world.tcp[0], atol=1e-6)
        assert state[24:29].argmax() == layout.TASKS.index(task)


def test_a_world_without_cameras_never_builds_a_renderer():
    blind = TabletopWorld(WorldConfig(task="reach", cameras=()))
    blind.reset(suites.make_spec("seen", "reach", 1))
    blind.observe(BLIND)
    assert blind._stage is None
    with pytest.raises(EnvError, match="no camera 'third_person'"):
        blind.observe(EYES)
    blind.close()


def test_an_unusable_action_is_refused(world: TabletopWorld):
    world.reset(suites.make_spec("seen", "reach", 1))
    with pytest.raises(EnvError, match="expected 7 finite numbers"):
        world.step(np.array([np.nan, 0, 0, 0, 0, 0, 1], dtype=np.float32))
    with pytest.raises(EnvError, match="expected 7 finite numbers"):
        world.step(np.zeros(6, dtype=np.float32))
    assert world.steps == 0


def test_a_spec_of_another_task_or_perturbation_is_refused(world: TabletopWorld):
    spec = suites.make_spec("seen", "reach", 1)
    with pytest.raises(EnvError, match="no perturbation 'earthquake'"):
        world.reset(replace(spec, perturbations=("earthquake",)))
    with pytest.raises(EnvError, match="runs 'push'"):
        TabletopWorld(WorldConfig(task="push")).reset(spec)
    with pytest.raises(ConfigError, match="image_size is 130"):
        WorldConfig(image_size=130)


def test_tabletop_worlds_are_also_a_gymnasium_environment():
    env = gymnasium.make(
        tabletop.ENV_ID, task="put_on", num_envs=1, obs_mode="state", sim_backend="physx_cpu", render_backend="none"
    )
    observation, _ = env.reset(seed=3)
    assert observation.shape[0] == 1
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert 0.0 <= float(reward) <= 1.0
    assert not bool(info["success"])
    env.close()


@pytest.mark.sim
def test_a_recorded_state_renders_bitwise_what_was_shown_live(world: TabletopWorld):
    world.reset(suites.make_spec("seen", "pick_up", 1_000_000_009))
    expert, live, rows = Expert(world), [], []
    for _ in range(9):
        live.append(world.observe(EYES).images)
        rows.append(world.snapshot())
        world.step(expert.act())
    run_expert(world, suites.make_spec("seen", "sort_three", 1_000_000_001))
    world.render_snapshot(world.snapshot())
    world.reset(suites.make_spec("seen", "pick_up", 1_000_000_009))
    for shown, row in zip(live, rows, strict=True):
        frames = world.render_snapshot(row)
        for camera, image in shown.items():
            np.testing.assert_array_equal(frames[camera].rgb, image)


@pytest.mark.sim
def test_looking_does_not_change_what_happens(world: TabletopWorld):
    spec = suites.make_spec("seen", "push", 1_000_000_012)
    unseen = trajectory(world, spec, steps=6)
    world.reset(spec)
    expert, rng = Expert(world), np.random.default_rng(0)
    for row in unseen:
        world.observe(EYES)
        noise = np.concatenate([rng.normal(0, 0.01, 3), np.zeros(4)])
        world.step((expert.act() + noise).astype(np.float32))
        np.testing.assert_array_equal(world._poses().ravel(), row[18:])


@pytest.mark.sim
@pytest.mark.parametrize("task", layout.TASKS)
def test_annotations_point_at_what_they_name(world: TabletopWorld, task: str):
    run_expert(world, suites.make_spec("seen", task, 1_000_000_020))
    world.reset(suites.make_spec("seen", task, 1_000_000_020))
    row = world.snapshot()
    frames = world.render_snapshot(row)
    path = np.array([world.tcp[0], world.thing_pose(world.scene.targets[0])[:3]])
    note = world.annotate(row, frames, path)["third_person"]
    assert len(note.boxes) == len(world.scene.things), "every thing can be seen at the start"
    segmentation = frames["third_person"].segmentation
    for number, thing in enumerate(world.scene.things, start=1):
        x, y = note.points[thing.name]
        assert segmentation[int(y), int(x)] == number
        x1, y1, x2, y2 = note.boxes[thing.name]
        assert min(x2 - x1, y2 - y1) >= 6
        centre = frames["third_person"].project(world.thing_pose(number - 1)[None, :3])[0]
        assert x1 - 1 <= centre[0] <= x2 + 1
        assert y1 - 1 <= centre[1] <= y2 + 1
    assert note.target in note.subgoal
    assert len(note.trace) == 2
    assert note.mask is not None
    assert note.mask.shape == (32, 32)


def test_box_and_point_of_a_mask_lie_on_its_pixels():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 3:7] = True
    mask[3, 4:6] = False
    assert annotate.box_of(mask) == (3.0, 2.0, 7.0, 5.0)
    x, y = annotate.point_on(mask)
    assert mask[int(y), int(x)]


def test_a_recorded_row_is_read_back_as_it_was_packed():
    view = recording.View(2, -1, "grasp", np.arange(3.0), np.arange(9.0), np.arange(21.0).reshape(3, 7))
    row = recording.pack(view)
    assert (row.shape, row.dtype) == ((36,), np.float32)
    again = recording.unpack(row)
    assert (again.target, again.destination, again.sub_goal) == (2, -1, "grasp")
    np.testing.assert_array_equal(again.poses, view.poses)


def test_a_path_ends_where_its_stage_ends():
    view = recording.View(0, -1, "grasp", np.zeros(3), np.zeros(9), np.zeros((1, 7)))
    views = [replace(view, tcp=np.full(3, float(i)), sub_goal="grasp" if i < 3 else "lift") for i in range(6)]
    np.testing.assert_array_equal(annotate.stage_path(views, 1)[:, 0], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(annotate.stage_path(views, 3)[:, 0], [3.0, 4.0, 5.0])
