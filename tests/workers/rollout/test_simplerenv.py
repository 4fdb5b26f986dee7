"""Facts about SimplerEnv's episodes in the engine; those that build a scene need its files (ST4VLA_ASSETS)."""

import os
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.contracts import PolicySpec
from st4vla.platform.errors import St4vlaError
from st4vla.platform.policy.random_policy import RandomPolicy
from st4vla.workers.evaluation.evaluate import evaluate, plan_episodes
from st4vla.workers.evaluation.ledger import make_row, without_timings
from st4vla.workers.evaluation.settings import EvalConfig
from st4vla.workers.results.official import official_tables, published
from st4vla.workers.rollout.episode import RolloutOptions
from st4vla.workers.rollout.execution import PresetChanges, make_executor
from st4vla.workers.rollout.inference import LocalClient
from st4vla.workers.rollout.policies import PolicySource
from st4vla.workers.rollout.pooled import RolloutWorker
from st4vla.workers.rollout.worlds import SIMPLER_SUITES, family

SPEC = PolicySpec((), 128, 0, 7, 4, 5.0, "")
needs_assets = pytest.mark.skipif(not os.environ.get("ST4VLA_ASSETS"), reason="SimplerEnv's files: set ST4VLA_ASSETS")


def config(folder: Path, **changes) -> EvalConfig:
    return EvalConfig(**{"policy": PolicySource("random"), "run_dir": str(folder), "films": 0} | changes)


def test_a_task_without_its_files_says_so_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("ST4VLA_ASSETS", str(tmp_path / "assets"))
    with pytest.raises(St4vlaError, match="assets fetch"):
        evaluate(config(tmp_path / "runs", suites=("simplerenv_widowx",), tasks=("stack_cube",)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("suite", ["simplerenv_widowx", "simplerenv_google_vm", "simplerenv_google_va"])
def test_published_columns_hold_exactly_the_tasks_of_the_suite(suite: str):
    tasks = {spec.task for spec in family("simpler").plan(suite, (), None, 0)}
    assert {task for column in published()[suite]["columns"].values() for task in column} == tasks


def test_every_suite_of_simplerenv_is_known_by_name():
    from st4vla.envs.simpler.suites import SUITES

    assert set(SIMPLER_SUITES) == set(SUITES)
    assert len(plan_episodes(config(Path("x"), suites=("simplerenv_widowx", "simplerenv_google_vm")))) == 96 + 864


def test_a_robot_of_simplerenv_is_driven_by_its_own_execution():
    chunk = np.tile(np.array([0.01, 0, 0, 0, 0, 0, 1.0], np.float32), (4, 1))
    widowx = make_executor("widowx", lambda: np.zeros(7), SPEC)
    widowx.reset()
    widowx.take(chunk)
    assert widowx.next_action()[6] == 1.0 and widowx.must_look()
    chunks_of_four = make_executor("google_robot", lambda: np.zeros(7), SPEC, execute=4)
    chunks_of_four.reset()
    chunks_of_four.take(chunk)
    assert [chunks_of_four.next_action()[0] for _ in range(4)] == [np.float32(0.01)] * 4
    assert chunks_of_four.must_look()


def test_a_horizon_of_one_executes_a_policy_servers_chunks_as_they_came():
    chunks = np.zeros((2, 16, 7), np.float32)
    chunks[..., 0] = np.arange(32).reshape(2, 16) / 100
    plain = make_executor("widowx", lambda: np.zeros(7), SPEC, 8, PresetChanges(ensemble_horizon=1))
    plain.reset()
    given = []
    for chunk in chunks:
        assert plain.must_look()
        plain.take(chunk)
        given += [plain.next_action()[0] for _ in range(8)]
    assert np.array_equal(given, chunks[:, :8, 0].ravel())


@pytest.mark.parametrize("suite", SIMPLER_SUITES)
def test_a_suite_names_the_robot_that_its_worlds_have(suite: str):
    from st4vla.envs.simpler.robot import robot_model
    from st4vla.envs.simpler.suites import case_of

    worlds = family("simpler")
    specs = {spec.task: spec for spec in worlds.plan(suite, (), None, 0)}.values()
    assert {robot_model(case_of(spec).build["robot"]).embodiment for spec in specs} == {worlds.robot_of(suite)}


@needs_assets
@pytest.mark.sim
@pytest.mark.slow
def test_an_episode_runs_to_its_last_step_and_repeats_after_another():
    worlds = family("simpler")
    worker = RolloutWorker(
        worlds.make_world,
        lambda world: LocalClient(RandomPolicy()),
        RolloutOptions(execute=8).ending(worlds.stop_on_success),
        worlds.key_of,
    )
    plan = worlds.plan("simplerenv_widowx", ("stack_cube", "carrot_on_plate"), 1, 0)
    first, other, again = (worker.run(spec).result for spec in (plan[0], plan[1], plan[0]))
    worker.close()
    assert (first.steps, first.looks, first.failure, first.reason) == (60, 8, "task", "")
    rows = [make_row(plan[0], result) for result in (first, again)]
    assert without_timings(rows[0]) == without_timings(rows[1])
    (table,) = official_tables([make_row(spec, result) for spec, result in zip(plan, (first, other), strict=True)])
    assert [column.pooled.total for column in table.columns] == [0, 1, 1, 0]
