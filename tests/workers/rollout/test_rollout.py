"""Facts about one episode, in a world of one dot."""

from dataclasses import replace

import numpy as np
import pytest

from st4vla.envs.dot_world import DotConfig, DotWorld
from st4vla.platform.contracts import ActionChunk, EpisodeSpec, PolicySpec
from st4vla.platform.errors import ConfigError, PolicyError, WorkerLost
from st4vla.platform.policy.random_policy import RandomPolicy, RandomPolicyConfig
from st4vla.workers.rollout.episode import (
    Recording,
    Rollout,
    RolloutOptions,
    check_chunk,
    run_episode,
    time_budget,
)
from st4vla.workers.rollout.inference import LocalClient
from st4vla.workers.rollout.pooled import RolloutWorker

SPEC = EpisodeSpec("seen", "dot", "default", 7, "move the dot to the goal")


class Walker:
    """Move the dot straight to the goal it is shown, 15 mm per action of an 8-action chunk."""

    spec = PolicySpec(("third_person",), 16, 7, 7, 8, 5.0, "dot")

    def __init__(self, spoil=None, lost=False):
        self.seen, self.keys = [], []
        self._spoil, self._lost = spoil, lost

    def reset(self, session_id):
        self.seen, self.keys = [], []

    def act(self, observations, session_ids, noise_keys):
        if self._lost:
            raise WorkerLost("gone")
        self.seen.append(observations[0].instruction)
        self.keys.append(noise_keys[0])
        way = observations[0].state[3:6] - observations[0].state[:3]
        actions = np.zeros((8, 7), np.float32)
        actions[:, :3] = 0.015 * way / np.linalg.norm(way)
        return [ActionChunk(actions if self._spoil is None else self._spoil(actions))]


def run(spec=SPEC, options=None, walker=None, **world):
    walker = walker or Walker()
    config = DotConfig(**{"max_steps": 40} | world)
    return run_episode(DotWorld(config), LocalClient(walker), spec, options or RolloutOptions()), walker


def recorded(rollout: Rollout) -> Recording:
    assert rollout.recording is not None
    return rollout.recording


def test_a_chunk_of_eight_costs_one_look():
    rollout, walker = run()
    assert rollout.result.success
    assert (rollout.result.steps, rollout.result.looks) == (7, 1)


def test_executing_four_of_eight_looks_twice_in_seven_steps():
    rollout, _ = run(options=RolloutOptions(execute=4))
    assert [look.step for look in recorded(rollout).looks] == [0, 4]


def test_a_changed_instruction_forces_a_look_at_once():
    spec = EpisodeSpec("changed_instruction", "dot", "default", 7, "move it", ("instruction_changed",))
    rollout, walker = run(spec)
    assert [look.step for look in recorded(rollout).looks][:2] == [0, 4]
    assert walker.seen[:2] == ["move it", "move the dot to the other goal"]
    assert rollout.result.success
    assert rollout.result.recovery_steps == rollout.result.steps - 4


def test_a_moved_object_does_not_force_a_look():
    spec = EpisodeSpec("moved_object", "dot", "default", 7, "move it", ("object_moved",))
    rollout, _ = run(spec)
    assert [look.step for look in recorded(rollout).looks][:2] == [0, 8]


def test_an_undisturbed_episode_has_no_recovery():
    assert run()[0].result.recovery_steps is None


def test_time_out_is_the_policys_own_failure():
    rollout, _ = run(walker=Walker(spoil=lambda actions: actions * 0), max_steps=9)
    assert (rollout.result.success, rollout.result.failure, rollout.result.steps) == (False, "task", 9)
    assert rollout.result.partial_credit == pytest.approx(0.0)


def test_noise_keys_count_looks_of_the_seed():
    _, walker = run(options=RolloutOptions(execute=4))
    assert walker.keys == [(7, 0), (7, 1)]


def test_the_recording_holds_every_state_and_every_action():
    recording = recorded(run()[0])
    assert recording.snapshots.shape == (8, 6)
    assert recording.actions.shape == (7, 7)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda actions: actions * np.nan, "row 0"),
        (lambda actions: actions[:, :6], r"\[8, 6\]"),
        (lambda actions: actions[:0], r"\[0, 7\]"),
        (lambda actions: actions[0], r"\[7\]"),
    ],
)
def test_an_unusable_answer_is_a_policy_failure_with_its_reason(spoil, message):
    worker = RolloutWorker(lambda key: DotWorld(), lambda world: LocalClient(Walker(spoil)), RolloutOptions())
    result = worker.run(SPEC).result
    assert (result.failure, result.success) == ("policy", False)
    with pytest.raises(PolicyError, match=message):
        run(walker=Walker(spoil))


def test_a_crash_is_a_crash_and_the_world_is_built_anew():
    built = []

    def make_world(key):
        built.append("a world")
        return DotWorld()

    worker = RolloutWorker(make_world, lambda world: LocalClient(Walker()), RolloutOptions())
    crashed = worker.run(EpisodeSpec("seen", "dot", "crashes", 1, "go"))
    assert (crashed.result.failure, crashed.spent) == ("crash", True)
    assert worker.run(SPEC).result.success
    assert worker.run(SPEC).result.success
    assert built == ["a world", "a world"]


def test_a_lost_inference_actor_is_not_a_result():
    worker = RolloutWorker(lambda key: DotWorld(), lambda world: LocalClient(Walker(lost=True)), RolloutOptions())
    with pytest.raises(WorkerLost):
        worker.run(SPEC)


def test_a_policy_without_cameras_gets_no_picture():
    policy = RandomPolicy()
    assert policy.spec.cameras == ()
    assert DotWorld().config.step_s == 0.0
    worker = RolloutWorker(lambda key: DotWorld(), lambda world: LocalClient(policy), RolloutOptions())
    assert worker.run(SPEC).result.failure == "task"


