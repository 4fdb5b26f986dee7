"""Write files so that each is either wholly there or not there at all."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from st4vla.platform.errors import DataError, St4vlaError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, content: bytes, sync: bool = False) -> None:
    """Put `content` at `path` in one step: readers see the old file or the new one, never a part.

    Safe against a killed process and a full disk; against a power cut only with `sync`, which a collector that
    writes ten small files per episode cannot wait for.

    Raises:
        DataError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with refused_by_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, sync)


def replace_file(path: Path, content: bytes, sync: bool = False) -> None:
    """Do what `write_file` does in a folder that is there; what the disk raises is raised as it is."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Add one line to a JSON-lines file; if that fails the file is cut back to what it was.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with refused_by_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            size = file.tell()
            try:
                os.write(file.fileno(), line.encode() + b"\n")
                complete = os.fstat(file.fileno()).st_size == size + len(line.encode()) + 1
            except OSError:
                file.truncate(size)
                raise
            if not complete:
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, keys in the order given."""
    write_file(path, json.dumps(content, indent=4).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} is missing; is {path.parent.parent} a LeRobot dataset?") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line without its newline is what a killed writer left, and is passed over.

    Raises:
        DataError: the file is missing, or a complete line is not JSON.
    """
    try:
        lines = path.read_text().split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; the dataset is incomplete.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path} line {number} is not JSON: {error}.") from error
    return rows


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process of this machine go on at a time among those that name the same lock file; the others wait.

    Raises:
        DataError: the lock's folder cannot be written.
    """
    with refused_by_disk(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("wb")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def refused_by_disk(path: Path, kind: type[St4vlaError] = DataError, *more: type[Exception]) -> Iterator[None]:
    """Turn what a full or broken disk raises, and `more` that may stand for it, into an error of the platform.

    Raises:
        DataError: or another `kind`; it says what could not be written, and what to do.
    """
    try:
        yield
    except (OSError, *more) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        full = not isinstance(error, OSError) or error.errno in FULL
        remedy = "free some space and run the same command again" if full else "check that the folder may be written"
        raise kind(f"{path} could not be written: {why}; nothing already written is lost; {remedy}.") from error
