"""Facts about collecting, on a real Ray with the real simulator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.errors import ConfigError, DataError, EnvError
from st4vla.workers.cluster import EngineConfig, connect
from st4vla.workers.collect import CollectConfig, check_resume, collect


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.slow
def test_a_collection_goes_on_with_the_episodes_of_one_made_in_one_go(tmp_path: Path):
    first = CollectConfig(tasks=("reach",), episodes=1, out=str(tmp_path / "a"), workers=1)
    with connect(EngineConfig(num_cpus=2)):
        assert collect(first).kept == 1
        grown = collect(replace(first, episodes=3, workers=2))
        whole = collect(replace(first, episodes=3, out=str(tmp_path / "b")))
        nothing = collect(replace(first, episodes=3))
    assert (grown.kept, grown.new_episodes, nothing.new_episodes) == (3, 2, 0)
    one, other = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert whole.frames == one.num_frames == other.num_frames
    for left, right in zip(map(one.episode, range(3)), map(other.episode, range(3)), strict=True):
        assert left.spec_id == right.spec_id
        assert np.array_equal(left.actions, right.actions)
        assert all(np.array_equal(left.frames[camera], right.frames[camera]) for camera in left.frames)
    assert len(one.grounding_samples(0)) > 0


def test_a_ledger_without_its_dataset_is_refused(tmp_path: Path):
    rows = [{"success": True, "episode_id": "ab"}, {"success": False, "episode_id": "cd"}]
    with pytest.raises(DataError, match="1 episodes were written which the dataset does not hold"):
        check_resume(frozenset(), rows, tmp_path)
    check_resume(frozenset({"ab"}), rows, tmp_path)


def test_worlds_without_an_expert_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ConfigError, match="no scripted expert; choose random"):
        collect(CollectConfig(world="simpler", tasks=("widowx_spoon_on_towel",), out=str(tmp_path / "dataset")))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_refused_before_the_folder_is_bound_to_it(tmp_path: Path):
    with pytest.raises(EnvError, match="There is no task 'reech'"):
        collect(CollectConfig(tasks=("reach", "reech"), out=str(tmp_path / "dataset")))
    assert list(tmp_path.iterdir()) == []


def test_a_task_named_twice_is_a_config_error():
    with pytest.raises(ConfigError, match="each once"):
        CollectConfig(tasks=("reach", "reach"))
