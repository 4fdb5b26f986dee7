"""What is written is what is read, in either format."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.errors import ConfigError, DataError

Make = Callable[..., Episode]


def test_five_episodes_of_five_frames_come_back(dataset_folder: Path, version: str, make_episode: Make) -> None:
    dataset = open_dataset(dataset_folder)
    assert (dataset.meta.version, dataset.num_episodes, dataset.num_frames, dataset.fps) == (version, 5, 25, 5)
    assert list(dataset.cameras) == ["third_person", "wrist"]
    for seed in range(5):
        wrote, read = make_episode(seed), dataset.episode(seed)
        np.testing.assert_array_equal(read.actions, wrote.actions)
        np.testing.assert_array_equal(read.states, wrote.states)
        assert (read.instruction, read.task, read.seed) == (wrote.instruction, "put_on", seed)
        assert read.spec_id == f"{seed:016x}"


def test_frames_come_back_within_a_few_grey_levels(dataset_folder: Path, make_episode: Make) -> None:
    dataset = open_dataset(dataset_folder)
    for seed in (0, 1, 4):
        for camera, frames in make_episode(seed).frames.items():
            error = np.abs(dataset.episode(seed).frames[camera].astype(int) - frames)
            assert error.mean() < 4


def test_annotations_come_back_whole_and_only_where_they_were(dataset_folder: Path) -> None:
    dataset = open_dataset(dataset_folder)
    note = dataset.annotation(17, "third_person")  # step 2 of episode 3
    assert note is not None and note.mask is not None
    assert note.boxes == {"red cube": (6.0, 8.0, 14.0, 16.0), "blue bowl": (20.0, 20.0, 28.0, 28.0)}
    assert note.points == {"red cube": (10.0, 12.0)}
    assert (note.target, note.destination, note.subgoal) == ("red cube", "blue bowl", "grasp the red cube")
    assert note.trace == ((1.0, 2.0), (10.0, 12.0))
    assert note.mask.dtype == np.int8 and note.mask.sum() == 4 and note.mask.shape == (8, 8)
    assert dataset.annotation(17, "wrist") is None


def test_a_chunk_repeats_the_last_action_and_marks_it_as_padding(dataset_folder: Path, make_episode: Make) -> None:
    dataset = open_dataset(dataset_folder)
    sample = dataset.action_sample(8, 4)  # step 3 of episode 1, which has 5 steps
    actions = make_episode(1).actions
    np.testing.assert_array_equal(sample.actions, actions[[3, 4, 4, 4]])
    assert sample.is_pad.tolist() == [False, False, True, True]
    assert sample.instruction == "put the red cube in bowl 1"
    assert sample.statistics_key == "tabletop_panda"
    assert sample.images["wrist"].shape == (32, 32, 3)


def test_equal_episodes_give_equal_rows_digests_and_pictures(tmp_path: Path, version: str, make_episode: Make) -> None:
    for name in ("one", "two"):
        with LeRobotWriter(tmp_path / name, WriterConfig(formats=(version,))) as writer:
            for seed in range(2):
                writer.add(make_episode(seed))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    rows = [name for name in files if name.suffix != ".mp4"]
    different = [
        name for name in rows if (tmp_path / "one" / name).read_bytes() != (tmp_path / "two" / name).read_bytes()
    ]
    assert different == [] and len(rows) < len(files)
    one, two = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "two")
    assert one.digest == two.digest
    # About one run in dozens x264 chooses other bytes for the same frames, so pictures are compared as they look.
    for camera in one.cameras:
        apart = one.episode(1).frames[camera].astype(int) - two.episode(1).frames[camera]
        assert np.abs(apart).mean() < 1.0


def test_both_formats_are_written_in_one_pass(tmp_path: Path, make_episode: Make) -> None:
    with LeRobotWriter(tmp_path, WriterConfig(formats=("v2.1", "v3.0"))) as writer:
        writer.add(make_episode(0))
    read = [open_dataset(tmp_path / name).episode(0) for name in ("v2.1", "v3.0")]
    np.testing.assert_array_equal(read[0].frames["wrist"], read[1].frames["wrist"])
    np.testing.assert_array_equal(read[0].actions, read[1].actions)


def test_v30_lays_files_and_tables_out_as_lerobot_does(tmp_path: Path, make_episode: Make) -> None:
    with LeRobotWriter(tmp_path, WriterConfig(formats=("v3.0",), episodes_per_file=2)) as writer:
        for seed in range(3):
            writer.add(make_episode(seed))
    assert (tmp_path / "videos/observation.images.wrist/chunk-000/file-001.mp4").is_file()
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in rows] == [5, 10]
    assert [row["videos/observation.images.wrist/from_timestamp"] for row in rows] == [0.0, 1.0]
    assert len(rows[0]["stats/action/q99"]) == 7
    assert pq.read_table(tmp_path / "meta/tasks.parquet").column_names == ["task_index", "task"]
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["total_frames"] == 15
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def test_v21_keeps_one_file_per_episode_and_its_statistics(tmp_path: Path, make_episode: Make) -> None:
    with LeRobotWriter(tmp_path, WriterConfig(formats=("v2.1",))) as writer:
        for seed in range(3):
            writer.add(make_episode(seed))
    assert (tmp_path / "data/chunk-000/episode_000002.parquet").is_file()
    assert (tmp_path / "videos/chunk-000/observation.images.wrist/episode_000002.mp4").is_file()
    lines = [json.loads(line) for line in (tmp_path / "meta/episodes_stats.jsonl").read_text().splitlines()]
    assert [line["episode_index"] for line in lines] == [0, 1, 2]
    assert lines[0]["stats"]["action"]["count"] == [5]
    assert np.shape(lines[0]["stats"]["observation.images.wrist"]["mean"]) == (3, 1, 1)
    modality = json.loads((tmp_path / "meta/modality.json").read_text())
    assert modality["action"]["gripper"] == {"start": 6, "end": 7, "original_key": "action"}


def test_an_existing_dataset_is_appended_to(dataset_folder: Path, version: str, make_episode: Make) -> None:
    config = WriterConfig(formats=(version,), episodes_per_file=2)
    with LeRobotWriter(dataset_folder, config) as writer:
        assert writer.num_episodes == 5 and len(writer.spec_ids) == 5
        assert writer.add(make_episode(3)) is False
        assert writer.add(make_episode(5)) is True
    dataset = open_dataset(dataset_folder)
    assert dataset.num_episodes == 6
    np.testing.assert_array_equal(dataset.episode(5).actions, make_episode(5).actions)
    np.testing.assert_array_equal(dataset.episode(4).actions, make_episode(4).actions)
    assert dataset.episode(5).annotations["third_person"][4].points == {"red cube": (12.0, 12.0)}


def test_an_episode_of_another_form_is_refused_with_both_forms_named(
    dataset_folder: Path, version: str, make_episode: Make
) -> None:
    with LeRobotWriter(dataset_folder, WriterConfig(formats=(version,))) as writer:
        with pytest.raises(DataError, match=r"cameras .*\(16, 16\).* \(32, 32\)"):
            writer.add(make_episode(6, size=16))
    assert open_dataset(dataset_folder).num_episodes == 5


def test_a_second_writer_is_refused(dataset_folder: Path, version: str) -> None:
    with LeRobotWriter(dataset_folder, WriterConfig(formats=(version,))):
        with pytest.raises(DataError, match="written by another process"):
            LeRobotWriter(dataset_folder, WriterConfig(formats=(version,)))


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="v4.0"):
        WriterConfig(formats=("v4.0",))
