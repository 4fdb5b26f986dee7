"""The recorder never waits, and loses nothing it has accepted, whoever is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.contracts import Observation
from st4vla.platform.data.lerobot_reader import LeRobotDataset, open_dataset
from st4vla.platform.data.show import ShowConfig, show
from st4vla.platform.train.sources import LeRobotSource, ReadingConfig, SourceConfig
from st4vla.serve.events import Ended, Served, Trouble
from st4vla.serve.recorder.recording import Recorder
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.recorder.shelf import Shelf

MakeServed = Callable[..., Served]

# A replica that serves two robots until it is killed, and says what is on disk of each.
SERVE_FOREVER = """
import json, runpy, sys, time
from st4vla.serve.recorder.recording import Recorder
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.events import Ended
served = runpy.run_path(sys.argv[1])["served"]
recorder = Recorder(RecorderConfig(sys.argv[2], min_free_mb=1, sync_s=0.05))
for number in range(100_000):
    for robot in ("arm-1", "arm-2"):
        recorder(served(number, robot))
    if number % 7 == 6:
        recorder(Ended("arm-1", "s", "episode"))
    recorder.flush()
    print(number, flush=True)
"""


def datasets(config: RecorderConfig) -> list[LeRobotDataset]:
    return [open_dataset(folder) for folder in sorted(config.datasets.iterdir())]


def looks(config: RecorderConfig, robot: str) -> list[int]:
    """Give the requests of a robot that are in readable episodes, frames decoded."""
    found = []
    for dataset in datasets(config):
        for number in range(dataset.num_episodes):
            episode = dataset.episode(number)
            if episode.facts["robot"] == robot:
                found += episode.columns["sequence"][episode.columns["fresh"] > 0].tolist()
    return sorted(found)


def test_served_sessions_become_a_dataset_that_can_be_shown(
    recorder_config: RecorderConfig, make_served: MakeServed, tmp_path: Path
) -> None:
    recorder = Recorder(recorder_config)
    for number in range(6):
        for robot in ("arm-1", "arm-2"):
            recorder(make_served(number, robot))
        recorder(make_served(number, "arm-3", recording=False))
        recorder(make_served(number, "http-10.0.0.7", session=f"http-{number}", is_passing=True))
        if number == 3:
            recorder(Ended("arm-1", "s", "episode", success=False))
    assert recorder.flush()
    assert [recorder.accepted(robot, "s") for robot in ("arm-1", "arm-2", "arm-3")] == [5, 5, -1]
    assert dict(recorder.counts.left_out) == {"unnamed": 6}
    assert recorder.close()
    (dataset,) = datasets(recorder_config)
    assert dataset.num_episodes == 3 and dataset.statistics_key == "panda" and dataset.fps == 5
    assert looks(recorder_config, "arm-1") == looks(recorder_config, "arm-2") == [0, 1, 2, 3, 4, 5]
    reading = ReadingConfig(("front", "wrist"), 4, "panda", held_out_share=0.0, frame_cache=None)
    source = LeRobotSource(SourceConfig(str(dataset.folder)), reading)
    assert len(source.robot()) == 12 and source.statistics().action.mean.shape == (7,)
    sample = source.robot().load(1, np.random.default_rng(0))
    assert sample.images["front"].shape == (16, 16, 3) and sample.actions[:, 0].tolist() == [1, 1, 2, 2]
    assert show(dataset, ShowConfig(str(dataset.folder), out=str(tmp_path / "show"), frames=2)).is_file()
    assert list(recorder_config.spool.iterdir()) == []


@pytest.mark.parametrize(
    ("when", "asked", "wanted"),
    [
        ("always", None, True),
        ("always", False, False),
        ("always", True, True),
        ("asked", None, False),
        ("asked", False, False),
        ("asked", True, True),
    ],
)
def test_who_is_recorded(make_served: MakeServed, when: str, asked: bool | None, wanted: bool) -> None:
    config = RecorderConfig(when=when)  # type: ignore[arg-type]
    assert config.wants(make_served(0, recording=asked)) is wanted


def test_a_disk_that_hangs_never_holds_an_answer_and_cuts_whole_episodes(
    recorder_config: RecorderConfig, make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Trouble] = []
    recorder = Recorder(replace(recorder_config, max_queue_mb=1), told.append)
    hangs = threading.Event()
    take = recorder._tapes.take
    monkeypatch.setattr(recorder._tapes, "take", lambda event: (hangs.wait(20), take(event)))
    for number in range(100):
        recorder(make_served(number, size=64))
    assert 0.9 < recorder.queued_mb <= 1.01 and recorder.counts.left_out["queue"] > 50
    hangs.set()
    assert recorder.flush()
    assert recorder.close()
    seen = looks(recorder_config, "arm-1")
    assert seen == list(range(len(seen))) and len(seen) + recorder.counts.left_out["queue"] == 100
    assert [one.kind for one in told] == ["recording_queue"]


@pytest.mark.slow
def test_a_killed_shelf_is_started_again_and_nothing_is_lost(
    recorder_config: RecorderConfig, make_served: MakeServed
) -> None:
    told: list[Trouble] = []
    recorder, kills = Recorder(recorder_config, told.append), {4: 1, 7: 2}
    for number in range(12):
        recorder(make_served(number))
        if number % 3 == 2:
            recorder(Ended("arm-1", "s", "episode"))
        if number in kills:
            os.kill(recorder.shelf.pid, signal.SIGKILL)
            _wait(lambda count=kills[number]: recorder.shelf.restarts == count)
    assert recorder.close()
    assert looks(recorder_config, "arm-1") == list(range(12))
    assert [one.kind for one in told if one.kind == "recorder_died"] == ["recorder_died"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 9])
def test_a_killed_replica_loses_nothing_that_was_accepted(
    recorder_config: RecorderConfig, st4vla_environment: dict[str, str], frames: int
) -> None:
    source = str(Path(__file__).parent.with_name("conftest.py"))
    command = [sys.executable, "-c", SERVE_FOREVER, source, recorder_config.folder]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=st4vla_environment)
    assert child.stdout is not None
    for _ in range(frames):
        last = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    last = max([last, *map(int, child.stdout.read().split())])
    child.wait()
    # Its own shelf saw its input end; a second one must not disturb it, and finishes where that one was killed, too.
    shelf = Shelf(recorder_config, "", lambda told: None)
    _wait(lambda: shelf.sweep() == 0 and not list(recorder_config.spool.iterdir()))
    for robot in ("arm-1", "arm-2"):
        seen = looks(recorder_config, robot)
        assert seen[: last + 1] == list(range(last + 1)) and len(seen) <= last + 2
    assert not recorder_config.refused.exists()


def test_a_recording_that_makes_no_episode_is_kept_with_the_reason(
    recorder_config: RecorderConfig, make_served: MakeServed
) -> None:
    told: list[Trouble] = []
    recorder = Recorder(recorder_config, told.append)
    recorder(make_served(0, actions=np.full((4, 7), np.inf, np.float32)))
    recorder(make_served(0, robot="arm-2"))
    assert recorder.close()
    (reason,) = recorder_config.refused.glob("*.txt")
    assert "finite" in reason.read_text() and reason.with_suffix(".done").exists()
    assert looks(recorder_config, "arm-2") == [0]
    _wait(lambda: [one.kind for one in told] == ["recording_refused"])


def test_what_a_robot_calls_itself_stays_a_fact(recorder_config: RecorderConfig, make_served: MakeServed) -> None:
    name = "../../<script>\0 \u2603"
    recorder = Recorder(recorder_config)
    event = make_served(0, robot=name, session="../s", embodiment="../../panda")
    seen = Observation({"../front": event.observation.images["front"]}, None, "lift '\"; drop")
    recorder(replace(event, observation=seen))
    assert recorder.close()
    (dataset,) = datasets(recorder_config)
    assert dataset.episode(0).facts["robot"] == name and list(dataset.cameras) == ["front"]


def _wait(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
