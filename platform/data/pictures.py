"""Ask questions about picture files, as grounding sets from the web keep them; a picture is opened when asked about.

A set gives, for any row, the picture's file and the questions it answers (`Asked`), coordinates in pixels of that
picture. The planner's own convention is the processor's business, so one set serves every planner.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from st4vla.platform.contracts import Box, GroundingKind, GroundingSample, Point, Spatial
from st4vla.platform.data.json_rows import Row
from st4vla.platform.errors import DataError

# A photograph has up to 50 million pixels; a decoder told to expect more is being abused.
MAX_PIXELS = 64_000_000
Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Asked:
    """One question: what it asks for, in which words, and the answer in pixels of the picture."""

    kind: GroundingKind
    label: str
    answer: Spatial
    region: Box | None = None


@dataclass(frozen=True)
class Format:
    """How rows become questions.

    Attributes:
        picture: gives the picture's path, relative to the set's folder of pictures, from a row and its name.
        questions: gives the questions from a row, the picture's size and the row's name.
    """

    picture: Callable[[Row, str], str]
    questions: Callable[[Row, Size, str], list[Asked]]


class PictureSet:
    """A set of rows, its pictures, and its format.

    Args:
        name: what the set is called in logs and lineage.
        rows: any sequence; rows are read when asked for.
        where: what a row is called in errors, "file.json row 12", from its number.
        sources: the files the rows came from, for the digest.
    """

    def __init__(
        self, name: str, rows: Sequence[Row], pictures: Path, how: Format, where: str, sources: Sequence[Path]
    ) -> None:
        if not len(rows):
            raise DataError(f"{where} holds no row; leave it out.")
        self.name, self.rows, self.pictures, self.how = name, rows, pictures, how
        self._where, self._sources = where, tuple(sources)

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.rows)

    def ask(self, index: int, rng: np.random.Generator) -> GroundingSample:
        """Open one row's picture and draw one of its questions.

        Raises:
            DataError: the row or its picture is broken, or it asks nothing; file, row and key are named.
        """
        where = f"{self._where} row {index}"
        row = self.rows[index]
        image = read_picture(self.pictures / self.how.picture(row, where), where)
        asked = self.how.questions(row, (image.shape[1], image.shape[0]), where)
        if not asked:
            raise DataError(f"{where} asks nothing; remove it.")
        one = asked[int(rng.integers(len(asked)))]
        return GroundingSample(image, one.kind, one.label, one.answer, one.region)

    @cached_property
    def digest(self) -> str:
        """Digest of the files with the rows; the pictures are known by their names in them."""
        found = hashlib.sha256()
        for path in self._sources:
            with path.open("rb") as content:
                found.update(hashlib.file_digest(content, "sha256").digest())
        return found.hexdigest()[:16]


class Askable(Protocol):
    """Pictures, each of which answers questions: a `PictureSet`, or one that was packed."""

    def __len__(self) -> int: ...

    @cached_property
    def digest(self) -> str: ...

    def ask(self, index: int, rng: np.random.Generator) -> GroundingSample: ...


class PictureQuestions:
    """Some pictures of a set as a source of questions; a `mixture.Source`."""

    def __init__(self, name: str, pictures: Askable, places: Sequence[int]) -> None:
        self.name, self._pictures, self._places = name, pictures, places

    def __len__(self) -> int:
        """Give the number of pictures."""
        return len(self._places)

    def load(self, item: int, rng: np.random.Generator) -> GroundingSample:
        """Draw one question about one picture."""
        return self._pictures.ask(self._places[item], rng)


def read_picture(source: Path | BinaryIO, where: str) -> np.ndarray:
    """Read a picture, a file or its content, as uint8 [H,W,3].

    Raises:
        DataError: it is not there, no picture, cut short, or larger than MAX_PIXELS.
    """
    name = str(source) if isinstance(source, Path) else "in it"
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise DataError(f"{where}: the picture {name} has {size} pixels; at most {MAX_PIXELS} are read.")
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise DataError(f"{where}: the picture {name} cannot be read: {error}; fetch it again.") from error


def checked_box(box: Sequence[float], size: Size, where: str) -> Box:
    """Give a box (x1, y1, x2, y2) whose corners are in order and inside the picture, give or take a pixel's rounding.

    Raises:
        DataError: naming box and picture size.
    """
    width, height = size
    x1, y1, x2, y2 = (float(value) for value in box)
    if not (-1 <= x1 <= x2 <= width + 1 and -1 <= y1 <= y2 <= height + 1):
        raise DataError(f"{where} has the box {[x1, y1, x2, y2]} in a picture of {width}x{height} pixels; mend it.")
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def checked_point(point: Sequence[float], size: Size, where: str) -> Point:
    """Give a point inside the picture, give or take a pixel's rounding.

    Raises:
        DataError: it has not two numbers, or lies outside.
    """
    if len(point) != 2 or not all(isinstance(value, int | float) for value in point):
        raise DataError(f"{where} has the point {point!r:.80}; expected two numbers.")
    x, y = float(point[0]), float(point[1])
    if not (-1 <= x <= size[0] + 1 and -1 <= y <= size[1] + 1):
        raise DataError(f"{where} has the point {[x, y]} in a picture of {size[0]}x{size[1]} pixels; mend it.")
    return min(max(x, 0.0), float(size[0])), min(max(y, 0.0), float(size[1]))
