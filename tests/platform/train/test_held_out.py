"""What cannot be read of the held-out samples is left out; only where nothing can be read does it stop a run."""

from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.frame_cache import FrameCacheConfig
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.errors import DataError
from st4vla.platform.train.inspections import held_out_episode
from st4vla.platform.train.source_config import ReadingConfig, SourceConfig, load_first, load_spread
from st4vla.platform.train.sources import LeRobotSource


class Torn:
    """Sample i is the number i; those of `torn` cannot be read."""

    name = "numbers"

    def __init__(self, *torn: int) -> None:
        self.torn = torn

    def __len__(self) -> int:
        return 9

    def load(self, item: int, rng: np.random.Generator) -> int:
        if item in self.torn:
            raise DataError(f"row {item} is torn")
        return item


def test_unreadable_held_out_samples_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    assert load_spread(Torn(), 3) == [0, 4, 8]
    assert load_spread(Torn(4), 3) == [0, 8] and "sample 4 of numbers is left out: row 4 is torn" in caplog.text
    with pytest.raises(DataError, match="none of 3 samples of numbers could be read. The last one: row 8 is torn"):
        load_spread(Torn(0, 4, 8), 3)


def test_the_first_sample_is_the_first_that_can_be_read() -> None:
    assert [load_first(Torn()), load_first(Torn(0, 1)), load_first(Torn(*range(8)))] == [0, 3, 8]
    with pytest.raises(DataError, match="row 8 is torn"):
        load_first(Torn(*range(9)))


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_video_of_a_held_out_episode_costs_its_own_samples(tmp_path: Path, cached: bool) -> None:
    frames = {"wrist": np.full((4, 32, 32, 3), 90, np.uint8)}
    actions = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    with LeRobotWriter(tmp_path / "set", WriterConfig(formats=("v2.1",))) as writer:
        for seed in range(4):
            writer.add(Episode("open it", "open", actions, None, frames, spec_id=str(seed)))
    cache = FrameCacheConfig(str(tmp_path / "cache")) if cached else None
    reading = ReadingConfig(("wrist",), 2, "arm", held_out_share=0.5, frame_cache=cache)
    source = LeRobotSource(SourceConfig(str(tmp_path / "set")), reading)
    first, second = source.held_out
    (video,) = (tmp_path / "set" / "videos").rglob(f"episode_{first:06d}.mp4")
    video.write_bytes(b"torn")
    assert len(source.held_out_robot(8)) == 4
    chunks, name = held_out_episode([source])
    assert len(chunks) == 2 and name == f"set, episode {second}"
