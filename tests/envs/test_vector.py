"""The batched environment: shapes, ends of episodes, and the same physics as the single world."""

import gymnasium
import numpy as np
import pytest

from st4vla.envs import vector
from st4vla.envs.suites import make_spec
from st4vla.envs.vector import ActionRange, VectorConfig, make_vector_env
from st4vla.envs.world import TabletopWorld, WorldConfig
from st4vla.platform.errors import ConfigError, EnvError


@pytest.fixture(scope="module")
def reach():
    """Two worlds of reach."""
    env = make_vector_env(2, task="reach")
    yield env
    env.close()


def towards(state: np.ndarray) -> np.ndarray:
    """Go straight for the goal: numbers 16-18 of the state lead there from the TCP."""
    return np.clip(state[:, 16:19] / 0.05, -1.0, 1.0)


def test_reach_learns_three_shifts_and_keeps_the_gripper_open():
    span = ActionRange.of_task("reach")
    assert span.learned == (0, 1, 2)
    assert span.physical(np.array([[1.0, -1.0, 0.0]]))[0].tolist() == pytest.approx([0.05, -0.05, 0, 0, 0, 0, 1.0])


def test_pick_up_also_learns_the_turn_about_z_and_the_gripper():
    physical = ActionRange.of_task("pick_up").physical(np.array([[0.0, 0.0, 0.0, 1.0, -1.0]]))[0]
    assert physical.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.3, 0.0])


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="'jump'; choose one of reach, push"):
        VectorConfig(task="jump")


def test_observations_rewards_and_flags_are_batched(reach):
    state, _ = reach.reset(seed=1)
    assert state.shape == (2, 32) and state.dtype == np.float32
    state, reward, solved, cut, info = reach.step(np.zeros((2, 3), np.float32))
    assert state.shape == (2, 32) and reward.shape == (2,) and reward.dtype == np.float32
    assert solved.tolist() == [False, False] and cut.tolist() == [False, False]
    assert info["success"].shape == (2,)


def test_the_same_seed_gives_the_same_first_states(reach):
    first = reach.reset(seed=5)[0]
    assert np.array_equal(first, reach.reset(seed=5)[0])
    assert not np.array_equal(first, reach.reset(seed=6)[0])


def test_a_solved_episode_ends_and_the_next_step_of_its_row_begins_another(reach):
    state, _ = reach.reset(options={"seeds": [3, 4]})
    steps, total = 0, 0.0
    while not reach._done[0]:
        state, reward, solved, cut, _ = reach.step(towards(state))
        steps, total = steps + 1, total + reward[0]
    assert solved[0] and not cut[0] and steps < 15 and total > 3.0
    state, reward, solved, cut, _ = reach.step(np.ones((2, 3), np.float32))
    assert reward[0] == 0.0 and not solved[0] and state[0, 23] == 1.0
    assert np.abs(state[0, :3] - [0.505, 0.0, 0.20]).max() < 0.01


def test_an_episode_is_cut_when_its_time_is_up(reach):
    reach.reset(options={"seeds": [3, 4]})
    for _ in range(25):
        _, _, solved, cut, _ = reach.step(np.zeros((2, 3), np.float32))
    assert cut.tolist() == [True, True] and not solved.any()


def test_wrong_actions_are_refused(reach):
    reach.reset(seed=0)
    with pytest.raises(EnvError, match=r"expected finite \[2, 3\]"):
        reach.step(np.zeros((2, 7), np.float32))


def test_gymnasium_makes_it_by_its_vector_entry_point():
    vector.register()
    env = gymnasium.make_vec(vector.VECTOR_ENV_ID, num_envs=1, vectorization_mode="vector_entry_point", task="push")
    assert env.reset(seed=0)[0].shape == (1, 32)
    env.close()


@pytest.mark.parametrize("task", ["push", "sort_three"])
def test_a_row_moves_and_shows_itself_as_the_single_world_does(task):
    env, world = make_vector_env(2, task=task), TabletopWorld(WorldConfig(task=task, cameras=()))
    spec = make_spec("training", task, 7)
    world.reset(spec)
    rows = [env.reset(options={"seeds": [8, 7]})[0][1]]
    alone = [world.privileged_state()]
    rng = np.random.default_rng(0)
    for _ in range(8):
        actions = rng.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)
        world.step(env.range.physical(actions)[1])
        rows.append(env.step(actions)[0][1])
        alone.append(world.privileged_state())
    assert np.abs(np.array(rows) - np.array(alone)).max() < 1e-4
    env.close()
    world.close()
