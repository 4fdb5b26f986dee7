"""Keep what was served in append-only files until it has become a dataset.

One file is one recorded episode, or a part of a long one. A record in it:

    magic 4 | header length u32 | body length u64 | CRC-32 of header and body u32 | header (msgpack) | body

The header is a map; its "arrays" are [name, dtype, shape] of the arrays that make up the body one behind the other. The
first record is the head (who, which form), then one per look, at the end one that says how it ended. `NAME.open` grows,
`NAME.done` does not any more. A record is handed to the operating system whole before `append` returns, so what was
accepted outlives the process; `sync` makes it outlive the machine. Reading stops at the first record that is not whole.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.errors import DataError

PREFIX = struct.Struct("<4sIQI")
MAGIC = b"st4s"
OPEN, DONE = ".open", ".done"


@dataclass(frozen=True)
class Record:
    """One record: a map of plain values, and named arrays."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class SpoolFile:
    """One growing file; one thread writes it.

    Raises:
        DataError: the disk is full or the folder cannot be written; what was appended before stays readable.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.size = folder / (name + OPEN), 0
        self._synced = 0
        with refused_by_disk(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def append(self, record: Record) -> None:
        """Add one record; a failed one leaves no trace."""
        pieces = _encode(record)
        with refused_by_disk(self.path):
            try:
                _write_all(self._file, pieces)
            except OSError:
                os.ftruncate(self._file, self.size)
                raise
        self.size += sum(len(piece) for piece in pieces)

    def sync(self) -> None:
        """Wait until the disk has everything that was appended."""
        if self._synced < self.size:
            with refused_by_disk(self.path):
                os.fsync(self._file)
            self._synced = self.size

    def finish(self) -> Path:
        """Close the file and say that it grows no more."""
        try:
            self.sync()
        finally:
            os.close(self._file)
        done = self.path.with_suffix(DONE)
        with refused_by_disk(done):
            os.replace(self.path, done)
        return done


def read_spool(path: Path) -> Iterator[Record]:
    """Give the whole records of a file in order.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while (record := _read_record(file)) is not None:
                yield record
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; look at the disk.") from error


def _encode(record: Record) -> list[memoryview]:
    arrays = {name: np.ascontiguousarray(array) for name, array in record.arrays.items()}
    described = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    header: bytes = msgpack.packb({**record.facts, "arrays": described}, default=_plain) or b""
    body = [array.data.cast("B") for array in arrays.values() if array.size]
    check = zlib.crc32(header)
    for piece in body:
        check = zlib.crc32(piece, check)
    prefix = PREFIX.pack(MAGIC, len(header), sum(len(piece) for piece in body), check)
    return [memoryview(prefix), memoryview(header), *body]


def _plain(value: Any) -> Any:
    """Give numpy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be kept in a record's header")


def _write_all(file: int, pieces: list[memoryview]) -> None:
    """Write every piece in as few calls as the system takes."""
    left = list(pieces)
    while left:
        written = os.writev(file, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left and written:
            left[0] = left[0][written:]


def _read_record(file: Any) -> Record | None:
    """Give the next record, None at the end or where a kill tore it."""
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    magic, header_length, body_length, check = PREFIX.unpack(prefix)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if magic != MAGIC or header_length + body_length > left:
        return None
    header, body = file.read(header_length), file.read(body_length)
    if zlib.crc32(body, zlib.crc32(header)) != check:
        return None
    facts = msgpack.unpackb(header)
    return Record(facts, dict(_split(body, facts.pop("arrays"))))


def _split(body: bytes, described: list[list[Any]]) -> Iterator[tuple[str, np.ndarray]]:
    start = 0
    for name, dtype, shape in described:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, np.dtype(dtype), count, start).reshape(shape)
        start += array.nbytes
        yield name, array
