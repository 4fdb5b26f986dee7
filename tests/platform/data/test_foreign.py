"""Another lab's recording (LeRobot v2.1, four episodes, one camera) is read as it is; set ST4VLA_DATA to its folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.grounding import GroundingConfig
from st4vla.platform.data.internvla_annotations import read_annotations
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.show import ShowConfig, show
from st4vla.platform.data.sources import GroundingSource
from st4vla.platform.data.statistics import Normalizer
from st4vla.platform.data.video import decode
from st4vla.platform.errors import DataError

FOLDER = Path(os.environ.get("ST4VLA_DATA", "")) / "lerobot_v21_pick_place"
pytestmark = pytest.mark.skipif("ST4VLA_DATA" not in os.environ, reason="ST4VLA_DATA names no folder of datasets")
CONFIG = DatasetConfig(
    str(FOLDER), action=("delta_eef_position", "delta_eef_rotation", "gripper_close"), state=("state.joints",)
)


def test_its_1667_frames_and_parts_named_by_modality_json_are_read() -> None:
    dataset = open_dataset(CONFIG)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (4, 1667, 30)
    sample = dataset.action_sample(411, 16)
    assert sample.actions.shape == (16, 7) and sample.is_pad.tolist() == [False] + [True] * 15
    assert sample.state is not None and sample.state.shape == (7,)
    assert sample.images["ego_view"].shape == (480, 640, 3)
    assert sample.instruction == "Move the shoe to the top of the cooking pot."
    assert dataset.statistics_key == "franka_robotiq"
    assert dataset.statistics.action.min[6] == -1 and dataset.statistics.action.max[6] == 1


def test_without_a_column_named_action_the_parts_to_choose_from_are_listed() -> None:
    with pytest.raises(DataError, match="no column 'action'; name the parts to act with: joints, "):
        _ = open_dataset(FOLDER).columns


def test_the_seventh_of_its_seven_joints_is_no_gripper() -> None:
    dataset = open_dataset(DatasetConfig(str(FOLDER), action=("delta_joints",), state=("none",)))
    assert [(one.end, one.mode) for one in dataset.statistics.action_slices] == [(7, "q99")]
    scaled = Normalizer(dataset.statistics).normalize_action(dataset.columns.actions)
    assert np.unique(scaled[:, 6]).size > 100


def test_it_can_be_shown(tmp_path: Path) -> None:
    page = show(open_dataset(CONFIG), ShowConfig(str(FOLDER), str(tmp_path), episodes=1, frames=2))
    assert "Move the shoe" in page.read_text() and (tmp_path / "episode_000000.png").stat().st_size > 10_000


def test_a_frame_in_the_middle_is_the_one_that_reading_through_gives() -> None:
    dataset = open_dataset(CONFIG)
    entry = dataset.meta.episodes[1]
    through = decode(entry.videos["video.ego_view"].path, 0, 21, 30)
    np.testing.assert_array_equal(dataset.image(entry.first_frame + 20, "ego_view"), through[20])


def test_its_pickled_boxes_become_questions_about_the_named_objects() -> None:
    dataset = open_dataset(CONFIG)
    note = dataset.annotation(200, "ego_view")
    assert note is not None and (note.target, note.destination) == ("shoe", "cooking pot")
    assert note.boxes == {"shoe": (308, 185, 615, 344), "cooking pot": (199, 42, 639, 462)}
    source = GroundingSource(dataset, GroundingConfig({"box": 1}), episodes=[0])
    assert 300 < len(source) <= 412
    sample = source.load(0, np.random.default_rng(0))
    assert sample.kind == "box" and sample.label in ("shoe", "cooking pot") and sample.image.shape == (480, 640, 3)


def test_its_points_of_a_camera_that_stands_still_become_traces_to_the_grippers_next_command() -> None:
    (entry, *_) = open_dataset(CONFIG).meta.episodes
    notes = read_annotations(entry, ["base_view", "ego_view"], {"base_view": (480, 640), "ego_view": (480, 640)})
    trace = notes["base_view"][0].trace
    assert len(trace) == 8 and all(0 <= x <= 640 and 0 <= y <= 480 for x, y in trace)
    assert trace[0] == pytest.approx((329, 27), abs=1), "the middle of the two fingers"
    assert not any(note.trace for note in notes["ego_view"]), "the camera on the hand moves"
