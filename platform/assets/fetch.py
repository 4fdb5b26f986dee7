"""Download the files of a benchmark into an asset tree: resumed, checked, atomic, bounded.

A file is written beside its place under a name that carries its git id, so a part is only ever resumed to the same
content; it takes its place once its id is right. Two fetches of one tree exclude each other.
"""

import errno
import fcntl
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from st4vla.platform.assets.manifest import AssetFile
from st4vla.platform.assets.tree import BLOCK, AssetTree, git_id
from st4vla.platform.errors import ConfigError, DataError

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class FetchConfig:
    """How files are fetched.

    Attributes:
        mirror: what stands before a file's address (owner/name/commit/path), with a trailing slash or without.
        workers: downloads at once.
        attempts: tries per file, each resuming where the last one broke off.
        timeout_s: how long a server may say nothing.
        pause_s: wait before the second try; it doubles.
        max_file_mb: refuse a file that grows beyond this.
    """

    mirror: str = "https://raw.githubusercontent.com"
    workers: int = 4
    attempts: int = 5
    timeout_s: float = 30.0
    pause_s: float = 1.0
    max_file_mb: int = 1024

    def __post_init__(self) -> None:
        if not self.mirror.startswith(("https://", "http://")):
            raise ConfigError(f"mirror is {self.mirror!r}; it starts with https:// or http://")
        for name, low, high in (("workers", 1, 32), ("attempts", 1, 100), ("max_file_mb", 1, 1 << 20)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; choose from {low} to {high}")
        if self.timeout_s <= 0 or self.pause_s < 0:
            raise ConfigError(f"timeout_s is {self.timeout_s} and pause_s {self.pause_s}; expected > 0 and >= 0")


class Stopped(Exception):
    """What failed one file would fail them all: the disk is full or not ours to write, the mirror is out of reach."""


class WrongContent(DataError):
    """What came in is not the file that was asked for."""


class Fetcher:
    """Fetch files into a tree; `on_bytes` is told how many bytes came in, from several threads."""

    def __init__(self, tree: AssetTree, config: FetchConfig = FetchConfig(), on_bytes: Callable[[int], object] = id):  # noqa: B008 (frozen)
        self.tree, self.config, self._on_bytes = tree, config, on_bytes
        self._stop, self._answered = threading.Event(), False

    def fetch(self, files: Sequence[AssetFile]) -> dict[str, str]:
        """Fetch the files and give the reason for each that failed, by place.

        Raises:
            DataError: the folder cannot be written, the disk is full, another fetch is writing there, or the mirror
                is out of reach.
        """
        failed = {}
        with _only_writer(self.tree.root), ThreadPoolExecutor(self.config.workers) as pool:
            started = {pool.submit(self._one, file): file for file in files}
            try:
                for future in as_completed(started):
                    if reason := future.result():
                        failed[started[future].place] = reason
            except Stopped as error:
                self._give_up(pool)
                raise DataError(f"{error}") from error
            except BaseException:
                self._give_up(pool)
                raise
        return dict(sorted(failed.items()))

    def _give_up(self, pool: ThreadPoolExecutor) -> None:
        self._stop.set()
        pool.shutdown(cancel_futures=True)

    def _one(self, file: AssetFile) -> str:
        """Fetch one file, with its retries; give the reason if it failed."""
        part, reason = self.tree.path(f"{file.place}.{file.git_id[:12]}.part"), ""
        for attempt in range(self.config.attempts):
            if self._stop.wait(self.config.pause_s * 2 ** (attempt - 1) if attempt else 0):
                return "the fetch was stopped"
            had_part = part.is_file()
            try:
                self._download(file, part)
                self._place(file, part)
                return ""
            except WrongContent as error:
                part.unlink(missing_ok=True)
                reason = f"{error}"
                if not had_part:
                    break
            except urllib.error.HTTPError as error:
                reason = f"the server answered {error.code} {error.reason}"
                if error.code not in TRANSIENT:
                    break
            except (DataError, HTTPException, OSError) as error:
                reason = f"{error}" or type(error).__name__
        if not self._answered:
            raise Stopped(f"{self.config.mirror} cannot be used: {reason}; name another mirror with --mirror")
        return f"{reason}; from {self.config.mirror.rstrip('/')}/{file.address}"

    def _download(self, file: AssetFile, part: Path) -> None:
        have = _made_ready(part)
        if file.size is not None and have >= file.size:
            return
        request = urllib.request.Request(f"{self.config.mirror.rstrip('/')}/{quote(file.address)}")
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            answer = urllib.request.urlopen(request, timeout=self.config.timeout_s)
        except urllib.error.HTTPError as error:
            self._answered = True
            if error.code == 416 and have:
                return  # the server has nothing behind the part: it is whole, or its git id will say otherwise
            raise
        self._answered = True
        with answer:
            resumed = bool(have) and answer.status == 206 and _starts_at(answer, have)
            self._write(answer, part, "ab" if resumed else "wb", file)

    def _write(self, answer: Any, part: Path, mode: str, file: AssetFile) -> None:
        limit = self.config.max_file_mb << 20 if file.size is None else file.size
        missing = answer.length
        with _local(part), part.open(mode) as out:
            while block := _read(answer):
                if self._stop.is_set():
                    raise Stopped("the fetch was stopped")
                if out.tell() + len(block) > limit:
                    raise WrongContent(f"it is larger than the {limit} bytes expected")
                out.write(block)
                self._on_bytes(len(block))
                missing = None if missing is None else missing - len(block)
        if missing:
            raise DataError(f"the connection ended {missing} bytes early")

    def _place(self, file: AssetFile, part: Path) -> None:
        seen, size = git_id(part), part.stat().st_size
        if seen != file.git_id:
            raise WrongContent(f"its content ({size} bytes) has git id {seen[:12]}, expected {file.git_id[:12]}")
        with _local(part):
            os.replace(part, self.tree.path(file.place))


class _Network(Exception):
    """An error of the connection, on its way past the handler for errors of the disk."""


def _read(answer: Any) -> bytes:
    try:
        return answer.read(BLOCK // 4)
    except (OSError, HTTPException) as error:
        raise _Network from error


@contextmanager
def _local(part: Path) -> Iterator[None]:
    """Tell errors of this machine's disk from those of the connection, which is read within."""
    try:
        yield
    except _Network as error:
        raise DataError(f"the connection broke: {error.__cause__}") from error.__cause__
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Stopped(f"The disk of {part.parent} is full; make room and run it again, it resumes") from error
        raise Stopped(f"{part.parent} cannot be written ({error.strerror}); choose another with dir=") from error


def _made_ready(part: Path) -> int:
    """Make the folder of a part and give how many bytes of it are there."""
    with _local(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    return part.stat().st_size if part.is_file() else 0


def _starts_at(answer: Any, have: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


@contextmanager
def _only_writer(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".fetch.lock", "w")
    except OSError as error:
        raise DataError(f"{root} cannot be written: {error.strerror}; choose another folder with dir=") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"Another fetch is writing to {root}; wait for it, or stop it") from error
        yield


def free_bytes(root: Path) -> int:
    """Give how much the disk that would hold the tree has free."""
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    return shutil.disk_usage(nearest).free
