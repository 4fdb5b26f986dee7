"""Facts about a whole evaluation, on a real Ray and in the world of one dot."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError, DataError
from st4vla.workers.actors import InferenceConfig
from st4vla.workers.cluster import EngineConfig, connect
from st4vla.workers.eval_config import EvalConfig
from st4vla.workers.evaluate import evaluate, plan_episodes, run_folder
from st4vla.workers.ledger import without_timings
from st4vla.workers.policies import PolicySource


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


def test_a_finished_evaluation_and_another_one_have_different_folders(tmp_path: Path):
    one, two = config(tmp_path), config(tmp_path, seed=1)
    assert run_folder(one, plan_episodes(one)) != run_folder(two, plan_episodes(two))
    assert run_folder(one, plan_episodes(one)) == run_folder(replace(one, workers=7), plan_episodes(one))


def test_a_named_folder_of_another_plan_is_refused(tmp_path: Path):
    from st4vla.workers.ledger import Ledger

    one, two = config(tmp_path, name="x"), config(tmp_path, name="x", seed=1)
    Ledger(tmp_path / "x" / "ledger.jsonl", plan_episodes(one), one.settings()).close()
    with pytest.raises(DataError, match="seed was 0, is 1"):
        evaluate(two)


def test_unknown_worlds_and_suites_are_refused_before_any_actor_starts(tmp_path: Path):
    with pytest.raises(ConfigError, match="world is 'moon'; expected one of tabletop, dot"):
        evaluate(config(tmp_path, world="moon"))
    with pytest.raises(ConfigError, match="suite 'sen' is unknown"):
        evaluate(config(tmp_path, suites=("sen",)))


def test_no_episodes_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="episodes is 0"):
        config(tmp_path, episodes=0)
