"""Facts about a whole evaluation, on a real Ray and in the world of one dot."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.server import serve

from st4vla.envs.suites import SUITES
from st4vla.platform.errors import ConfigError, DataError, PolicyError, WorkerLost
from st4vla.platform.policy.random_policy import RandomPolicyConfig
from st4vla.platform.policy.remote import RemoteConfig
from st4vla.platform.wire import openpi
from st4vla.workers.cluster import EngineConfig, connect
from st4vla.workers.evaluation.evaluate import evaluate, plan_episodes, run_folder
from st4vla.workers.evaluation.ledger import read_rows, without_timings
from st4vla.workers.evaluation.settings import EvalConfig
from st4vla.workers.results.sequential import StopConfig
from st4vla.workers.rollout.actors import InferenceConfig
from st4vla.workers.rollout.policies import PolicySource
from st4vla.workers.rollout.pool import PoolConfig
from st4vla.workers.rollout.worlds import FAMILIES, family


def config(folder: Path, **changes) -> EvalConfig:
    given = {"policy": PolicySource("expert"), "world": "dot", "suites": ("seen", "moved_object"), "tasks": ("dot",)}
    return EvalConfig(**given | {"episodes": 3, "run_dir": str(folder), "films": 1, "workers": 2} | changes)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with connect(EngineConfig(num_cpus=2)):
        yield


@pytest.mark.ray
@pytest.mark.slow
def test_an_evaluation_leaves_rows_films_a_report_and_its_numbers(tmp_path: Path, local_ray: None):
    done = evaluate(config(tmp_path))
    assert len(done.rows) == 9
    assert [group.name for group in done.summary.groups] == [
        "moved_object / dot",
        "moved_object / dot (disturbed)",
        "seen / dot",
    ]
    assert done.summary.groups[2].success.value == 1.0
    assert len(list((done.folder / "films").glob("*.mp4"))) == 2
    assert json.loads((done.folder / "results.json").read_text())["episodes"] == 9
    assert "moved_object" in done.report.read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_what_is_missing_is_run_and_nothing_else(tmp_path: Path, local_ray: None):
    whole = evaluate(config(tmp_path, films=0, policy=PolicySource("random")))
    path = whole.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    again = evaluate(config(tmp_path, films=0, policy=PolicySource("random"), workers=1))
    assert path.read_bytes().splitlines(keepends=True)[:5] == lines[:5]
    assert [without_timings(row) for row in again.rows] == [without_timings(row) for row in whole.rows]
    batched = config(tmp_path / "b", films=0, policy=PolicySource("random"), inference=InferenceConfig("actor"))
    other = evaluate(batched)
    assert [without_timings(row) for row in other.rows] == [without_timings(row) for row in whole.rows]


@pytest.mark.ray
@pytest.mark.slow
def test_a_sequential_test_stops_at_the_same_episode_whatever_the_number_of_actors(tmp_path: Path, local_ray: None):
    stop = StopConfig(0.3, 0.6)
    one, two = (
        evaluate(config(tmp_path / str(n), suites=("seen",), episodes=40, films=0, workers=n, stop=stop))
        for n in (1, 2)
    )
    assert one.decision is not None and one.decision == two.decision
    assert (one.decision.verdict, len(one.rows)) == ("high", 5)
    assert [without_timings(row) for row in one.rows] == [without_timings(row) for row in two.rows]
    assert 5 <= len(read_rows(two.folder / "ledger.jsonl")[1]) < 40
    assert "sequential test" in one.report.read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_that_answers_nan_costs_infrastructure_failures_and_can_be_tried_again(
    tmp_path: Path, local_ray: None
):
    answer = {"actions": np.full((8, 7), np.nan)}

    def talk(connection):
        connection.send(openpi.pack({}))
        for _ in connection:
            connection.send(openpi.pack(answer))

    with serve(talk, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        source = PolicySource("remote", remote=RemoteConfig(url))
        given = config(tmp_path, policy=source, suites=("seen",), films=0, pool=PoolConfig(retries=0))
        with pytest.raises(WorkerLost, match="2 episodes in a row were ended by infrastructure, the last by policy"):
            evaluate(replace(given, give_up_after=2))
        done = evaluate(given)
        assert [row["failure"] for row in done.rows] == ["policy"] * 3
        assert "row 0 of the policy's chunk is [nan" in done.rows[0]["reason"]
        assert (done.summary.groups[0].success.total, done.summary.groups[0].infrastructure) == (0, 3)
        answer["actions"] = np.zeros((8, 7))
        again = evaluate(replace(given, retry_failed=True))
        assert [row["failure"] for row in again.rows] == ["task"] * 3
        server.shutdown()
    with pytest.raises(PolicyError, match=f"no policy server answered at {url}"):
        evaluate(replace(given, seed=1))


def test_what_a_plan_needs_is_checked_before_any_actor_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def check(plan):
        raise DataError("its assets are missing")

    monkeypatch.setitem(FAMILIES, "dot", replace(FAMILIES["dot"], check=check))
    with pytest.raises(DataError, match="its assets are missing"):
        evaluate(config(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_suite_finds_its_family(tmp_path: Path):
    assert config(tmp_path, world="").family_name == "tabletop"
    assert family("tabletop").suites == tuple(SUITES)
    with pytest.raises(ConfigError, match="suite 'sen' is unknown; expected one of seen, "):
        plan_episodes(config(tmp_path, world="", suites=("sen",)))


def test_a_finished_evaluation_and_another_one_have_different_folders(tmp_path: Path):
    one, two = config(tmp_path), config(tmp_path, seed=1)
    assert run_folder(one, plan_episodes(one)) != run_folder(two, plan_episodes(two))
    assert run_folder(one, plan_episodes(one)) == run_folder(replace(one, workers=7), plan_episodes(one))


def test_a_random_policy_of_other_steps_is_another_policy(tmp_path: Path):
    usual, bold = (config(tmp_path, policy=PolicySource("random", RandomPolicyConfig(step_m=m))) for m in (0.02, 0.1))
    assert usual.policy.digest() == "random"
    assert run_folder(usual, plan_episodes(usual)) != run_folder(bold, plan_episodes(bold))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (PolicySource("expert"), "no scripted expert"),
        (PolicySource("random", RandomPolicyConfig(cameras=("third_person", "wrist"))), "these suites show 1"),
        (PolicySource("remote", remote=RemoteConfig("ws://127.0.0.1:9")), "observation/wrist_image: null"),
    ],
)
def test_a_policy_that_cannot_act_in_a_suite_is_refused_before_anything_starts(tmp_path: Path, policy, message: str):
    with pytest.raises(ConfigError, match=message):
        evaluate(config(tmp_path, policy=policy, world="", suites=("simplerenv_widowx",), tasks=()))
    assert not list(tmp_path.iterdir())


def test_a_named_folder_of_another_plan_is_refused(tmp_path: Path):
    from st4vla.workers.evaluation.ledger import Ledger

    one, two = config(tmp_path, name="x"), config(tmp_path, name="x", seed=1)
    Ledger(tmp_path / "x" / "ledger.jsonl", plan_episodes(one), one.settings()).close()
    with pytest.raises(DataError, match="seed was 0, is 1"):
        evaluate(two)


def test_unknown_worlds_and_suites_are_refused_before_any_actor_starts(tmp_path: Path):
    with pytest.raises(ConfigError, match="world is 'moon'; expected one of tabletop, simpler, dot"):
        evaluate(config(tmp_path, world="moon"))
    with pytest.raises(ConfigError, match="suite 'sen' is unknown"):
        evaluate(config(tmp_path, suites=("sen",)))


def test_variants_are_refused_where_there_are_none(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"variants is \['base'\]; only SimplerEnv's suites have some"):
        evaluate(config(tmp_path, variants=("base",)))
    given = {"world": "", "suites": ("simplerenv_google_va",), "tasks": ("move_near",), "variants": ("base",)}
    chosen = config(tmp_path, episodes=None, **given)
    assert {spec.variant for spec in plan_episodes(chosen)} == {"base"} and len(plan_episodes(chosen)) == 60
    assert chosen.settings()["variants"] == ["base"]


def test_no_episodes_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="episodes is 0"):
        config(tmp_path, episodes=0)
