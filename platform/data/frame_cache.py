"""Keep a dataset's frames decoded on disk, memory-mapped, so that a random frame costs a page read.

Decoding every training sample from its MP4 is 4-10 times slower than reading it here; a set that does not fit the
budget is read from its videos instead, by leaving the cache out. Frames that cannot be decoded are gaps of it, so that
one damaged video costs its own episode and no other.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from st4vla.platform.data.disk import one_at_a_time, refused_by_disk, write_file
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)
# Beside a camera's frames: which of them are missing.
GAPS = ".gaps.json"


@dataclass(frozen=True)
class FrameCacheConfig:
    """Where decoded frames are kept, and how much of the disk they may take.

    Attributes:
        folder: holds one sub-folder per dataset digest; safe to delete at any time.
        max_gigabytes: limit over all datasets; the longest unused are deleted to stay below it.
    """

    folder: str = "runs/frame_cache"
    max_gigabytes: float = 8.0

    def __post_init__(self) -> None:
        """Check the budget."""
        if self.max_gigabytes <= 0:
            raise ConfigError(f"frame_cache.max_gigabytes is {self.max_gigabytes}; expected a number above 0.")


@dataclass(frozen=True)
class Gap:
    """Frames, `length` of them, that cannot be decoded."""

    length: int


@dataclass(frozen=True)
class CachedFrames:
    """One camera's frames: read-only uint8 [F,H,W,3], mapped; those of `gaps`, [(first, end), ...], are missing."""

    pictures: np.ndarray
    gaps: Sequence[tuple[int, int]] = ()

    def holds(self, index: int) -> bool:
        """Say whether frame `index` is no gap's."""
        return not any(first <= index < end for first, end in self.gaps)


class FrameCache:
    """Decode each dataset once; workers that ask at the same time wait for the one that decodes."""

    def __init__(self, config: FrameCacheConfig = FrameCacheConfig()) -> None:
        self.config, self.folder = config, Path(config.folder)

    def open(
        self,
        digest: str,
        shapes: Mapping[str, tuple[int, int, int, int]],
        decode: Callable[[str], Iterator[np.ndarray | Gap]],
    ) -> dict[str, CachedFrames]:
        """Give {camera: its frames}, decoding what is not there yet.

        Args:
            digest: names the dataset's content.
            shapes: {camera: (F, H, W, 3)}.
            decode: gives a camera's frames in order, in pieces [n,H,W,3] and gaps.

        Raises:
            DataError: the frames do not fit the budget or the disk, or are of another size than `shapes` says.
        """
        place = self.folder / digest[:32]
        with one_at_a_time(self.folder / f".{digest[:32]}.lock"):
            missing = {camera: shape for camera, shape in shapes.items() if not _is_whole(_path(place, camera), shape)}
            self._make_room(place, sum(int(np.prod(shape)) for shape in missing.values()))
            for camera, shape in missing.items():
                log.info("decoding %d frames of %s once into %s", shape[0], camera, place)
                self._fill(_path(place, camera), shape, decode(camera))
            if shapes:
                os.utime(place)
            return {camera: _read(place, camera) for camera in shapes}

    def _make_room(self, place: Path, wanted: int) -> None:
        limit = int(self.config.max_gigabytes * 1e9)
        if wanted > limit:
            raise DataError(
                f"the decoded frames take {wanted / 1e9:.1f} GB and frame_cache.max_gigabytes is "
                f"{self.config.max_gigabytes}; raise it, or open the dataset without a cache."
            )
        others = [one for one in self.folder.iterdir() if one.is_dir()]
        sizes = {one: sum(path.stat().st_size for path in one.iterdir()) for one in others}
        excess = sum(sizes.values()) + wanted - limit
        for one in sorted(others, key=lambda folder: folder.stat().st_mtime):
            if excess > 0 and one != place:
                # A worker that has the files mapped keeps them until it is done.
                shutil.rmtree(one, ignore_errors=True)
                excess -= sizes[one]

    def _fill(self, path: Path, shape: tuple[int, int, int, int], pieces: Iterator[np.ndarray | Gap]) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with refused_by_disk(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                written, gaps = _write_frames(part, path.stem, shape, pieces)
                if written != shape[0]:
                    raise DataError(f"{path.stem}: {written} frames were decoded and the metadata tells of {shape[0]}.")
                # Before the frames: where they lie, their gaps are known.
                write_file(path.with_suffix(GAPS), json.dumps(gaps).encode())
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _write_frames(
    path: Path, camera: str, shape: tuple[int, ...], pieces: Iterator[np.ndarray | Gap]
) -> tuple[int, list[tuple[int, int]]]:
    written, gaps = 0, []
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for piece in pieces:
            if isinstance(piece, Gap):
                gaps.append((written, written + piece.length))
                file.seek(piece.length * int(np.prod(shape[1:])), os.SEEK_CUR)
                file.truncate()
                written += piece.length
                continue
            if piece.shape[1:] != shape[1:]:
                raise DataError(f"{camera}: decoded frames are {piece.shape[1:]} and the metadata says {shape[1:]}.")
            file.write(np.ascontiguousarray(piece).data)
            written += len(piece)
    return written, gaps


def _read(place: Path, camera: str) -> CachedFrames:
    path = _path(place, camera)
    known = path.with_suffix(GAPS)
    gaps = [(first, end) for first, end in json.loads(known.read_bytes())] if known.exists() else []
    if gaps:
        missing = sum(end - first for first, end in gaps)
        log.warning("%d frames could not be decoded into %s and are asked of their videos each time", missing, path)
    return CachedFrames(np.load(path, mmap_mode="r"), gaps)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Say whether the file holds frames of that shape: an earlier version wrote any size behind the header."""
    try:
        frames = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError):
        return False
    return frames.shape == shape and path.stat().st_size == frames.offset + frames.nbytes


def _path(place: Path, camera: str) -> Path:
    return place / f"{camera}.npy"
