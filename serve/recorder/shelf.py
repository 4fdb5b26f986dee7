"""Make episodes of finished recordings, in a process of its own: python -m st4vla.serve.recorder.shelf OWNER CONFIG.

The process belongs to the replica whose recordings lie in spool/OWNER, and also takes over what replicas left that
are gone. A recording's name is its episode's id, and a dataset takes an id once, so being killed between writing the
episode and deleting the recording costs nothing. The process prints a JSON line for each thing done and ends when its
input does: first it makes episodes of all that is left.
"""

import fcntl
import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from st4vla.platform.data.disk import write_file
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterBusy, WriterConfig
from st4vla.platform.errors import DataError
from st4vla.serve.recorder.episodes import dataset_name, read_tape, to_episode
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.recorder.spool import DONE, OPEN

log = logging.getLogger(__name__)
# Held by the replica that writes there, and by the one shelf at a time that reads there.
OWNER_LOCK, SHELF_LOCK = ".owner", ".shelf"
# A recording that could not be written yet is tried again after these times; the disk, or another writer, needs them.
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)
SWEEP_S = 2.0
Tell = Callable[[Mapping[str, Any]], None]


class Shelf:
    """Turns the finished recordings below `config.spool` into episodes.

    Args:
        owner: name of the sub-folder whose replica lives; of the others only those are touched whose replica is gone.
        tell: told {"written": id, "dataset": path, "steps": n}, {"refused": id, "reason": why} or
            {"waiting": id, "reason": why}.
        clock: seconds, monotonic.
    """

    def __init__(
        self, config: RecorderConfig, owner: str, tell: Tell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self.owner, self._tell, self._clock = config, owner, tell, clock
        self._failures: dict[Path, tuple[int, float]] = {}
        self._writers, self._open = ExitStack(), dict[Path, LeRobotWriter]()

    def sweep(self) -> int:
        """Make episodes of everything that is ready; give how many recordings still wait."""
        with ExitStack() as self._writers:
            self._open = {}
            return self._sweep_all()

    def _sweep_all(self) -> int:
        waiting = 0
        for folder in sorted(self.config.spool.glob("[!.]*/")):
            is_our_replicas = folder.name == self.owner
            with hold(folder / OWNER_LOCK, is_our_replicas) as is_ours, hold(folder / SHELF_LOCK) as is_alone:
                if is_ours and is_alone:
                    waiting += self._sweep(folder) if is_our_replicas else self._adopt(folder)
        return waiting

    def _adopt(self, folder: Path) -> int:
        """Finish the recordings of a replica that is gone, and remove its folder when none is left."""
        for path in folder.glob("*" + OPEN):
            os.replace(path, path.with_suffix(DONE))
        waiting = self._sweep(folder)
        if not waiting:
            for lock in (OWNER_LOCK, SHELF_LOCK):
                (folder / lock).unlink(missing_ok=True)
            folder.rmdir()
        return waiting

    def _sweep(self, folder: Path) -> int:
        return sum(not self._try(path) for path in sorted(folder.glob("*" + DONE), key=_age))

    def _try(self, path: Path) -> bool:
        """Make one episode; say whether the recording is dealt with."""
        times, due = self._failures.get(path, (0, 0.0))
        if self._clock() < due:
            return False
        try:
            self._finish(path)
        except DataError as error:
            self._failures[path] = (times + 1, self._clock() + RETRY_S[min(times, len(RETRY_S) - 1)])
            if not isinstance(error, WriterBusy):
                self._tell({"waiting": path.stem, "reason": str(error)})
            return False
        self._failures.pop(path, None)
        return True

    def _finish(self, path: Path) -> None:
        """Write the episode, then delete the recording.

        Raises:
            DataError: it cannot be written now.
        """
        try:
            tape = read_tape(path)
            if not tape.looks:
                path.unlink()
                return
            episode = to_episode(tape, path.stem)
        except Exception as error:
            # A boundary: whatever a robot sent, one recording must not keep the others from being finished.
            self._refuse(path, error)
            return
        folder = self.config.datasets / dataset_name(episode, tape.head["embodiment"])
        self._writer(folder, tape.head["embodiment"]).add(episode)
        path.unlink()
        self._tell({"written": path.stem, "dataset": str(folder), "steps": len(episode)})

    def _writer(self, folder: Path, embodiment: str) -> LeRobotWriter:
        """Give the dataset's writer, which holds the dataset until the end of the sweep; opening it reads it all."""
        if folder not in self._open:
            writer = LeRobotWriter(folder, WriterConfig(self.config.formats, robot_type=embodiment))
            self._open[folder] = self._writers.enter_context(writer)
        return self._open[folder]

    def _refuse(self, path: Path, error: Exception) -> None:
        kept = self.config.refused / path.name
        write_file(kept.with_suffix(".txt"), f"{type(error).__name__}: {error}\n".encode())
        os.replace(path, kept)
        self._tell({"refused": path.stem, "reason": str(error)})


@contextmanager
def hold(path: Path, is_held: bool = False) -> Iterator[bool]:
    """Hold a lock, and say whether that worked; `is_held`: it need not be taken."""
    if is_held:
        yield True
        return
    try:
        lock = path.open("rb+")
    except FileNotFoundError:
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except BlockingIOError:
            is_held = False
        yield is_held


@contextmanager
def own(spool: Path, owner: str) -> Iterator[Path]:
    """Make and lock a replica's folder; it appears under its name only once it is locked."""
    hidden, folder = spool / f".{owner}", spool / owner
    hidden.mkdir(parents=True)
    (hidden / SHELF_LOCK).touch()
    with (hidden / OWNER_LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.replace(hidden, folder)
        yield folder


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name


def main() -> None:
    """Sweep when the replica writes a line, every few seconds, and a last time when it is gone."""
    owner, settings = sys.argv[1:3]
    os.nice(10)
    shelf = Shelf(RecorderConfig(**json.loads(settings)), owner, _print)
    while _is_wanted():
        shelf.sweep()
    shelf.owner = ""
    finish(shelf)


def finish(shelf: Shelf, timeout_s: float = 60.0) -> int:
    """Make episodes of all that replicas left behind; give how many recordings still wait."""
    deadline = time.monotonic() + timeout_s
    while (waiting := shelf.sweep()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return waiting


def command(config: RecorderConfig, owner: str) -> list[str]:
    """Give the command line that starts the process."""
    return [sys.executable, "-m", "st4vla.serve.recorder.shelf", owner, json.dumps(asdict(config))]


def _is_wanted() -> bool:
    """Wait for a line, or for the time of the next sweep; False once the replica has closed its end."""
    ready, _, _ = select.select([sys.stdin], [], [], SWEEP_S)
    return not ready or bool(os.read(sys.stdin.fileno(), 65536))


def _print(told: Mapping[str, Any]) -> None:
    try:
        print(json.dumps(told), flush=True)
    except BrokenPipeError:
        log.info("%s", told)


if __name__ == "__main__":
    main()
