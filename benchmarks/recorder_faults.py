"""Kill the recorder's process, or the whole replica, at random moments; every accepted frame must be in an episode.

Each trial lets two robots be served at up to 50 Hz, kills by SIGKILL, and then starts a recorder anew on
the same folder, as a restarted replica does. A trial is lost if a frame that was said to be on disk is in no readable
episode, or an episode has a hole. The second figure is how long after the new recorder's start all of it is readable.

    python -m benchmarks.recorder_faults [--trials 20] [--no-record]
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from st4vla.platform.contracts import Observation
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.serve.events import Ended, Served
from st4vla.serve.recorder.recording import Recorder
from st4vla.serve.recorder.settings import RecorderConfig

ROBOTS, PERIOD_S = ("arm-1", "arm-2"), 0.02


def main() -> None:
    """Run the trials, half of them on each victim, and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(Path(given.serve))
        return
    outcomes = [trial(number, number % 2 == 0) for number in range(given.trials)]
    whole, slowest = sum(kept for kept, _ in outcomes), max(took for _, took in outcomes)
    print(f"{whole} of {given.trials} trials lost nothing; readable at most {slowest:.1f} s after a new start")
    if not given.no_record:
        from benchmarks.results import record

        command = "python -m benchmarks.recorder_faults"
        name = "recorder: SIGKILL trials that lost no accepted frame, all episodes readable"
        record(name, 6, 100 * whole / given.trials, "%", ">= 100", command)
        name = "recorder: longest time until all is readable after a kill"
        record(name, 6, round(slowest, 1), "s", "report", command)


def trial(number: int, kills_replica: bool) -> tuple[bool, float]:
    """Kill once or more; say whether everything accepted is readable, and how long that took."""
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.recorder_faults", "--serve", folder]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        accepted = [int(child.stdout.readline().split()[0])]
        ends = time.monotonic() + rng.uniform(0.5, 3.0)
        while time.monotonic() < ends:
            words = child.stdout.readline().split()
            accepted.append(int(words[0]))
            if not kills_replica and rng.random() < 0.01:
                kill(int(words[1]))
        child.kill()
        accepted += [int(line.split()[0]) for line in child.stdout.read().splitlines() if len(line.split()) == 2]
        child.wait()
        began = time.monotonic()
        recorder = Recorder(config_of(Path(folder)))
        recorder.close(120)
        while list(Path(folder, "spool").iterdir()) and time.monotonic() - began < 300:
            time.sleep(0.1)
        took = time.monotonic() - began
        kept = is_whole(Path(folder), max(accepted))
    print(
        f"trial {number}, killed {'replica' if kills_replica else 'recorder'}: {max(accepted) + 1} frames a robot, "
        f"{'all readable' if kept else 'LOST SOME'} after {took:.1f} s",
        flush=True,
    )
    return kept, took


def is_whole(folder: Path, last: int) -> bool:
    """Whether every frame up to `last` of each robot is in an episode that can be read, in order and once."""
    seen: dict[str, list[int]] = {robot: [] for robot in ROBOTS}
    for place in (folder / "datasets").iterdir():
        dataset = open_dataset(place)
        for number in range(dataset.num_episodes):
            episode = dataset.episode(number)
            fresh = episode.columns["sequence"][episode.columns["fresh"] > 0]
            if (np.diff(fresh) != 1).any():
                return False
            seen[episode.facts["robot"]] += fresh.tolist()
    return all(sorted(frames)[: last + 1] == list(range(last + 1)) for frames in seen.values())


def serve(folder: Path) -> None:
    """Serve both robots for ever; print the number of the newest frame that is on disk, and the process to kill."""
    recorder = Recorder(config_of(folder))
    for number in range(1_000_000):
        for robot in ROBOTS:
            recorder(served(robot, number))
        if number % 40 == 39:
            recorder(Ended("arm-1", "s", "episode"))
        recorder.flush()
        print(number, recorder.shelf.pid, flush=True)
        time.sleep(PERIOD_S)


def served(robot: str, number: int) -> Served:
    """Answer one request with two frames of 64 px."""
    frame = np.full((64, 64, 3), number % 256, np.uint8)
    seen = Observation({"front": frame, "wrist": frame}, np.zeros(7, np.float32), "lift")
    actions = np.zeros((8, 7), np.float32)
    return Served(robot, "s", number, seen, actions, "panda", executed_steps=2 if number else None, at=0.4 * number)


def config_of(folder: Path) -> RecorderConfig:
    return RecorderConfig(str(folder), min_free_mb=1, max_queue_mb=64)


def kill(pid: int) -> None:
    # 0: it was killed a moment ago and has not been started again yet.
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
