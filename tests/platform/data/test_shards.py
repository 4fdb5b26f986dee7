"""Web shards are read as a stream, row by row, packed once, and then any row is read at once."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from st4vla.platform.data.mixture import Loader, LoaderConfig, Mixture
from st4vla.platform.data.packed import PackedPictures, pack_shard
from st4vla.platform.data.pictures import PictureQuestions
from st4vla.platform.data.shards import BadRow, ShardRow, read_shard
from st4vla.platform.errors import DataError
from st4vla.platform.train.sources import ReadingConfig, SourceConfig, open_source

RNG = np.random.default_rng(0)
POINTS = {"label": "cup", "points": [[10, 20]]}


def picture(shade: int = 7, size: tuple[int, int] = (40, 30)) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)


def as_json(row: Any) -> bytes:
    return json.dumps(row).encode()


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 4) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


def read(path: str, coordinates: str = "pixels") -> list[ShardRow | BadRow]:
    return list(read_shard(path, coordinates, "downloads"))


def test_members_of_a_tar_with_one_key_are_one_row(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "at (500, 1000)"}]
    members = [
        ("a/0001.json", as_json(POINTS)),
        ("a/0001.png", picture()),
        ("a/0001.txt", b"ignored"),
        ("a/0002.png", picture()),
        ("a/0002.json", as_json({"conversations": turns})),
    ]
    points, words = read(write_tar(tmp_path / "s.tar", members))
    assert isinstance(points, ShardRow) and isinstance(words, ShardRow)
    assert points.size == (40, 30) and points.asked[0].answer.points == ((10, 20),)
    assert words.where.endswith("s.tar row 1") and words.asked[0].label == "Where?"


def test_boxes_are_scaled_and_a_label_named_twice_is_not_asked_for(tmp_path: Path) -> None:
    boxes = [{"label": name, "box": box} for name, box in (("dog", [0, 0, 500, 1000]), ("cat", [0, 0, 9, 9]))]
    row = {"image": {"bytes": picture(), "path": "x"}, "boxes": [*boxes, boxes[1]]}
    (found,) = read(write_parquet(tmp_path / "s.parquet", [row]), "thousandths")
    assert isinstance(found, ShardRow)
    assert [(one.kind, one.label, one.answer.box) for one in found.asked] == [("box", "dog", (0, 0, 20, 30))]


BROKEN = {
    "not one picture": ({"image": b"", **POINTS}, "row 1: 'image' is bytes; expected the bytes of one encoded picture"),
    "a cut picture": ({"image": picture()[:60], **POINTS}, "row 1: the picture in it cannot be read"),
    "outside": (
        {"image": picture(), "label": "cup", "points": [[99, 5]]},
        r"row 1 has the point \[99.0, 5.0\] in a .*40x30",
    ),
    "nothing asked": (
        {"image": picture(), "label": "cup", "points": None},
        "row 1 has no 'conversations', 'points' or",
    ),
    "no numbers": ({"image": picture(), "label": "cup", "points": [[1]]}, r"row 1: a point of 'points' is \[1\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_by_file_row_and_key_and_reading_goes_on(name: str, tmp_path: Path) -> None:
    row, reason = BROKEN[name]
    good = {"image": picture(), **POINTS}
    first, bad, last = read(write_parquet(tmp_path / "s.parquet", [good, row, good]))
    assert isinstance(first, ShardRow) and isinstance(last, ShardRow) and isinstance(bad, BadRow)
    with pytest.raises(AssertionError, match=f"s.parquet {reason}"):
        raise AssertionError(bad.reason)


def test_shards_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    members = [(f"{key}.png", picture(size=(400, 400))) for key in range(9)]
    whole = Path(write_tar(tmp_path / "whole.tar", members)).read_bytes()
    damaged = whole[:2048] + b"x" * 512 + whole[2560:]
    broken = {
        "cut.tar": (whole[:2300], "cannot be read as tar behind"),
        "unmarked.tar": (whole[: whole.rindex(b"IEND")], "cannot be read as tar behind"),
        "damaged.tar": (damaged, "cannot be read as tar behind"),
        "bad.parquet": (b"PAR1 nonsense", "cannot be read as parquet"),
    }
    assert len(read(str(tmp_path / "whole.tar"))) == 9
    for name, (content, reason) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} {reason}"):
            read(str(tmp_path / name))
    with pytest.raises(DataError, match="is no shard; expected a file that ends in .parquet or .tar"):
        read(str(tmp_path / "rows.csv"))


def noise(side: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (side, side, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_of_a_large_parquet_file_one_row_group_is_held(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    rows = [{"image": noise(300), **POINTS} for _ in range(4)]
    table = pa.Table.from_pylist(rows)
    with pq.ParquetWriter(path, table.schema, compression="none") as writer:
        for _ in range(20):
            writer.write_table(table)
    size, before, most = path.stat().st_size, pa.total_allocated_bytes(), 0
    for row in read_shard(str(path), "pixels", ""):
        assert isinstance(row, ShardRow)
        most = max(most, pa.total_allocated_bytes() - before)
    assert size > 20_000_000 and most < 0.4 * size, f"{most} of {size} bytes were held"


def open_shards(folder: Path) -> int:
    links = [one.resolve() for one in Path("/proc/self/fd").iterdir()]
    return sum(link.parent == folder for link in links)


def test_one_shard_is_open_at_a_time_and_none_afterwards(tmp_path: Path) -> None:
    members = [member for key in range(5) for member in ((f"{key}.png", picture()), (f"{key}.json", as_json(POINTS)))]
    shards = [write_tar(tmp_path / f"{number}.tar", members) for number in range(3)]
    seen = [open_shards(tmp_path) for shard in shards for _ in read_shard(shard, "pixels", "")]
    assert seen == [1] * 15 and open_shards(tmp_path) == 0


def packed_folder(tmp_path: Path, rows: int = 300) -> Path:
    """Pack two shards; a row's number is its picture's shade."""
    for shard in range(2):
        numbers = range(shard * rows // 2, (shard + 1) * rows // 2)
        row = [{"image": picture(number % 256), "label": f"cup {number}", "points": [[1, 2]]} for number in numbers]
        path = write_parquet(tmp_path / f"{shard}.parquet", row)
        assert pack_shard(path, tmp_path / "packed", "pixels", "").rows == rows // 2
    return tmp_path / "packed"


def test_any_packed_row_is_read_at_once_and_is_what_the_shard_held(tmp_path: Path) -> None:
    packed = PackedPictures(packed_folder(tmp_path, 600))
    labels = set()
    for index in (0, 255, 256, 299, 300, 599):
        sample = packed.ask(index, RNG)
        number = int(sample.label.removeprefix("cup "))
        assert sample.kind == "point" and sample.answer.points == ((1, 2),)
        assert (sample.image == number % 256).all() and sample.image.shape == (30, 40, 3)
        labels.add(number)
    assert len(packed) == 600 and len(labels) == 6


def test_a_packed_source_resumes_on_other_workers_with_the_samples_of_an_unbroken_run(tmp_path: Path) -> None:
    source = PictureQuestions("packed", PackedPictures(packed_folder(tmp_path)), range(300))

    def drawn(world: int, batches: int, cursor: dict[str, int] | None = None) -> tuple[list[str], dict[str, int]]:
        loaders = [Loader(Mixture([source], seed=3), LoaderConfig(8 // world, 0), rank, world) for rank in range(world)]
        for loader in loaders:
            loader.load_state_dict(cursor or loader.state_dict())
        streams = [iter(loader) for loader in loaders]
        labels = [sorted(one.label for stream in streams for one in next(stream)) for _ in range(batches)]
        return [label for batch in labels for label in batch], loaders[0].state_dict()

    unbroken, _ = drawn(1, 6)
    first, cursor = drawn(4, 2)
    rest, _ = drawn(2, 4, cursor)
    assert first + rest == unbroken


def test_packing_again_packs_nothing_and_what_a_killed_try_left_does_not_count(tmp_path: Path) -> None:
    folder = packed_folder(tmp_path)
    (folder / ".part-x.1.half").mkdir()
    Path(tmp_path / "0.parquet").write_bytes(b"gone")
    assert pack_shard(str(tmp_path / "0.parquet"), folder, "pixels", "").rows == 150
    assert len(PackedPictures(folder)) == 300
    with pytest.raises(DataError, match="holds no packed row; pack some with `st4vla pack SHARDS"):
        PackedPictures(tmp_path / "nothing")


def test_training_takes_a_packed_folder_and_holds_some_of_it_out(tmp_path: Path) -> None:
    source = open_source(SourceConfig(str(packed_folder(tmp_path)), "packed"), ReadingConfig(("x",), 8, "arm", 0.1))
    assert len(source.grounding()) == 270 and len(source.held_out_grounding(7)) == 7
    assert source.statistics() is None and source.digest
    with pytest.raises(DataError, match="pictures without actions; name it under grounding_data"):
        source.robot()
