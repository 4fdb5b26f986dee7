"""Frames are decoded once, by one of the workers that want them, and never beyond the budget."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig, Gap
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


def test_gaps_are_known_when_the_frames_are_opened_again(tmp_path: Path) -> None:
    def decode(camera: str) -> Iterator[np.ndarray | Gap]:
        yield np.full((1, 16, 16, 3), 7, np.uint8)
        yield Gap(2)
        yield np.full((1, 16, 16, 3), 9, np.uint8)
        yield Gap(1)

    for _ in range(2):
        frames = FrameCache(FrameCacheConfig(str(tmp_path))).open("a" * 64, {"wrist": (5, 16, 16, 3)}, decode)["wrist"]
        assert [frames.holds(index) for index in range(5)] == [True, False, False, True, False]
        assert frames.pictures[[0, 3], 15, 15, 2].tolist() == [7, 9] and frames.pictures.shape == (5, 16, 16, 3)


def test_a_damaged_video_costs_its_own_frames_and_no_others_until_it_is_mended(
    dataset_folder: Path, version: str, tmp_path: Path
) -> None:
    video = sorted((dataset_folder / "videos").rglob("*wrist/**/*.mp4"))[1]
    whole = video.read_bytes()
    video.write_bytes(whole[:200])
    lost = range(5, 10) if version == "v2.1" else range(10, 20)
    dataset = open_dataset(dataset_folder, FrameCache(FrameCacheConfig(str(tmp_path / "cache"))))
    plain = open_dataset(dataset_folder)
    for index in range(25):
        assert dataset.image(index, "third_person").shape == (32, 32, 3)
        if index in lost:
            with pytest.raises(DataError, match=f"{video.name} cannot be decoded"):
                dataset.image(index, "wrist")
        else:
            np.testing.assert_array_equal(dataset.image(index, "wrist"), plain.image(index, "wrist"))
    video.write_bytes(whole)
    again = open_dataset(dataset_folder, FrameCache(FrameCacheConfig(str(tmp_path / "cache"))))
    np.testing.assert_array_equal(again.image(lost[0], "wrist"), plain.image(lost[0], "wrist"))


def test_a_cache_that_is_refused_is_not_filled_again_for_every_sample(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(dataset_folder, FrameCache(FrameCacheConfig(str(tmp_path / "cache"), max_gigabytes=1e-6)))
    tried = []
    monkeypatch.setattr(dataset, "_open_cache", lambda opened=dataset._open_cache: tried.append(1) or opened())
    for _ in range(3):
        with pytest.raises(DataError, match="frame_cache.max_gigabytes is 1e-06"):
            dataset.image(0, "wrist")
    assert len(tried) == 1


def _black(camera: str) -> Iterator[np.ndarray]:
    yield np.zeros((1, 16, 16, 3), np.uint8)


def _open_and_count(folder: Path) -> None:
    def decode(camera: str) -> Iterator[np.ndarray]:
        with (folder / "decoded").open("a") as file:
            file.write("x")
        yield from _black(camera)

    frames = FrameCache(FrameCacheConfig(str(folder / "cache"))).open("a" * 64, {"wrist": (1, 16, 16, 3)}, decode)
    assert frames["wrist"].pictures.sum() == 0
