"""A v2.0 dataset, whose statistics are one file and whose features say less, is read as v2.1 is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.data.show import summary_table
from st4vla.platform.errors import DataError

JOINTS = ["waist", "shoulder", "elbow", "forearm", "wrist_angle", "wrist_rotate", "gripper"]


@pytest.fixture
def old_and_new(tmp_path: Path, make_episode: Callable[..., Episode]) -> tuple[Path, Path]:
    """Write three episodes as v2.1 and lay a copy out as LeRobot 0.1 did v2.0."""
    new, old = tmp_path / "new", tmp_path / "old"
    with LeRobotWriter(new, WriterConfig(formats=("v2.1",), robot_type="aloha")) as writer:
        for seed in range(3):
            writer.add(make_episode(seed))
    shutil.copytree(new, old)
    for name in ("meta/episodes_stats.jsonl", "meta/modality.json", ".writer"):
        (old / name).unlink()
    shutil.rmtree(old / "annotations")
    stats = json.loads((old / "meta/stats.json").read_text())
    kept = {key: {name: one[name] for name in ("mean", "std", "max", "min")} for key, one in stats.items()}
    (old / "meta/stats.json").write_text(json.dumps(kept))
    info = json.loads((old / "meta/info.json").read_text()) | {"codebase_version": "v2.0"}
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            video = {"video.fps": 5.0, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False}
            names = ["height", "width", "channel"]
            info["features"][key] = {"dtype": "video", "shape": [32, 32, 3], "names": names, "video_info": video}
        elif key in ("action", "observation.state"):
            feature["names"] = {"motors": JOINTS}
    (old / "meta/info.json").write_text(json.dumps(info))
    rows = [json.loads(line) for line in (old / "meta/episodes.jsonl").read_text().splitlines()]
    plain = [{key: row[key] for key in ("episode_index", "tasks", "length")} for row in rows]
    (old / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    return old, new


def test_samples_statistics_and_frames_are_those_of_v21(old_and_new: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = (open_dataset(folder) for folder in old_and_new)
    assert (old.meta.version, old.num_episodes, old.num_frames, old.statistics_key) == ("v2.0", 3, 15, "aloha")
    cached = open_dataset(old_and_new[0], FrameCache(FrameCacheConfig(str(tmp_path / "cache"))))
    for index in (0, 7, 14):
        one, other = old.action_sample(index, 4), new.action_sample(index, 4)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.state, other.state)
        assert one.instruction == other.instruction and one.is_pad.tolist() == other.is_pad.tolist()
        for camera in ("third_person", "wrist"):
            np.testing.assert_array_equal(one.images[camera], other.images[camera])
            np.testing.assert_array_equal(cached.image(index, camera), other.images[camera])
    np.testing.assert_array_equal(old.statistics.action.q99, new.statistics.action.q99)
    assert [part.mode for part in old.statistics.action_slices] == ["q99", "q99", "binary"]
    episode = old.episode(1)
    assert len(episode) == 5 and (episode.task, episode.annotations) == ("", {})
    assert summary_table(old).row_count > 5


def test_its_motors_are_parts_and_its_missing_statistics_are_named(old_and_new: tuple[Path, Path]) -> None:
    folder = old_and_new[0]
    dataset = open_dataset(DatasetConfig(str(folder), action=("joints",), state=("gripper",)))
    assert dataset.columns.actions.shape == (15, 6) and dataset.statistics.action.width == 6
    (folder / "meta/stats.json").unlink()
    with pytest.raises(DataError, match=r"stats.json is missing; a v2.0 dataset needs its statistics"):
        _ = open_dataset(folder).statistics
