"""Boxes pickled as InternVLA-M1's simulator does it are read by the names in the instruction."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.internvla_annotations import read_annotations
from st4vla.platform.data.lerobot_meta import EpisodeEntry
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.data.sources import GroundingSource
from st4vla.platform.errors import DataError

RECORD = [("semanticId", "<u4"), ("x_min", "<i4"), ("y_min", "<i4"), ("x_max", "<i4"), ("y_max", "<i4")]
SIZES = {"ego": (48, 64)}


def entry_with(tmp_path: Path, boxes: list[tuple[int, ...]], instruction: str) -> EpisodeEntry:
    cells = {
        "annotation.ego.bbox2d_tight": np.array(boxes, dtype=RECORD),
        "annotation.ego.bbox2d_tight_id2labels": {"4": {"class": "aa"}, "5": {"class": "bb"}, "6": {"class": "cc"}},
        "annotation.pick_obj_uid": "aa",
        "annotation.place_obj_uid": "bb",
    }
    path = tmp_path / "episode_000000.parquet"
    pq.write_table(pa.table({key: [pickle.dumps(value, 4)] for key, value in cells.items()}), path)
    return EpisodeEntry(0, 0, 1, instruction, "", 0, "", path, 0, {}, tmp_path / "none", (0, 0), {})


def test_the_two_named_objects_are_kept_and_the_nameless_left_out(tmp_path: Path) -> None:
    boxes = [(4, 1, 2, 30, 40), (5, 5, 6, 64, 48), (6, 0, 0, 9, 9)]
    entry = entry_with(tmp_path, boxes, "Move the shoe to the top of the cooking pot.")
    (note,) = read_annotations(entry, ["ego"], SIZES)["ego"]
    assert note.boxes == {"shoe": (1, 2, 30, 40), "cooking pot": (5, 6, 64, 48)}
    assert (note.target, note.destination, note.trace, note.subgoal) == ("shoe", "cooking pot", (), "")


def test_a_target_out_of_sight_is_not_named(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, [(5, 5, 6, 64, 48)], "Move the shoe to the top of the cooking pot.")
    (note,) = read_annotations(entry, ["ego"], SIZES)["ego"]
    assert (note.target, note.destination) == ("", "cooking pot")


def test_an_instruction_of_another_form_gives_no_annotations(tmp_path: Path) -> None:
    assert read_annotations(entry_with(tmp_path, [(4, 1, 2, 3, 4)], "Tidy up."), ["ego"], SIZES) == {}


def test_a_box_outside_the_image_is_named_by_file_row_and_column(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, [(4, 1, 2, 65, 40)], "Move the shoe to the top of the cooking pot.")
    with pytest.raises(DataError, match=r"episode_000000.parquet row 0: 'annotation.ego.bbox2d_tight' .* 64x48 pixels"):
        read_annotations(entry, ["ego"], SIZES)


def entry_with_points(tmp_path: Path, still: list[float], gripper: list[float]) -> EpisodeEntry:
    """Six frames in which both fingers' middle goes right by 4 px a frame."""
    columns: dict[str, list] = {
        "annotation.ego.bbox2d_tight": [np.array([(4, 1, 2, 30, 40)], dtype=RECORD)] * 6,
        "annotation.ego.bbox2d_tight_id2labels": [{"4": {"class": "aa"}}] * 6,
        "annotation.pick_obj_uid": ["aa"] * 6,
        "annotation.place_obj_uid": ["bb"] * 6,
        "annotation.ego.tcp_2d_trace": [
            np.array([[x, -50.0], [8.0 + 4 * step, 18], [12.0 + 4 * step, 22]]) for step, x in enumerate(still)
        ],
    }
    path = tmp_path / "episode_000000.parquet"
    table = {key: [pickle.dumps(cell, 4) for cell in cells] for key, cells in columns.items()}
    pq.write_table(pa.table({**table, "action.gripper_close": [[value] for value in gripper]}), path)
    return EpisodeEntry(0, 0, 6, "Move the cup to the top of the box.", "", 0, "", path, 0, {}, tmp_path, (0, 0), {})


def test_the_fingers_middle_followed_to_the_grippers_next_command_is_the_trace(tmp_path: Path) -> None:
    entry = entry_with_points(tmp_path, [7.0] * 6, [-1, -1, -1, 1, 1, 1])
    traces = [note.trace for note in read_annotations(entry, ["ego"], SIZES)["ego"]]
    assert traces[0] == ((10, 20), (14, 20), (18, 20)) and traces[1] == ((14, 20), (18, 20))
    assert traces[2] == () and traces[3] == ((22, 20), (26, 20), (30, 20))


def test_a_camera_that_moves_has_no_traces(tmp_path: Path) -> None:
    entry = entry_with_points(tmp_path, [7.0, 7, 8, 9, 9, 9], [1] * 6)
    assert {note.trace for note in read_annotations(entry, ["ego"], SIZES)["ego"]} == {()}


def test_a_trace_ends_where_it_leaves_the_image(tmp_path: Path) -> None:
    entry = entry_with_points(tmp_path, [7.0] * 6, [1] * 6)
    note = read_annotations(entry, ["ego"], {"ego": (48, 40)})["ego"][0]
    assert note.trace == ((10, 20), (14, 20), (18, 20), (22, 20), (26, 20), (30, 20))
    narrow = read_annotations(entry_with_points(tmp_path, [7.0] * 6, [1] * 6), ["ego"], {"ego": (48, 30)})["ego"][0]
    assert narrow.trace[-1] == (30, 20) and len(narrow.trace) == 6


def test_every_episode_of_one_v3_file_keeps_its_own_boxes(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    with LeRobotWriter(tmp_path / "set", WriterConfig(formats=("v3.0",))) as writer:
        for seed, target in enumerate(("shoe", "cup")):
            words = {"instruction": f"Move the {target} to the top of the box.", "annotations": {}}
            writer.add(Episode(**{**vars(make_episode(seed)), **words}))
    (data,) = (tmp_path / "set" / "data").rglob("*.parquet")
    cells = [np.array([(4, column, 2, 30, 31), (5, 5, 6, 32, 32)], dtype=RECORD) for column in range(10)]
    columns = {
        "annotation.wrist.bbox2d_tight": cells,
        "annotation.wrist.bbox2d_tight_id2labels": [{"4": {"class": "aa"}, "5": {"class": "bb"}}] * 10,
        "annotation.pick_obj_uid": ["aa"] * 10,
        "annotation.place_obj_uid": ["bb"] * 10,
    }
    table = pq.read_table(data)
    for key, values in columns.items():
        table = table.append_column(key, [[pickle.dumps(value, 4) for value in values]])
    pq.write_table(table, data)
    path = tmp_path / "set" / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"] |= {key: {"dtype": "object", "shape": [1], "names": None} for key in columns}
    path.write_text(json.dumps(info))
    dataset = open_dataset(tmp_path / "set")
    notes = [dataset.annotation(index, "wrist") for index in (0, 9, 4)]
    assert [note.boxes for note in notes if note is not None] == [
        {"shoe": (0, 2, 30, 31), "box": (5, 6, 32, 32)},
        {"cup": (9, 2, 30, 31), "box": (5, 6, 32, 32)},
        {"shoe": (4, 2, 30, 31), "box": (5, 6, 32, 32)},
    ]
    assert len(GroundingSource(dataset)) == 10
