"""Facts about the pool of rollout actors, on a real Ray and in the world of one dot."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.cluster import EngineConfig, connect
from st4vla.workers.rollout.actors import InferenceConfig, WorkerSetup, rollout_actor_factory, start_inference
from st4vla.workers.rollout.episode import RolloutOptions
from st4vla.workers.rollout.policies import PolicySource
from st4vla.workers.rollout.pool import Pool, PoolConfig
from st4vla.workers.rollout.watchdog import WatchConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with connect(EngineConfig(num_cpus=2)):
        yield


def plan(variants: list[str]) -> list[EpisodeSpec]:
    return [EpisodeSpec("seen", "dot", variant, seed, "go") for seed, variant in enumerate(variants)]


def run_pool(specs, num_actors=2, config=None, inference=(), on_value=lambda pool, value: None, watch=None):
    setup = WorkerSetup(PolicySource("random"), RolloutOptions(), "dot", watch=watch or WatchConfig())
    retries: list[tuple[int, str]] = []
    pool: Pool[EpisodeSpec] = Pool(
        rollout_actor_factory(setup, num_actors, inference),
        num_actors,
        config or PoolConfig(),
        on_retry=lambda spec, reason: retries.append((spec.seed, reason)),
        spent=lambda rollout: rollout.spent,
    )
    left = iter(specs)
    outcomes = []
    try:
        for outcome in pool.run(
            lambda index: next(left, None),
            lambda actor, spec: actor.run.remote(spec),
            lambda rollout: rollout.result.reason,
        ):
            outcomes.append(outcome)
            on_value(pool, outcome)
    finally:
        pool.close()
    return outcomes, retries


def rows(outcomes):
    results = [(outcome.item.seed, outcome.value.result) for outcome in outcomes]
    return [(seed, result.success, result.steps, result.partial_credit) for seed, result in sorted(results, key=str)]


def test_one_actor_and_four_that_share_a_batching_one_give_the_same_rows():
    specs = plan(["default"] * 12)
    alone, _ = run_pool(specs, num_actors=1)
    inference = start_inference(PolicySource("random"), InferenceConfig(place="actor"), 4)
    batched, _ = run_pool(specs, num_actors=4, inference=inference)
    assert rows(alone) == rows(batched)
    assert len(alone) == 12


def test_an_actor_that_dies_is_replaced_and_its_episode_runs_again(tmp_path: Path):
    dies = f"dies:{tmp_path}"
    outcomes, retries = run_pool(plan(["default", dies, "default", "default", dies, "default"]))
    assert sorted(outcome.item.seed for outcome in outcomes) == [0, 1, 2, 3, 4, 5]
    assert all(outcome.failure == "" for outcome in outcomes)
    assert sorted(seed for seed, _ in retries) == [1, 4]


def test_an_actor_killed_from_outside_costs_no_episode():
    import ray

    killed = []

    def kill_once(pool, outcome):
        if not killed:
            killed.append(ray.get(pool.actors[0].pid.remote()))
            os.kill(killed[0], signal.SIGKILL)

    outcomes, _ = run_pool(plan(["default"] * 8), on_value=kill_once)
    assert sorted(outcome.item.seed for outcome in outcomes) == list(range(8))


def test_a_crash_is_retried_then_reported_with_its_reason():
    outcomes, retries = run_pool(plan(["crashes", "default"]), config=PoolConfig(retries=1))
    crashed = next(outcome for outcome in outcomes if outcome.item.seed == 0)
    assert crashed.value.result.failure == "crash"
    assert "the dot left its world" in crashed.value.result.reason
    assert [seed for seed, _ in retries] == [0]


def test_an_episode_that_hangs_times_out_and_the_rest_is_done():
    config = PoolConfig(retries=0, timeout_s=3)
    outcomes, _ = run_pool(plan(["hangs", "default", "default"]), config=config)
    hung = next(outcome for outcome in outcomes if outcome.item.seed == 0)
    assert hung.failure == "timeout"
    assert sorted(outcome.item.seed for outcome in outcomes) == [0, 1, 2]


def test_a_step_that_hangs_ends_its_episode_with_what_hung_and_its_process_is_replaced():
    watch = WatchConfig(step_timeout_s=1.0)
    outcomes, retries = run_pool(plan(["hangs"] + ["default"] * 4), config=PoolConfig(retries=1), watch=watch)
    hung = next(outcome for outcome in outcomes if outcome.item.seed == 0)
    assert (hung.value.result.failure, hung.value.spent) == ("timeout", True)
    assert hung.value.result.reason == "physics gave no answer within 1 s (step 2)"
    assert [seed for seed, _ in retries] == [0]
    assert sorted(outcome.item.seed for outcome in outcomes) == [0, 1, 2, 3, 4]


def test_what_waits_at_a_hung_actor_is_done_by_the_others():
    config = PoolConfig(retries=0, timeout_s=12, in_flight=5)
    outcomes, _ = run_pool(plan(["hangs"] + ["default"] * 8), config=config)
    assert outcomes[-1].item.seed == 0
    assert sorted(outcome.item.seed for outcome in outcomes) == list(range(9))


def test_an_unknown_policy_is_refused_before_any_actor_starts():
    with pytest.raises(ConfigError, match="does not exist; expected random, expert, or a checkpoint folder"):
        PolicySource("/nowhere/at/all")
