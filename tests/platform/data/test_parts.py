"""Parts of actions and states are named, scaled and checked, with a modality.json or without."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_meta import DatasetMeta
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.data.parts import Part, derived_parts, may_end_in_gripper, named_parts
from st4vla.platform.data.pauses import PauseConfig, moving_frames
from st4vla.platform.data.sources import ActionSource, GroundingSource
from st4vla.platform.errors import ConfigError, DataError


def meta_of(names: Any, width: int, key: str = "action", folder: Path = Path("set")) -> DatasetMeta:
    features = {key: {"dtype": "float32", "shape": [width], "names": names}}
    return DatasetMeta(folder, "v2.1", {"features": features, "fps": 5}, {}, [])


def spans(meta: DatasetMeta, group: Any = "action") -> dict[str, tuple[int, int, str]]:
    return {name: (part.start, part.end, part.unit) for name, part in derived_parts(meta, group).items()}


def test_single_names_of_open_x_embodiment_become_parts_with_units() -> None:
    action = meta_of({"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]}, 7)
    assert spans(action) == {"position": (0, 3, "m"), "rotation": (3, 6, "rad"), "gripper": (6, 7, "")}
    state = meta_of(["x", "y", "z", "rx", "ry", "rz", "rw", "gripper"], 8, "observation.state")
    assert spans(state, "state") == {
        "position": (0, 3, "m"),
        "rotation": (3, 7, "quaternion"),
        "gripper": (7, 8, ""),
    }


def test_motors_of_an_arm_are_joints_of_no_stated_unit_and_a_second_arm_is_numbered() -> None:
    arm = meta_of(["shoulder_pan.pos", "wrist_roll.pos", "gripper.pos"], 3)
    assert spans(arm) == {"joints": (0, 2, "not stated"), "gripper": (2, 3, "")}
    two = meta_of(["left_joint_0", "left_gripper", "right_joint_0", "right_gripper"], 4)
    assert list(spans(two)) == ["joints", "gripper", "joints_2", "gripper_2"]


def test_columns_without_names_are_one_part_and_columns_of_their_own_are_parts() -> None:
    assert spans(meta_of(None, 7)) == {"all": (0, 7, "")}
    assert spans(meta_of(["action_0", "action_1"], 2)) == {"all": (0, 2, "")}
    assert derived_parts(meta_of(None, 3, "action.eef_position"), "action") == {
        "eef_position": Part("eef_position", "action.eef_position", 0, 3, "m")
    }


def test_what_is_derived_from_our_recordings_is_what_we_write(dataset_folder: Path) -> None:
    meta = open_dataset(dataset_folder).meta
    for group in ("action", "state"):
        assert derived_parts(meta, group) == named_parts(meta, group)
    (dataset_folder / "meta/modality.json").unlink()
    dataset = open_dataset(DatasetConfig(str(dataset_folder), action=("position", "gripper"), state=("rotation",)))
    assert dataset.columns.actions.shape[1] == 4 and dataset.columns.states is not None
    whole = open_dataset(dataset_folder).columns
    np.testing.assert_array_equal(dataset.columns.actions, whole.actions[:, [0, 1, 2, 6]])


def test_parts_given_by_the_user_count_before_the_datasets_own(dataset_folder: Path) -> None:
    parts = {"action": {"lift": {"start": 2, "end": 3}}}
    dataset = open_dataset(DatasetConfig(str(dataset_folder), action=("lift",), parts=parts))
    np.testing.assert_array_equal(dataset.columns.actions, open_dataset(dataset_folder).columns.actions[:, 2:3])


def test_a_part_outside_its_column_names_file_part_and_key(dataset_folder: Path) -> None:
    path = dataset_folder / "meta/modality.json"
    modality = json.loads(path.read_text())
    modality["action"]["gripper"]["end"] = 9
    path.write_text(json.dumps(modality))
    with pytest.raises(
        DataError, match=r"modality.json: action part 'gripper' runs from 6 to 9 of column 'action', .* 7"
    ):
        _ = open_dataset(DatasetConfig(str(dataset_folder), action=("gripper",))).columns
    with pytest.raises(DataError, match="the option parts: action part 'a' is of column 'nothing'"):
        parts = {"action": {"a": {"start": 0, "end": 1, "original_key": "nothing"}}}
        _ = open_dataset(DatasetConfig(str(dataset_folder), parts=parts)).columns


def test_each_part_is_scaled_as_told(dataset_folder: Path) -> None:
    scaling: Any = {"position": "min_max", "rotation": "mean_std", "gripper": "zero_one"}
    statistics = open_dataset(DatasetConfig(str(dataset_folder), scaling=scaling)).statistics
    assert [(one.name, one.start, one.end, one.mode) for one in statistics.action_slices] == [
        ("position", 0, 3, "min_max"),
        ("rotation", 3, 6, "mean_std"),
        ("gripper", 6, 7, "zero_one"),
    ]
    with pytest.raises(ConfigError, match="scaling names wings; .* is read as gripper, position, rotation"):
        _ = open_dataset(DatasetConfig(str(dataset_folder), scaling={"wings": "q99"})).statistics


def test_seven_joints_end_in_no_gripper(dataset_folder: Path) -> None:
    parts = {"action": {"delta_joints": {"start": 0, "end": 7}}}
    statistics = open_dataset(DatasetConfig(str(dataset_folder), parts=parts)).statistics
    assert [(one.name, one.start, one.end, one.mode) for one in statistics.action_slices] == [
        ("delta_joints", 0, 7, "q99")
    ]


@pytest.mark.parametrize(
    ("parts", "may"),
    [
        ([("position", 3), ("rotation", 3), ("gripper_close", 1)], True),
        ([("joints", 6), ("Claw", 1)], True),
        ([("all", 7)], True),
        ([("action", 7)], True),
        ([("position", 3), ("rotation", 3), ("other", 1)], True),
        ([("delta_joints", 7)], False),
        ([("action.delta_joints", 7)], False),
        ([("x", 1), ("gripper_width", 6)], False),
        ([("gripper", 1), ("joints", 6)], False),
        ([("gripper", 1), ("other", 6)], False),
    ],
)
def test_a_gripper_is_looked_for_in_the_last_parts_name(parts: list[tuple[str, int]], may: bool) -> None:
    assert may_end_in_gripper([Part(name, "action", 0, width) for name, width in parts]) is may


def test_a_gripper_that_never_crosses_a_half_is_refused_until_its_ends_are_told(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    episode = make_episode(0)
    episode.actions[:, 6] = [0, 0.01, 0.02, 0.04, 0.04]
    with LeRobotWriter(tmp_path / "set", WriterConfig(formats=("v3.0",))) as writer:
        writer.add(episode)
    config = DatasetConfig(str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"number 6 of the action runs from 0 to 0\.04 .* binary, .* option openings"):
        _ = open_dataset(config).statistics
    told = open_dataset(dataclasses.replace(config, openings={"gripper": [0, 0.04]})).statistics
    assert (told.action.min[6], told.action.max[6], told.action_slices[2].mode) == (0, 1, "binary")
    assert open_dataset(dataclasses.replace(config, scaling={"gripper": "q99"})).statistics.action.max[6] < 0.05
    episode.actions[:, 6] = 0.02
    with LeRobotWriter(tmp_path / "still", WriterConfig(formats=("v3.0",))) as writer:
        writer.add(episode)
    assert open_dataset(tmp_path / "still").statistics.action.std[6] < 1e-6, "what never moves loses nothing"


def test_a_gripper_recorded_the_other_way_round_becomes_0_closed_to_1_open(dataset_folder: Path) -> None:
    whole = open_dataset(dataset_folder).columns.actions
    turned = open_dataset(DatasetConfig(str(dataset_folder), openings={"gripper": [1, 0]})).columns.actions
    np.testing.assert_array_equal(turned[:, 6], 1 - whole[:, 6])
    np.testing.assert_array_equal(turned[:, :6], whole[:, :6])
    with pytest.raises(ConfigError, match=r"openings.gripper is \[1, 1\]"):
        DatasetConfig(str(dataset_folder), openings={"gripper": [1, 1]})
    with pytest.raises(ConfigError, match="openings names gripper_close; .* is read as gripper, position, rotation"):
        _ = open_dataset(DatasetConfig(str(dataset_folder), openings={"gripper_close": [1, 0]})).columns


ARM = [Part("position", "a", 0, 3), Part("rotation", "a", 3, 6), Part("gripper", "a", 6, 7)]


def arm_rows(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array([[x, 0, 0, r, 0, 0, g] for x, r, g in rows], np.float32)


def test_a_frame_pauses_when_neither_tool_nor_gripper_moves() -> None:
    rows = arm_rows((1e-3, 0, 1), (1e-4, 0, 1), (0, 0.02, 1), (0, 0, 0), (0, 0, 0))
    assert moving_frames(rows, ARM, "delta_end_effector", PauseConfig()).tolist() == [True, False, True, True, False]
    published = PauseConfig(rotation_rad=float("inf"))
    assert moving_frames(rows, ARM, "delta_end_effector", published).tolist() == [True, False, False, True, False]


def test_absolute_poses_pause_when_they_stay() -> None:
    rows = arm_rows((0.4, 0.1, 1), (0.4, 0.1, 1), (0.41, 0.1, 1))
    assert moving_frames(rows, ARM, "absolute_end_effector", PauseConfig()).tolist() == [False, False, True]


def test_pauses_start_no_sample_and_unknown_parts_are_asked_for(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    episode = make_episode(0)
    episode.actions[1:4] = 0
    with LeRobotWriter(tmp_path / "set", WriterConfig(formats=("v3.0",))) as writer:
        writer.add(episode)
    config = DatasetConfig(str(tmp_path / "set"), drop_pauses=PauseConfig())
    source = ActionSource(open_dataset(config), 3)
    rng = np.random.default_rng(0)
    assert len(source) == 2, "frames 1 to 3 rest"
    np.testing.assert_array_equal(source.load(0, rng).actions, episode.actions[:3])
    np.testing.assert_array_equal(source.load(1, rng).actions[0], episode.actions[4])
    with pytest.raises(DataError, match="needs to know what moves, and the action's parts are called lift"):
        parts = {"action": {"lift": {"start": 2, "end": 3}}}
        ActionSource(open_dataset(DatasetConfig(config.path, ("lift",), parts=parts, drop_pauses=PauseConfig())), 3)


def test_cameras_go_by_our_names_in_samples_questions_and_cache(dataset_folder: Path, tmp_path: Path) -> None:
    cache = FrameCache(FrameCacheConfig(str(tmp_path / "cache")))
    names = {"front": "third_person", "third_person": "wrist"}
    plain = open_dataset(dataset_folder, cache)
    renamed = open_dataset(DatasetConfig(str(dataset_folder), cameras=("front",), camera_names=names), cache)
    assert list(renamed.images(3)) == ["front"]
    np.testing.assert_array_equal(renamed.image(3, "front"), plain.image(3, "third_person"))
    turned = open_dataset(DatasetConfig(str(dataset_folder), cameras=("third_person",), camera_names=names), cache)
    np.testing.assert_array_equal(turned.image(3, "third_person"), plain.image(3, "wrist"))
    seen, same = renamed.annotation(3, "front"), plain.annotation(3, "third_person")
    assert seen is not None and same is not None and seen.boxes == same.boxes
    assert len(GroundingSource(renamed)) == len(GroundingSource(plain)) == 25
    with pytest.raises(DataError, match="has no camera image_0; it has third_person, wrist"):
        open_dataset(DatasetConfig(str(dataset_folder), camera_names={"front": "image_0"}))
