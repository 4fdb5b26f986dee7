"""Shards are packed through a real Ray Data, and what cannot be read is counted and judged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from st4vla.platform.cli import compose_command
from st4vla.platform.data.packed import PackedPart, PackedPictures
from st4vla.platform.errors import ConfigError, DataError
from st4vla.workers.pack import PackConfig, Tally, main


def write_shards(folder: Path) -> None:
    folder.mkdir()
    Image.fromarray(np.full((30, 40, 3), 9, np.uint8)).save(folder / "a.png")
    picture = (folder / "a.png").read_bytes()
    for shard in range(3):
        rows = [{"image": picture, "label": f"cup {shard}-{number}", "points": [[1, 2]]} for number in range(100)]
        if shard == 1:
            rows[7]["points"] = [[99, 2]]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
    (folder / "broken.tar").write_bytes(b"no tar at all" * 100)


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_packs_what_it_can_and_names_what_it_cannot(
    workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(workplace / "shards")
    words = ["shards=[shards]", "out=packed"]
    with pytest.raises(DataError, match=r"1 of 4 shards could not be read; all others are packed. .*broken.tar cannot"):
        main(compose_command("pack", words))
    assert "1.parquet row 7 has the point [99.0, 2.0] in a picture of 40x30 pixels" in caplog.text
    packed = PackedPictures(workplace / "packed")
    assert len(packed) == 299
    labels = {packed.ask(index, np.random.default_rng(0)).label for index in range(299)}
    assert len(labels) == 299 and "cup 1-7" not in labels


def test_too_many_broken_rows_stop_the_packing(tmp_path: Path) -> None:
    tally = Tally(PackConfig((str(tmp_path),), "out"))
    tally.add(PackedPart("a.parquet", 150, 4, ("a.parquet row 3: no picture",)))
    with pytest.raises(DataError, match=r"8 of 300 rows could not be read, more than the share of 0.01 .*b.tar: .*row"):
        tally.add(PackedPart("b.tar", 142, 4, ("b.tar row 9: no picture",)))


def test_a_place_without_shards_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="holds no shard; expected files that end in .parquet or .tar"):
        PackConfig((str(tmp_path),), "out").listed()
    with pytest.raises(ConfigError, match="no shards are named; write: st4vla pack FOLDER"):
        PackConfig((), "out")
