"""Reinforcement, end to end at its smallest: one update, a policy that loads and acts, going on where it stopped."""

import dataclasses
import json

import numpy as np
import pytest

from st4vla.envs.vector import VectorConfig
from st4vla.platform.cli import compose_command
from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError
from st4vla.platform.tracking import Tracker, TrackingConfig
from st4vla.workers.reinforcement.algorithm import Iteration, PpoConfig
from st4vla.workers.reinforcement.learn import RlConfig, Standing, over, read_config, read_standing, reinforce

SMALL = PpoConfig(worlds=2, batch=64, minibatch=32, epochs=1, hidden=(16,))


def composed(*overrides: str) -> RlConfig:
    """The config of `st4vla rl` with these overrides."""
    from omegaconf import OmegaConf

    return read_config(OmegaConf.to_container(compose_command("rl", overrides), resolve=True))  # type: ignore[arg-type]


def test_each_task_brings_its_own_budget_unless_one_is_given():
    assert composed("task=push").steps > composed("task=reach").steps
    assert composed("task=push", "steps=10").steps == 10


def test_a_task_without_a_budget_is_named():
    with pytest.raises(ConfigError, match="task is 'my_task'; choose one of reach"):
        composed("task=my_task")
    with pytest.raises(ConfigError, match="task is 'reach', for which configs/rl.yaml has no budget"):
        composed("task=reach", "~tasks.reach")


def test_a_minibatch_larger_than_the_batch_is_refused():
    with pytest.raises(ConfigError, match="minibatch is 256, more than ppo.batch=64"):
        PpoConfig(batch=64)


def test_a_run_of_other_settings_in_the_same_folder_is_refused_by_what_differs(tmp_path):
    config = RlConfig(VectorConfig(), run_dir=str(tmp_path))
    config.folder.mkdir()
    kept = {"settings": config.settings(), "standing": dataclasses.asdict(Standing(steps=5))}
    (config.folder / "progress.json").write_text(json.dumps(kept))
    assert read_standing(config).steps == 5
    with pytest.raises(ConfigError, match=r"differs in ppo.lr; give this one a name="):
        read_standing(dataclasses.replace(config, ppo=PpoConfig(lr=1e-4)))


def test_an_iteration_is_read_from_what_rllib_reports():
    sampled = {"num_env_steps_sampled_lifetime": 512, "num_episodes": 3, "solved": 2.0, "episode_return_mean": 2.0}
    now = Iteration.of_result({"env_runners": sampled, "learners": {"default_policy": {"entropy": 1.5, "other": 1}}})
    assert (now.steps, now.episodes, now.solved, now.episode_return) == (512, 3, 2, 2.0)
    assert now.learner == {"entropy": 1.5}


def test_a_run_is_over_by_steps_minutes_or_solved_episodes():
    config = RlConfig(VectorConfig(), steps=1000, minutes=2.0, stop_at=0.9)
    assert not over(config, Standing(steps=999, iterations=1, wall_s=119.0, success=0.89))
    assert over(config, Standing(steps=1000, iterations=1))
    assert over(config, Standing(steps=10, iterations=1, wall_s=120.0))
    assert over(config, Standing(steps=10, iterations=1, rounds=[[100, 90]], success=0.9))
    assert not over(config, Standing(steps=10, iterations=1, rounds=[[99, 99]], success=1.0))


def test_success_is_judged_over_the_last_hundred_episodes_or_a_few_more():
    standing = Standing()
    for steps, episodes, solved in ((100, 60, 0), (200, 60, 30), (300, 60, 60)):
        standing.add(Iteration(steps, episodes, solved, 1.0, 8.0, {}), wall_s=1.0, cpu_s=0.5)
    assert standing.episodes == 120 and standing.success == 0.75
    assert (standing.steps, standing.iterations, standing.wall_s, standing.cpu_s) == (300, 3, 3.0, 1.5)


@pytest.mark.ray
@pytest.mark.slow
def test_one_update_leaves_a_policy_that_acts_and_a_second_call_goes_on(tmp_path):
    from st4vla.platform.checkpoint import load_policy
    from st4vla.workers.cluster import EngineConfig, connect

    config = RlConfig(VectorConfig(), SMALL, steps=64, episodes=1, run_dir=str(tmp_path))
    with Tracker.open(TrackingConfig(enabled=False), "rl", "test") as tracker, connect(EngineConfig(num_cpus=1)):
        first = reinforce(config, tracker)
        again = reinforce(config, tracker)
        further = reinforce(dataclasses.replace(config, steps=first.standing.steps + 1), tracker)
    assert first.standing.steps >= 64 and first.evaluated.total == 1
    assert again.standing == first.standing
    assert further.standing.iterations == 2 and further.standing.steps > first.standing.steps
    policy = load_policy(first.checkpoint)
    assert policy.spec.state_form == "privileged" and policy.spec.cameras == () and policy.spec.chunk_length == 1
    action = policy.act([Observation({}, np.zeros(32, np.float32), "reach")], ["a"], [(0, 0)])[0].actions
    assert action.shape == (1, 7) and action[0, 6] == 1.0 and np.abs(action[0, :3]).max() <= 0.05
