"""Read shards of web data, parquet and WebDataset tar, row by row: pictures with questions, one shard open at a time.

    .parquet   rows {"image": bytes or {"bytes"}, and the fields of one of the forms below}
    .tar       members KEY.jpg (or png, webp) and KEY.json with such fields, KEY's members side by side

    conversations  [{"from": "human"|"gpt", "value"}]     each answered turn, in its own words
    points         [[x, y], ...] with "label" or "question"
    boxes          [{"label", "box": [x1, y1, x2, y2]}]   for each label that the row names once

A parquet file is read a few rows at a time and a tar as a stream, so memory holds what one such group takes, whatever
the shard's size. A row that is broken comes as a `BadRow`, named by file, row and key; reading goes on behind it.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from st4vla.platform.contracts import Spatial
from st4vla.platform.data.address import is_remote, readable
from st4vla.platform.data.json_rows import Row, as_row, field
from st4vla.platform.data.picture_formats import llava_questions, point_questions, scale_of
from st4vla.platform.data.pictures import Asked, Size, checked_box, read_picture
from st4vla.platform.data.remote import fetch
from st4vla.platform.errors import DataError

# Rows of a parquet file that are decoded at once; a column's pages may hold more.
GROUP = 16
PICTURES = ("jpg", "jpeg", "png", "webp")
# A member of a tar that claims more is not read into memory.
MAX_MEMBER_BYTES = 256 << 20
SUFFIXES = (".parquet", ".tar")


@dataclass(frozen=True)
class ShardRow:
    """One picture as it was encoded, its size in pixels, and what is asked about it, in pixels of it."""

    where: str
    picture: bytes
    size: Size
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    where: str
    reason: str


def read_shard(path: str, coordinates: str, downloads: str) -> Iterator[ShardRow | BadRow]:
    """Read one shard, local or with an address, from its first row to its last.

    Raises:
        DataError: the file cannot be opened, or is cut short or damaged so that no further row can be found.
    """
    if not path.partition("?")[0].endswith(SUFFIXES):
        raise DataError(f"{path} is no shard; expected a file that ends in {' or '.join(SUFFIXES)}.")
    with open_shard(path, downloads) as file:
        rows = _tar_rows(file, path) if path.partition("?")[0].endswith(".tar") else _parquet_rows(file, path)
        for number, row in enumerate(rows):
            where = f"{path} row {number}"
            try:
                yield typed_row(row, where, coordinates)
            except DataError as error:
                yield BadRow(where, str(error))


@contextmanager
def open_shard(path: str, downloads: str) -> Iterator[BinaryIO]:
    """Open a shard to be read as a stream; a bucket's is read where it lies, a hub's is fetched first."""
    if path.startswith("s3:"):
        from st4vla.platform.data.address import read_address
        from st4vla.platform.data.bucket import open_bucket

        address = read_address(path)
        system, inside = open_bucket(address)
        with readable(address):
            file: Any = system.open_input_file(inside)
    else:
        local = fetch(path, downloads) if is_remote(path) else path
        try:
            file = open(local, "rb")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; check the name.") from error
    with file:
        yield file


def typed_row(row: Row, where: str, coordinates: str) -> ShardRow:
    """Check a row and give its picture and questions.

    Raises:
        DataError: a field is missing or of another type, the picture is broken, or an answer lies outside it.
    """
    picture = _picture_of(row, where)
    image = read_picture(io.BytesIO(picture), where)
    size = image.shape[1], image.shape[0]
    asked = row_questions(row, size, where, coordinates)
    if not asked:
        raise DataError(f"{where} asks nothing; remove it.")
    return ShardRow(where, picture, size, tuple(asked))


def row_questions(row: Row, size: Size, where: str, coordinates: str) -> list[Asked]:
    """Give what a row asks, by the form that its fields have."""
    if row.get("conversations") is not None:
        return llava_questions(row, size, where, coordinates)
    if row.get("points") is not None:
        return point_questions(row, size, where, coordinates)
    if row.get("boxes") is not None:
        return box_questions(row, size, where, coordinates)
    raise DataError(f"{where} has no 'conversations', 'points' or 'boxes'; it has {', '.join(map(repr, row))}.")


def box_questions(row: Row, size: Size, where: str, coordinates: str) -> list[Asked]:
    """Ask for the box of every label that the row names once."""
    across, down = scale_of(coordinates, size)
    given = [as_row(one, f"{where}: 'boxes'") for one in field(row, "boxes", list, where)]
    labels = [field(one, "label", str, f"{where}: 'boxes'") for one in given]
    counts = Counter(labels)
    asked = []
    for label, one in zip(labels, given, strict=True):
        name = f"{where}: 'box' of {label!r:.60}"
        box = field(one, "box", list, f"{where}: 'boxes'")
        if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise DataError(f"{name} is {box!r:.80}; expected four numbers.")
        x1, y1, x2, y2 = box
        answer = Spatial(label=label, box=checked_box((x1 * across, y1 * down, x2 * across, y2 * down), size, name))
        if counts[label] == 1:
            asked.append(Asked("box", label, answer))
    return asked


def _picture_of(row: Row, where: str) -> bytes:
    value = row.get("image", row.get("images"))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise DataError(f"{where}: 'image' is {type(value).__name__}; expected the bytes of one encoded picture.")
    return value


def _parquet_rows(file: BinaryIO, path: str) -> Iterator[Row]:
    try:
        # Without pre-buffering and threads, the pages of one column group are all that is held.
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        for batch in table.iter_batches(batch_size=GROUP, use_threads=False):
            for place in range(batch.num_rows):
                yield batch.slice(place, 1).to_pylist()[0]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}; copy the file again.") from error


def _tar_rows(file: BinaryIO, path: str) -> Iterator[Row]:
    key, found = "", {}
    try:
        with tarfile.open(fileobj=file, mode="r|", bufsize=1 << 20, tarinfo=StrictEntry) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                own, _, kind = name.name.partition(".")
                own = str(name.parent / own)
                if own != key and found:
                    yield found
                    found = {}
                key = own
                found |= _tar_fields(tar, member, kind.lower())
                # tarfile keeps every member it has seen; a stream of millions must not.
                tar.members = []  # type: ignore[attr-defined]
            if found:
                yield found
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as tar behind {key or 'its start'}: {error}; copy it again.") from error


class StrictEntry(tarfile.TarInfo):
    """A member's header; one that is damaged or cut short is an error, where tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "StrictEntry":
        """Read the next header.

        Raises:
            ReadError: it is damaged, or the archive ends without its end mark.
        """
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error) or "a broken header") from error


def _tar_fields(tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> dict[str, Any]:
    if kind not in (*PICTURES, "json"):
        return {}
    if member.size > MAX_MEMBER_BYTES:
        return {"image": None}
    source = tar.extractfile(member)
    content = source.read() if source else b""
    if kind != "json":
        return {"image": content}
    try:
        fields = json.loads(content)
    except ValueError:
        return {"conversations": f"no JSON: {content[:40]!r}"}
    return {name: value for name, value in fields.items() if name != "image"} if isinstance(fields, dict) else {}
