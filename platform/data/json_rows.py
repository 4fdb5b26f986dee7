"""Read JSON and JSON-lines files row by row, without holding a file of millions of lines in memory."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from st4vla.platform.errors import DataError

Row = Mapping[str, Any]


class JsonLines(Sequence[Row]):
    """The rows of a .jsonl file; only where each line begins is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, place = [], 0
        try:
            with path.open("rb") as lines:
                for line in lines:
                    if line.strip():
                        starts.append(place)
                    place += len(line)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}; name a .json or .jsonl file.") from error
        self._starts = np.array(starts, np.int64)

    def __len__(self) -> int:
        """Give the number of rows; blank lines are none."""
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        with self.path.open("rb") as lines:
            lines.seek(int(self._starts[index]))
            line = lines.readline()
        try:
            return as_row(json.loads(line), f"{self.path} row {index}")
        except ValueError as error:
            raise DataError(f"{self.path} row {index} is not JSON: {error}; mend or remove it.") from error


def open_rows(path: Path) -> Sequence[Row]:
    """Open a .jsonl file line by line, or a .json file that is one list, whole.

    Raises:
        DataError: it is not there, not JSON, or not a list.
    """
    if path.suffix == ".jsonl":
        return JsonLines(path)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; expected a list of rows, or a .jsonl file.")
    return [as_row(row, f"{path} row {place}") for place, row in enumerate(rows)]


def read_json(path: Path) -> Any:
    """Read a whole JSON file.

    Raises:
        DataError: it is not there, or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; mend it, or fetch it again.") from error


def as_row(value: Any, where: str) -> Row:
    """Give a row, or raise DataError where it is no mapping."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}; expected an object with named fields.")
    return value


def field(row: Row, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Give one field of a row.

    Raises:
        DataError: it is missing or of another type; file, row and key are named.
    """
    if key not in row:
        raise DataError(f"{where} has no {key!r}; it has {', '.join(map(repr, row)) or 'nothing'}.")
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}: {key!r} is {row[key]!r:.80}; expected {names}.")
    return row[key]
