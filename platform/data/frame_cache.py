"""Keep a dataset's frames decoded on disk, memory-mapped, so that a random frame costs a page read.

Decoding every training sample from its MP4 is 4-10 times slower than reading it here; a set that does not fit the
budget is read from its videos instead, by leaving the cache out.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from st4vla.platform.data.disk import one_at_a_time, refused_by_disk
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)


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


class FrameCache:
    """Decode each dataset once; workers that ask at the same time wait for the one that decodes."""

    def __init__(self, config: FrameCacheConfig = FrameCacheConfig()) -> None:
        self.config, self.folder = config, Path(config.folder)

    def open(
        self,
        digest: str,
        shapes: Mapping[str, tuple[int, int, int, int]],
        decode: Callable[[str], Iterator[np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """Give {camera: read-only uint8 [F,H,W,3]}, decoding what is not there yet.

        Args:
            digest: names the dataset's content.
            shapes: {camera: (F, H, W, 3)}.
            decode: gives a camera's frames in order, in pieces [n,H,W,3].

        Raises:
            DataError: the frames do not fit the budget or the disk, or are of another size than `shapes` says.
        """
        place = self.folder / digest[:32]
        with one_at_a_time(self.folder / f".{digest[:32]}.lock"):
            missing = {camera: shape for camera, shape in shapes.items() if not _holds(_path(place, camera), shape)}
            self._make_room(place, sum(int(np.prod(shape)) for shape in missing.values()))
            for camera, shape in missing.items():
                log.info("decoding %d frames of %s once into %s", shape[0], camera, place)
                self._fill(_path(place, camera), shape, decode(camera))
        if shapes:
            os.utime(place)
        return {camera: np.load(_path(place, camera), mmap_mode="r") for camera in shapes}

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

    def _fill(self, path: Path, shape: tuple[int, int, int, int], pieces: Iterator[np.ndarray]) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with refused_by_disk(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                written = _write_frames(part, path.stem, shape, pieces)
                if written != shape[0]:
                    raise DataError(f"{path.stem}: {written} frames were decoded and the metadata tells of {shape[0]}.")
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _write_frames(path: Path, camera: str, shape: tuple[int, ...], pieces: Iterator[np.ndarray]) -> int:
    written = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for piece in pieces:
            if piece.shape[1:] != shape[1:]:
                raise DataError(f"{camera}: decoded frames are {piece.shape[1:]} and the metadata says {shape[1:]}.")
            file.write(np.ascontiguousarray(piece).data)
            written += len(piece)
    return written


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Say whether the file holds frames of that shape: an earlier version wrote any size behind the header."""
    try:
        frames = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError):
        return False
    return frames.shape == shape and path.stat().st_size == frames.offset + frames.nbytes


def _path(place: Path, camera: str) -> Path:
    return place / f"{camera}.npy"
