"""Killed writers, full disks and damaged datasets: nothing written is lost, and errors name file, row and key."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st4vla.platform.data import disk
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.errors import DataError

Make = Callable[..., Episode]

WRITE_FOREVER = """
import runpy, sys
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
make_episode = runpy.run_path(sys.argv[1])["square_episode"]
with LeRobotWriter(sys.argv[2], WriterConfig(formats=(sys.argv[3],), episodes_per_file=3)) as writer:
    for seed in range(100_000):
        writer.add(make_episode(seed))
        print(seed, flush=True)
"""


def test_a_killed_writer_leaves_a_dataset_that_opens_and_can_be_appended_to(
    tmp_path: Path, version: str, make_episode: Make, st4vla_environment: dict[str, str]
) -> None:
    source = str(Path(__file__).with_name("conftest.py"))
    command = [sys.executable, "-c", WRITE_FOREVER, source, str(tmp_path), version]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=st4vla_environment)
    assert child.stdout is not None
    for _ in range(7):
        last = int(child.stdout.readline())
    time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    last = max([last, *map(int, child.stdout.read().split())])
    child.wait()
    held = open_dataset(tmp_path).num_episodes
    assert held in (last + 1, last + 2)
    with LeRobotWriter(tmp_path, WriterConfig(formats=(version,), episodes_per_file=3)) as writer:
        assert writer.add(make_episode(held))
    dataset = open_dataset(tmp_path)
    for seed in range(held + 1):
        np.testing.assert_array_equal(dataset.episode(seed).actions, make_episode(seed).actions)
    assert json.loads((tmp_path / "meta/info.json").read_text())["total_episodes"] == held + 1
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "data").rglob("*.parquet")) == 5 * (held + 1)


def test_a_full_disk_at_any_write_loses_no_episode_and_the_writer_goes_on(
    tmp_path: Path, version: str, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LeRobotWriter(tmp_path, WriterConfig(formats=(version,), episodes_per_file=2)) as writer:
        writer.add(make_episode(0))
        # Every file but the JSON lines arrives by os.replace; let each one fail once while episode 1 is added.
        for failing in range(20):
            left = iter(range(failing))
            with monkeypatch.context() as patch:
                patch.setattr(disk.os, "replace", lambda a, b, left=left: _replace_or_fail(a, b, left))
                try:
                    writer.add(make_episode(1))
                except DataError as error:
                    assert "No space left" in str(error) and "free some space" in str(error)
                    assert open_dataset(tmp_path).num_episodes in (1, 2)
                    continue
            break
        assert failing >= 4
        writer.add(make_episode(2))
    dataset = open_dataset(tmp_path)
    assert [entry.seed for entry in dataset.meta.episodes] == [0, 1, 2]
    for seed in range(3):
        np.testing.assert_array_equal(dataset.episode(seed).actions, make_episode(seed).actions)
    assert not list(tmp_path.rglob("*.part"))


def test_a_line_that_does_not_fit_on_the_disk_is_cut_off_again(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    disk.append_line(path, '{"row": 0}')
    script = (
        "import resource, signal, sys; from pathlib import Path; from st4vla.platform.data import disk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))\n"
        "disk.append_line(Path(sys.argv[1]), 'x' * 100)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=env)
    assert "DataError" in done.stderr and "nothing already written is lost" in done.stderr
    assert path.read_text() == '{"row": 0}\n'


def test_a_truncated_video_is_named_with_the_frames_that_are_missing(dataset_folder: Path) -> None:
    video = next((dataset_folder / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:200])
    dataset = open_dataset(dataset_folder)
    with pytest.raises(DataError, match=f"{video.name}.*copy the file again"):
        [dataset.images(index) for index in range(25)]


def test_a_video_with_too_few_frames_is_named_with_both_numbers(tmp_path: Path, make_episode: Make) -> None:
    for name, length in (("long", 5), ("short", 3)):
        with LeRobotWriter(tmp_path / name, WriterConfig(formats=("v2.1",))) as writer:
            writer.add(make_episode(0, length=length))
    place = "videos/chunk-000/observation.images.wrist/episode_000000.mp4"
    shutil.copy(tmp_path / "short" / place, tmp_path / "long" / place)
    with pytest.raises(DataError, match=r"episode_000000.mp4 gives 3 of the 5 frames 0\.\.4"):
        open_dataset(tmp_path / "long").episode(0)


def test_statistics_of_another_width_are_refused_with_both_widths(dataset_folder: Path, version: str) -> None:
    name = "episodes_stats.jsonl" if version == "v2.1" else "stats.json"
    path = dataset_folder / "meta" / name
    rows = [json.loads(line) for line in path.read_text().splitlines()] if version == "v2.1" else None
    content = rows[0]["stats"] if rows else json.loads(path.read_text())
    content["action"]["mean"].pop()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if rows else json.dumps(content))
    with pytest.raises(DataError, match=rf"{name}: mean of 'action' has 6 numbers and the column has 7"):
        _ = open_dataset(dataset_folder).statistics


def test_missing_statistics_are_named(dataset_folder: Path, version: str) -> None:
    name = "episodes_stats.jsonl" if version == "v2.1" else "stats.json"
    (dataset_folder / "meta" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        _ = open_dataset(dataset_folder).statistics


def test_a_missing_column_is_named_with_the_file_and_what_it_has(dataset_folder: Path) -> None:
    path = sorted((dataset_folder / "data").rglob("*.parquet"))[1]
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    with pytest.raises(DataError, match=rf"{path.name} has no column 'action'; it has observation.state"):
        _ = open_dataset(dataset_folder).columns


def test_a_value_that_is_no_number_is_named_by_file_row_and_key(dataset_folder: Path) -> None:
    path = sorted((dataset_folder / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[3][2] = float("nan")
    pq.write_table(table.set_column(0, "action", pa.array(rows, pa.list_(pa.float32()))), path)
    with pytest.raises(DataError, match=rf"{path.name} row 3: 'action' is nan"):
        _ = open_dataset(dataset_folder).columns


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({2: 8, 3: 6}, "row 2: 'action' has 8 numbers and info.json says 7; record it anew"),
        ({4: 0}, "row 4: 'action' has 0 numbers and info.json says 7; record it anew"),
        (dict.fromkeys(range(10), 9), "row 0: 'action' has 9 numbers and info.json says 7; meta/ describes other data"),
    ],
)
def test_rows_of_another_width_are_named_though_their_sum_may_divide(
    dataset_folder: Path, widths: dict[int, int], said: str
) -> None:
    path = sorted((dataset_folder / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows = [(row + [0.0, 0.0])[: widths.get(place, 7)] for place, row in enumerate(rows)]
    pq.write_table(table.set_column(0, "action", pa.array(rows, pa.list_(pa.float32()))), path)
    with pytest.raises(DataError, match=f"{path.name} {said}"):
        _ = open_dataset(dataset_folder).columns


def test_a_damaged_parquet_file_is_named(dataset_folder: Path) -> None:
    path = sorted((dataset_folder / "data").rglob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read as parquet"):
        _ = open_dataset(dataset_folder).columns


def test_a_folder_that_is_no_dataset_and_an_unknown_camera_are_named(tmp_path: Path, dataset_folder: Path) -> None:
    with pytest.raises(DataError, match="info.json is missing"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="no camera overhead; it has third_person, wrist"):
        open_dataset(DatasetConfig(str(dataset_folder), cameras=("overhead",)))


def test_an_episode_whose_rows_do_not_belong_together_is_refused(make_episode: Make) -> None:
    good = make_episode(0)
    with pytest.raises(DataError, match=r"frames\['wrist'\] has 3 rows and actions has 5"):
        Episode("do it", "reach", good.actions, good.states, {"wrist": good.frames["wrist"][:3]})
    with pytest.raises(DataError, match=r"actions row 1 column 2 is nan"):
        actions = good.actions.copy()
        actions[1, 2] = np.nan
        Episode("do it", "reach", actions, good.states, good.frames)


def _replace_or_fail(part: Path, path: Path, left) -> None:  # noqa: ANN001
    if next(left, None) is None:
        raise OSError(28, "No space left on device")
    os.rename(part, path)
