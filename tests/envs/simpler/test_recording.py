"""Recordings are read whole or refused, and nothing in them is executed."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st4vla.envs.simpler import recording
from st4vla.envs.simpler.recording import Recording, read_recording, read_states, write_recording
from st4vla.platform.errors import DataError


def small(steps: int = 3, **arrays: Any) -> Recording:
    tracks = {"qpos": np.zeros((steps + 1, 8), np.float32), "tcp_pose": np.tile(np.eye(7)[3], (steps + 1, 1))}
    meta = {"case": {"env_id": "PutCarrotOnPlateInScene-v0"}, "obj_names": []}
    success = np.zeros(steps, bool)
    return Recording("small", meta, {"actions": np.zeros((steps, 7)), "success": success, **tracks, **arrays})


def test_a_recording_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = small(rgb_first=np.full((4, 6, 3), 7, np.uint8))
    write_recording(tmp_path / "deep" / "small.npz", written)
    read = read_recording(tmp_path / "deep" / "small.npz")
    assert read.name == "small" and read.meta == written.meta and read.case["env_id"] == "PutCarrotOnPlateInScene-v0"
    assert set(read.arrays) == set(written.arrays)
    assert read.arrays["rgb_first"].dtype == np.uint8 and (read.arrays["rgb_first"] == 7).all()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["small.npz"]


def test_keys_that_are_no_part_of_the_format_are_passed_over(tmp_path: Path) -> None:
    write_recording(tmp_path / "small.npz", small(extra=np.ones(3)))
    assert "extra" not in read_recording(tmp_path / "small.npz").arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"actions": np.zeros((3, 6))}, r"actions \[3, 6\]; expected \[T,7\]"),
        ({"actions": np.full((3, 7), np.nan)}, "no finite numbers"),
        ({"qpos": np.zeros((3, 8))}, "qpos has 3 rows; 3 actions make 4"),
        ({"success": np.zeros(4, bool)}, "success has 4 rows"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    write_recording(tmp_path / "bad.npz", small(3, **arrays))
    with pytest.raises(DataError, match=message):
        read_recording(tmp_path / "bad.npz")


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        read_recording(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read as a recording"):
        read_recording(tmp_path / "text.npz")
    np.savez(tmp_path / "bare.npz", actions=np.zeros((3, 7)))
    with pytest.raises(DataError, match="has no `meta`"):
        read_recording(tmp_path / "bare.npz")
    np.savez(tmp_path / "nocase.npz", actions=np.zeros((3, 7)), meta=np.array(json.dumps({"case": {}})))
    with pytest.raises(DataError, match=r"expected meta\.case\.env_id"):
        read_recording(tmp_path / "nocase.npz")


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_a_pickle_inside_is_never_executed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("actions.npy", pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="cannot be read as a recording"):
        read_recording(tmp_path / "bomb.npz")


def test_a_file_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recording(tmp_path / "small.npz", small())
    monkeypatch.setattr(recording, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="unpacks to"):
        read_recording(tmp_path / "small.npz")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_recording(tmp_path / "file" / "small.npz", small())


def test_states_are_a_list_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "states.json"
    file.write_text('[{"case": "a"}]')
    assert read_states(file) == [{"case": "a"}]
    for text, message in (("{}", "no list of states"), ("[1]", "no list of states"), ("[", "no JSON")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_states(file)