def test_random_actions_depend_on_the_key_alone():
    policy = RandomPolicy(RandomPolicyConfig(chunk_length=2))
    first, second = policy.act([], [], [(3, 0), (3, 1)])
    (alone,) = policy.act([], [], [(3, 1)])
    assert np.array_equal(second.actions, alone.actions)
    assert not np.array_equal(first.actions, second.actions)


def test_executing_nothing_is_a_config_error():
    with pytest.raises(ConfigError, match="execute is 0"):
        RolloutOptions(execute=0)


def test_check_chunk_gives_float32():
    actions = check_chunk(ActionChunk(np.zeros((2, 7))), Walker.spec)
    assert actions.dtype == np.float32


def test_time_budget_puts_the_rest_into_wait():
    rows = [{"physics_s": 1.0, "render_s": 2.0, "policy_s": 3.0, "wall_s": 10.0}] * 2
    assert time_budget(rows) == {"physics": 2.0, "render": 4.0, "policy": 6.0, "wait": 8.0}


def test_a_stated_latency_holds_the_robot_for_so_many_steps_at_each_look():
    rollout, walker = run(options=RolloutOptions(execute=4, latency=0.5))
    recording = recorded(rollout)
    held = [not action.any() for action in recording.actions]
    # 0.5 s at 5 Hz is 2.5 steps, so 3 begin before the answer is there.
    assert held[:10] == [True] * 3 + [False] * 4 + [True] * 3
    assert [look.step for look in recording.looks] == [0, 7]
    assert (rollout.result.steps, rollout.result.held_steps, rollout.result.success) == (13, 6, True)


def test_a_measured_latency_takes_the_time_the_answer_took():
    ticks = iter(np.arange(0, 1000, 0.25))
    spec, walker = SPEC, Walker()
    rollout = run_episode(
        DotWorld(DotConfig(max_steps=40)),
        LocalClient(walker),
        spec,
        RolloutOptions(latency="measured"),
        clock=lambda: float(next(ticks)),
    )
    assert rollout.result.held_steps == 2  # 0.25 s at 5 Hz


def test_time_that_runs_out_while_the_policy_thinks_ends_the_episode():
    rollout, _ = run(options=RolloutOptions(latency=10.0), max_steps=9)
    assert (rollout.result.steps, rollout.result.held_steps, rollout.result.failure) == (9, 9, "task")


def test_an_instruction_that_changes_while_the_policy_thinks_makes_it_look_again():
    spec = EpisodeSpec("changed_instruction", "dot", "default", 7, "move it", ("instruction_changed",))
    rollout, walker = run(spec, options=RolloutOptions(latency=1.0))
    assert [look.step for look in recorded(rollout).looks][:2] == [0, 5]
    assert walker.seen[:2] == ["move it", "move the dot to the other goal"]


@pytest.mark.parametrize("latency", [-0.1, 61, "sometimes", True])
def test_a_latency_of_another_kind_is_refused(latency):
    with pytest.raises(ConfigError, match="expected seconds from 0 to 60, measured, or null"):
        RolloutOptions(latency=latency)


def test_an_episode_can_run_to_its_end_and_be_judged_there():
    rollout, _ = run(options=RolloutOptions(stop_on_success=False), max_steps=30)
    assert rollout.result.steps == 30


def test_worlds_are_pooled_by_key_and_the_least_used_is_closed():
    built, closed = [], []

    class Noted(DotWorld):
        def __init__(self, key):
            super().__init__()
            self.key = key
            built.append(key)

        def close(self):
            closed.append(self.key)

    worker = RolloutWorker(Noted, lambda world: LocalClient(Walker()), RolloutOptions(), lambda spec: spec.task, 2)
    for task in ("a", "b", "a", "c", "a", "b"):
        assert worker.run(EpisodeSpec("seen", task, "default", 1, "go")).result.success
    assert (built, closed) == (["a", "b", "c", "b"], ["b", "c"])
    worker.close()
    assert closed == ["b", "c", "b", "a"]


def test_a_robot_nobody_has_described_is_a_config_error():
    from st4vla.workers.rollout.execution import make_executor

    with pytest.raises(ConfigError, match="robot is 'a robot', and nothing says how chunks drive it"):
        make_executor("a robot", DotWorld.hold_action, Walker.spec)


def test_euler_angles_are_turned_into_a_rotation_vector_where_a_robot_takes_actions_as_they_are():
    from st4vla.workers.rollout.execution import make_executor

    chunk, third = np.zeros((1, 7), np.float32), 2 * np.pi / 3 / np.sqrt(3)
    chunk[0, 3:6] = np.pi / 2, np.pi / 2, 0
    for form, turned in (("rotation_vector", chunk[0, 3:6]), ("euler_xyz", [third, third, -third])):
        executor = make_executor("", DotWorld.hold_action, replace(Walker.spec, rotation_form=form))
        executor.take(chunk)
        action = executor.next_action()
        assert action[3:6] == pytest.approx(turned) and action.dtype == np.float32


def test_a_policy_that_asks_for_the_cameras_own_size_is_shown_it():
    spec = replace(Walker.spec, image_size=0)
    world = DotWorld()
    world.reset(SPEC)
    assert world.observe(spec).images["third_person"].shape == (64, 64, 3)


def test_each_step_is_announced_before_it_begins():
    said = []
    run_episode(
        DotWorld(), LocalClient(Walker()), SPEC, RolloutOptions(), beat=lambda part, step: said.append((part, step))
    )
    assert said[:5] == [
        ("physics", "reset"),
        ("policy", "reset"),
        ("render", "first look"),
        ("policy", "first look"),
        ("physics", "step 0"),
    ]
