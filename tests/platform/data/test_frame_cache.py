"""Frames are decoded once, by one of the workers that want them, and never beyond the budget."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.errors import DataError


def test_cached_frames_are_the_decoded_ones(dataset_folder: Path, tmp_path: Path) -> None:
    plain = open_dataset(dataset_folder)
    cached = open_dataset(dataset_folder, FrameCache(FrameCacheConfig(str(tmp_path / "cache"))))
    for index in (0, 9, 10, 24):
        for camera in ("third_person", "wrist"):
            np.testing.assert_array_equal(cached.images(index)[camera], plain.images(index)[camera])


def test_two_processes_decode_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_open_and_count, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "decoded").read_text() == "x"


def test_frames_beyond_the_budget_are_refused_with_both_sizes(tmp_path: Path) -> None:
    cache = FrameCache(FrameCacheConfig(str(tmp_path), max_gigabytes=0.001))
    with pytest.raises(DataError, match=r"take 3.2 GB and frame_cache.max_gigabytes is 0.001"):
        cache.open("d" * 64, {"wrist": (64, 4096, 4096, 3)}, lambda camera: iter(()))


def test_the_longest_unused_dataset_makes_room(tmp_path: Path) -> None:
    cache = FrameCache(FrameCacheConfig(str(tmp_path), max_gigabytes=2.5e-6))
    for digest in ("a" * 64, "b" * 64, "c" * 64):
        cache.open(digest, {"wrist": (1, 16, 16, 3)}, _black)
    assert sorted(path.name[0] for path in tmp_path.iterdir() if path.is_dir()) == ["b", "c"]


def test_too_few_frames_leave_nothing_behind(tmp_path: Path) -> None:
    cache = FrameCache(FrameCacheConfig(str(tmp_path)))
    with pytest.raises(DataError, match="1 frames were decoded and the metadata tells of 2"):
        cache.open("a" * 64, {"wrist": (2, 16, 16, 3)}, _black)
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.part"))


def test_frames_of_another_size_than_the_metadatas_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    cache = FrameCache(FrameCacheConfig(str(tmp_path)))
    with pytest.raises(DataError, match=r"wrist: decoded frames are \(16, 16, 3\) and the metadata says \(3, 16, 3\)"):
        cache.open("a" * 64, {"wrist": (1, 3, 16, 3)}, _black)
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.part"))


def test_a_cached_file_of_more_or_fewer_bytes_than_its_header_says_is_decoded_anew(tmp_path: Path) -> None:
    cache = FrameCache(FrameCacheConfig(str(tmp_path)))
    cache.open("a" * 64, {"wrist": (1, 16, 16, 3)}, _black)
    (file,) = tmp_path.rglob("wrist.npy")
    whole = file.read_bytes()
    for damaged in (whole + bytes(99), whole[:-99]):
        file.write_bytes(damaged)
        cache.open("a" * 64, {"wrist": (1, 16, 16, 3)}, _black)
        assert file.read_bytes() == whole


def _black(camera: str) -> Iterator[np.ndarray]:
    yield np.zeros((1, 16, 16, 3), np.uint8)


def _open_and_count(folder: Path) -> None:
    def decode(camera: str) -> Iterator[np.ndarray]:
        with (folder / "decoded").open("a") as file:
            file.write("x")
        yield from _black(camera)

    frames = FrameCache(FrameCacheConfig(str(folder / "cache"))).open("a" * 64, {"wrist": (1, 16, 16, 3)}, decode)
    assert frames["wrist"].sum() == 0
