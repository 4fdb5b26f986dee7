"""Numbers and facts of our own travel beside LeRobot's, in either format, and say which frames may start a sample."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.data.sources import ActionSource
from st4vla.platform.errors import DataError

Make = Callable[..., Episode]


def marked(episode: Episode) -> Episode:
    columns = {"fresh": np.array([1, 0, 1, 0, 0]), "plan_age_ms": np.arange(5, dtype=np.float32)}
    return replace(episode, columns=columns, facts={"robot": "arm-1", "models": ["7", "8"]})


@pytest.fixture
def marked_folder(tmp_path: Path, version: str, make_episode: Make) -> Path:
    for seed in range(2):
        with LeRobotWriter(tmp_path, WriterConfig(formats=(version,))) as writer:
            writer.add(marked(make_episode(seed)))
    return tmp_path


def test_columns_and_facts_come_back_as_they_were_given(marked_folder: Path) -> None:
    read = open_dataset(marked_folder).episode(1)
    assert read.facts == {"robot": "arm-1", "models": ["7", "8"]}
    assert read.columns["fresh"].tolist() == [1, 0, 1, 0, 0] and read.columns["fresh"].dtype == np.int64
    assert read.columns["plan_age_ms"].tolist() == [0, 1, 2, 3, 4] and read.columns["plan_age_ms"].dtype == np.float32


def test_only_fresh_frames_start_a_training_sample_and_held_ones_keep_their_actions(marked_folder: Path) -> None:
    dataset = open_dataset(marked_folder)
    source = ActionSource(dataset, chunk_length=3)
    assert (len(source), dataset.num_frames) == (4, 10)
    sample = source.load(1, np.random.default_rng(0))
    np.testing.assert_array_equal(sample.actions, dataset.columns.actions[2:5])


def test_an_episode_without_the_columns_of_its_dataset_is_refused(marked_folder: Path, version: str) -> None:
    with LeRobotWriter(marked_folder, WriterConfig(formats=(version,))) as writer:
        plain = replace(open_dataset(marked_folder).episode(0), columns={}, spec_id="other")
        with pytest.raises(DataError, match="columns"):
            writer.add(plain)


def test_a_column_of_another_length_or_dtype_is_refused(make_episode: Make) -> None:
    with pytest.raises(DataError, match="4 rows"):
        replace(make_episode(0), columns={"fresh": np.ones(4, np.int64)})
    with pytest.raises(DataError, match="float64"):
        replace(make_episode(0), columns={"fresh": np.ones(5)})
