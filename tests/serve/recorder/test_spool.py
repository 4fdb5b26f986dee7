"""A spool file gives back what was appended, whatever tears its end."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.errors import DataError
from st4vla.serve.recorder import spool
from st4vla.serve.recorder.spool import Record, SpoolFile, read_spool


def record(number: int) -> Record:
    return Record({"number": number}, {"image": np.full((2, 3, 3), number, np.uint8), "state": np.ones(2, np.float32)})


@pytest.fixture
def file(tmp_path: Path) -> SpoolFile:
    file = SpoolFile(tmp_path / "spool", "one")
    for number in range(3):
        file.append(record(number))
    return file


def test_records_come_back_in_order_with_their_arrays(file: SpoolFile) -> None:
    read = list(read_spool(file.finish()))
    assert [one.facts["number"] for one in read] == [0, 1, 2]
    assert read[2].arrays["image"].tolist() == np.full((2, 3, 3), 2).tolist()
    assert read[2].arrays["state"].dtype == np.float32


def test_a_finished_file_has_another_name(file: SpoolFile) -> None:
    assert (file.path.name, file.finish().name) == ("one.open", "one.done")


def test_every_way_to_tear_the_end_costs_only_the_torn_record(file: SpoolFile) -> None:
    whole = file.path.read_bytes()
    length = len(whole) // 3
    for cut in range(2 * length, 3 * length, 7):
        file.path.write_bytes(whole[:cut])
        assert [one.facts["number"] for one in read_spool(file.path)] == [0, 1]


def test_a_damaged_record_ends_the_reading(file: SpoolFile) -> None:
    damaged = bytearray(file.path.read_bytes())
    damaged[-1] ^= 1
    file.path.write_bytes(damaged)
    assert [one.facts["number"] for one in read_spool(file.path)] == [0, 1]


def test_a_full_disk_is_named_and_leaves_the_earlier_records(file: SpoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(descriptor: int, pieces: list[memoryview]) -> int:
        os.write(descriptor, pieces[0])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "writev", half)
        with pytest.raises(DataError, match="No space left"):
            file.append(record(3))
    file.append(record(4))
    assert [one.facts["number"] for one in read_spool(file.path)] == [0, 1, 2, 4]


def test_a_write_that_stops_half_way_goes_on(file: SpoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.os, "writev", lambda descriptor, pieces: os.write(descriptor, pieces[0][:5]))
    file.append(record(3))
    assert [one.facts["number"] for one in read_spool(file.path)] == [0, 1, 2, 3]
