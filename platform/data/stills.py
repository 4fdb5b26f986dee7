"""Keep annotated pictures that belong to no episode, in blocks that are written once and read by memory map.

<folder>/block_00003/images.npy            uint8 [N,H,W,3]
<folder>/block_00003/annotations.parquet   N rows of `annotations.SCHEMA` and the instruction of the scene
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from st4vla.platform.contracts import FrameAnnotation, GroundingSample
from st4vla.platform.data.annotations import from_row, to_table
from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.data.grounding import GroundingConfig, choose, questions
from st4vla.platform.errors import DataError

IMAGES, ANNOTATIONS = "images.npy", "annotations.parquet"


@dataclass(frozen=True)
class Still:
    """One annotated picture: the instruction of its scene, the camera, uint8 [H,W,3], and what is in it."""

    instruction: str
    camera: str
    image: np.ndarray
    annotation: FrameAnnotation


def block_folder(folder: Path, block: int) -> Path:
    """Name the folder of one block."""
    return folder / f"block_{block:05d}"


def write_block(folder: Path, block: int, stills: Sequence[Still]) -> None:
    """Write one block; it appears whole or not at all."""
    final = block_folder(folder, block)
    half = final.with_name(f".{final.name}.half")
    tables = [to_table({still.camera: [still.annotation]}, block, row) for row, still in enumerate(stills)]
    table = pa.concat_tables(tables).append_column("instruction", pa.array([still.instruction for still in stills]))
    with refused_by_disk(final):
        half.mkdir(parents=True, exist_ok=True)
        np.save(half / IMAGES, np.stack([still.image for still in stills]))
        pq.write_table(table, half / ANNOTATIONS)
        half.rename(final)


class Stills:
    """The blocks of a folder as one list of pictures.

    Raises:
        DataError: the folder holds no block, or a block cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blocks = sorted(path for path in folder.glob("block_*") if path.is_dir())
        if not self.blocks:
            raise DataError(f"{folder} holds no pictures; make some with `st4vla stills {folder}`.")
        try:
            self._images = [np.load(block / IMAGES, mmap_mode="r") for block in self.blocks]
            self._rows = [pq.read_table(block / ANNOTATIONS).to_pylist() for block in self.blocks]
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{folder} has an unreadable block: {error}; remove that block and make it again."
            ) from error
        self._places = [(block, row) for block, rows in enumerate(self._rows) for row in range(len(rows))]

    def __len__(self) -> int:
        """Give the number of pictures."""
        return len(self._places)

    def __getitem__(self, index: int) -> Still:
        block, row = self._places[index]
        values = self._rows[block][row]
        image = np.array(self._images[block][row])
        return Still(values["instruction"], values["camera"], image, from_row(values))

    @cached_property
    def digest(self) -> str:
        """Digest of the annotations, which follow from the scenes that the pictures show."""
        found = hashlib.sha256()
        for block in self.blocks:
            found.update((block / ANNOTATIONS).read_bytes())
        return found.hexdigest()[:16]


class StillQuestions:
    """Questions about the pictures `places` of a set that can answer one of the wanted kinds; a `mixture.Source`."""

    def __init__(self, stills: Stills, config: GroundingConfig, places: Sequence[int]) -> None:
        self.name, self._stills, self._config = f"{stills.folder.name}/stills", stills, config
        self._places = [place for place in places if self._draw(place, np.random.default_rng(0)) is not None]

    def __len__(self) -> int:
        """Give the number of pictures that can be asked about."""
        return len(self._places)

    def load(self, item: int, rng: np.random.Generator) -> GroundingSample:
        """Draw one question about one picture."""
        sample = self._draw(self._places[item], rng)
        assert sample is not None
        return sample

    def _draw(self, place: int, rng: np.random.Generator) -> GroundingSample | None:
        still = self._stills[place]
        return choose(questions(still.image, still.annotation, still.instruction), self._config, rng)
