"""The size of a camera's frames is found however a dataset states it, and must be that of its videos."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.data.video import stated_size
from st4vla.platform.errors import DataError

KEYS = ("observation.images.third_person", "observation.images.wrist")
LAST, FIRST = ["height", "width", "channels"], ["channels", "height", "width"]


@pytest.mark.parametrize(
    ("shape", "names", "info"),
    [
        ([48, 64, 3], LAST, {}),
        ([48, 64, 3], None, {}),
        ([3, 48, 64], FIRST, {}),
        ([3, 48, 64], ["channel", "height", "width"], {}),
        ([3, 64, 48], ["channel", "width", "height"], {}),
        ([3, 48, 64], None, {}),
        ([3, 48, 64], LAST, {}),
        ([48, 64, 1], LAST, {}),
        ([1, 48, 64], None, {"info": {"video.height": 48, "video.width": 64}}),
        ([], None, {"video_info": {"video.height": 48, "video.width": 64}}),
    ],
)
def test_height_and_width_are_found_by_names_by_the_side_of_3_or_by_the_video(
    shape: list[int], names: Any, info: dict[str, Any]
) -> None:
    assert stated_size({"shape": shape, "names": names, **info}, "info.json: 'top'") == (48, 64)


def test_a_shape_that_tells_neither_is_named() -> None:
    with pytest.raises(DataError, match=r"info.json: 'top' has shape \[1, 48, 64\] and names None; expected a height"):
        stated_size({"shape": [1, 48, 64], "names": None}, "info.json: 'top'")


def test_channels_first_give_the_same_frames_from_the_cache_and_the_same_checks_of_boxes(
    tmp_path: Path, version: str, make_episode: Callable[..., Episode]
) -> None:
    folder = written(tmp_path / "set", version, make_episode(0))
    plain = open_dataset(folder)
    restate(folder, [3, 32, 48], FIRST)
    cached = open_dataset(folder, FrameCache(FrameCacheConfig(str(tmp_path / "cache"))))
    for camera in cached.cameras:
        assert cached.image(2, camera).shape == (32, 48, 3)
        np.testing.assert_array_equal(cached.image(2, camera), plain.image(2, camera))
    seen, same = cached.annotation(2, "third_person"), plain.annotation(2, "third_person")
    assert seen is not None and same is not None and seen.boxes == same.boxes


def test_videos_of_another_size_than_the_metadatas_are_named_with_both(
    tmp_path: Path, version: str, make_episode: Callable[..., Episode]
) -> None:
    folder = written(tmp_path / "set", version, make_episode(0))
    restate(folder, [16, 48, 3], LAST)
    dataset = open_dataset(folder, FrameCache(FrameCacheConfig(str(tmp_path / "cache"))))
    with pytest.raises(DataError, match=r"\.mp4 has frames of 32x48 pixels .*info.json says 16x48 of .*third_person"):
        dataset.image(0, "third_person")


def written(folder: Path, version: str, episode: Episode) -> Path:
    """Write one episode, its frames cut to 32x48 pixels."""
    frames = {name: np.repeat(pictures, 2, 2)[:, :, :48] for name, pictures in episode.frames.items()}
    episode = Episode(**{**vars(episode), "frames": frames, "annotations": dict(episode.annotations)})
    with LeRobotWriter(folder, WriterConfig(formats=(version,))) as writer:
        writer.add(episode)
    return folder


def restate(folder: Path, shape: list[int], names: list[str]) -> None:
    """State another shape of both cameras."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    for key in KEYS:
        info["features"][key] |= {"shape": shape, "names": names}
    path.write_text(json.dumps(info))
