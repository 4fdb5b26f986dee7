"""Keep web pictures with their questions so that any of millions is read at once: one part for each shard.

<folder>/part-0123456789abcdef/pictures.bin   the pictures, one behind the other, as they were encoded
<folder>/part-0123456789abcdef/rows.arrow     where each picture lies and what is asked about it, memory-mapped
<folder>/part-0123456789abcdef/part.json      the shard it came from, its rows, and those that could not be read

A part is written whole or not at all, and its name follows from its shard, so packing may be killed, retried and
repeated. Of all parts only their lengths are held in memory.
"""

import hashlib
import io
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from st4vla.platform.contracts import GroundingSample, Spatial
from st4vla.platform.data.disk import read_json, refused_by_disk, write_json
from st4vla.platform.data.pictures import Asked, read_picture
from st4vla.platform.data.shards import BadRow, ShardRow, read_shard
from st4vla.platform.errors import DataError

POINT = pa.list_(pa.float32())
QUESTION = pa.struct(
    [
        ("kind", pa.string()),
        ("label", pa.string()),
        ("answer", pa.string()),
        ("box", POINT),
        ("points", pa.list_(POINT)),
    ]
)
SCHEMA = pa.schema(
    [("offset", pa.int64()), ("size", pa.int64()), ("where", pa.string()), ("asked", pa.list_(QUESTION))]
)
BATCH = 256
# Parts that are open at once, and reasons that a part keeps.
OPEN_PARTS, MOST_REASONS = 32, 100


@dataclass(frozen=True)
class PackedPart:
    """What became of one shard.

    Attributes:
        shard: its path.
        rows: rows that can be asked about.
        bad: rows that could not be read.
        reasons: the first of them, by file, row and key.
    """

    shard: str
    rows: int
    bad: int
    reasons: tuple[str, ...]


def part_folder(folder: Path, shard: str, coordinates: str) -> Path:
    """Name the part of a shard."""
    return folder / f"part-{hashlib.sha256(f'{shard} {coordinates}'.encode()).hexdigest()[:16]}"


def read_part(place: Path) -> PackedPart:
    """Read what a part says of itself."""
    content = read_json(place / "part.json")
    return PackedPart(content["shard"], content["rows"], content["bad"], tuple(content["reasons"]))


def pack_shard(shard: str, folder: Path, coordinates: str, downloads: str) -> PackedPart:
    """Read one shard and write its part, unless it is there.

    Raises:
        DataError: the shard cannot be read, or the disk is full.
    """
    final = part_folder(folder, shard, coordinates)
    if final.exists():
        return read_part(final)
    half = final.with_name(f".{final.name}.{os.getpid()}.half")
    try:
        with refused_by_disk(half):
            half.mkdir(parents=True, exist_ok=True)
            part = _write(half, shard, read_shard(shard, coordinates, downloads))
            write_json(half / "part.json", asdict(part))
            if not final.exists():  # another try of the same shard may have been faster
                half.rename(final)
        return part
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write(place: Path, shard: str, rows: Iterator[ShardRow | BadRow]) -> PackedPart:
    count, bad, reasons, batch = 0, 0, [], []
    with (place / "pictures.bin").open("wb") as pictures, pa.ipc.new_file(place / "rows.arrow", SCHEMA) as table:
        for row in rows:
            if isinstance(row, BadRow):
                bad += 1
                reasons += [row.reason] if len(reasons) < MOST_REASONS else []
                continue
            count += 1
            batch.append(_plain(row, pictures.tell()))
            pictures.write(row.picture)
            if len(batch) == BATCH:
                table.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))
                batch = []
        if batch:
            table.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))
    return PackedPart(shard, count, bad, tuple(reasons))


def _plain(row: ShardRow, offset: int) -> dict[str, Any]:
    asked = [
        {
            "kind": one.kind,
            "label": one.label,
            "answer": one.answer.label,
            "box": one.answer.box,
            "points": one.answer.points,
        }
        for one in row.asked
    ]
    return {"offset": offset, "size": len(row.picture), "where": row.where, "asked": asked}


class PackedPictures:
    """All parts of a folder as one sequence, in the order of the parts' names.

    Raises:
        DataError: the folder holds no part, or a part is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = sorted(folder.glob("part-*"))
        self.parts = [read_part(place) for place in self.places]
        self._ends = np.cumsum([part.rows for part in self.parts])
        self._open: OrderedDict[int, Any] = OrderedDict()
        if not len(self):
            raise DataError(f"{folder} holds no packed row; pack some with `st4vla pack SHARDS --out {folder}`.")

    def __len__(self) -> int:
        """Give the number of pictures."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def digest(self) -> str:
        """Digest of the shards' names and numbers of rows."""
        said = [json.dumps([part.shard, part.rows, part.bad]) for part in self.parts]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]

    def ask(self, index: int, rng: np.random.Generator) -> GroundingSample:
        """Read one picture and draw one of its questions.

        Raises:
            DataError: the part or the picture is damaged; the shard and its row are named.
        """
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = self._row(part, index - int(self._ends[part]) + self.parts[part].rows)
        try:
            with (self.places[part] / "pictures.bin").open("rb") as pictures:
                pictures.seek(row["offset"])
                content = pictures.read(row["size"])
        except OSError as error:
            raise DataError(f"{row['where']}, packed in {self.places[part]}, cannot be read: {error}.") from error
        image = read_picture(io.BytesIO(content), f"{row['where']}, packed in {self.places[part]}")
        one = _asked(row["asked"][int(rng.integers(len(row["asked"])))])
        return GroundingSample(image, one.kind, one.label, one.answer, one.region)

    def _row(self, part: int, place: int) -> Mapping[str, Any]:
        table = self._opened(part)
        return table.get_batch(place // BATCH).slice(place % BATCH, 1).to_pylist()[0]

    def _opened(self, part: int) -> Any:
        if part in self._open:
            self._open.move_to_end(part)
            return self._open[part]
        path = self.places[part] / "rows.arrow"
        try:
            self._open[part] = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}; remove its folder and pack again.") from error
        if len(self._open) > OPEN_PARTS:
            self._open.popitem(last=False)
        return self._open[part]


def _asked(row: Mapping[str, Any]) -> Asked:
    points = tuple((float(x), float(y)) for x, y in row["points"] or ())
    box = tuple(map(float, row["box"])) if row["box"] else None
    return Asked(row["kind"], row["label"], Spatial(label=row["answer"], box=box, points=points))  # type: ignore[arg-type]
