"""Read the numbers of a dataset: actions, states and task numbers of every frame, checked row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st4vla.platform.data.disk import read_json
from st4vla.platform.data.lerobot_features import COLUMN_PREFIX
from st4vla.platform.data.lerobot_meta import DatasetMeta, read_table
from st4vla.platform.data.parts import Part, offers, width_of
from st4vla.platform.errors import DataError


@dataclass(frozen=True)
class Columns:
    """The numbers of F frames: actions float32 [F,A], states float32 [F,S] or None, task_index int64 [F]."""

    actions: np.ndarray
    states: np.ndarray | None
    task_index: np.ndarray


def load_columns(
    meta: DatasetMeta,
    action_parts: Sequence[Part],
    state_parts: Sequence[Part],
    openings: Mapping[str, Sequence[float]] | None = None,
) -> Columns:
    """Read the chosen parts of columns of every episode in order.

    Args:
        openings: by the name of a gripper's part, its values when closed and when open; they become 0 and 1.

    Raises:
        DataError: a column is missing, an episode has too few rows, a row is of another width than info.json says, or
            a value is not finite; file, row and key named.
    """
    if not action_parts:
        raise DataError(f"{meta.folder} has no column 'action'; name the parts to act with: {offers(meta, 'action')}.")
    actions, states, tasks = [], [], []
    for path, entries in groupby(meta.episodes, key=lambda entry: entry.data_path):
        table = read_table(path)
        keys = {part.key: width_of(meta, part.key) for part in (*action_parts, *state_parts)}
        columns = {key: _column(table, path, key, width) for key, width in keys.items()}
        for entry in entries:
            rows = slice(entry.data_row, entry.data_row + entry.length)
            _check_rows(table, path, entry.index, rows)
            actions.append(_join(columns, action_parts, rows, openings or {}))
            states += [_join(columns, state_parts, rows, openings or {})] if state_parts else []
            tasks.append(_task_numbers(table, rows))
    if not actions:
        raise DataError(f"{meta.folder} holds no episode yet; collect some first.")
    joined = np.concatenate(states) if states else None
    return Columns(np.concatenate(actions), joined, np.concatenate(tasks))


def load_own_columns(meta: DatasetMeta) -> dict[str, np.ndarray]:
    """Read what we keep of every frame beside LeRobot's columns: {name: float32 or int64 [F]}."""
    keys = [key for key in meta.features if key.startswith(COLUMN_PREFIX)]
    parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for path, entries in groupby(meta.episodes, key=lambda entry: entry.data_path):
        table = read_table(path).select(keys)
        rows = [slice(entry.data_row, entry.data_row + entry.length) for entry in entries]
        for key in keys:
            values = table[key].to_numpy()
            parts[key] += [values[span] for span in rows]
    return {key.removeprefix(COLUMN_PREFIX): np.concatenate(found) for key, found in parts.items() if found}


def stated_statistics_widths(meta: DatasetMeta) -> dict[str, int]:
    """Give the width of each vector in the dataset's own statistics, after checking it against its features.

    Raises:
        DataError: the statistics are missing or have another width than the feature.
    """
    path, stats = _stated(meta)
    widths: dict[str, int] = {}
    for key, feature in meta.features.items():
        if feature["dtype"] not in ("float32", "float64") or key not in stats:
            continue
        for name in ("mean", "std", "min", "max"):
            seen = int(np.asarray(stats[key].get(name, [])).size)
            if seen != int(np.prod(feature["shape"])):
                width = int(np.prod(feature["shape"]))
                raise DataError(
                    f"{path}: {name} of {key!r} has {seen} numbers and the column has {width}; "
                    "the statistics belong to other data: compute them anew."
                )
        widths[key] = int(np.prod(feature["shape"]))
    return widths


def _stated(meta: DatasetMeta) -> tuple[Path, Mapping[str, Any]]:
    if meta.version == "v2.1":
        path = meta.folder / "meta" / "episodes_stats.jsonl"
        without = [entry.index for entry in meta.episodes if not entry.stats]
        if not path.exists() or without:
            gone = f"has no episode {without[0]}" if path.exists() else "is missing"
            raise DataError(f"{path} {gone}; every v2.1 episode needs its statistics: copy the dataset again.")
        return path, meta.episodes[0].stats if meta.episodes else {}
    path = meta.folder / "meta" / "stats.json"
    if not path.exists():
        raise DataError(f"{path} is missing; a {meta.version} dataset needs its statistics: copy the dataset again.")
    return path, read_json(path)


def _column(table: pa.Table, path: Path, key: str, width: int) -> np.ndarray:
    if key not in table.column_names:
        raise DataError(f"{path} has no column {key!r}; it has {', '.join(table.column_names)}.")
    column = table[key].combine_chunks()
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{path} row {row}: {key!r} is empty; drop the episode or record it anew.")
    flat, ends = column, np.arange(len(column) + 1)
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type) or pa.types.is_large_list(flat.type):
        lengths = pc.call_function("list_value_length", [flat]).fill_null(0).to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(lengths)])[ends]
        flat = flat.flatten()
    _check_widths(np.diff(ends), width, path, key)
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), width)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{path} row {bad[0][0]}: {key!r} is {values[tuple(bad[0])]}; drop the episode or record it anew."
        )
    return values


def _check_widths(seen: np.ndarray, width: int, path: Path, key: str) -> None:
    odd = np.flatnonzero(seen != width)
    if len(odd):
        remedy = "meta/ describes other data: copy the dataset again" if len(odd) == len(seen) else "record it anew"
        raise DataError(
            f"{path} row {odd[0]}: {key!r} has {seen[odd[0]]} numbers and info.json says {width}; {remedy}."
        )


def _check_rows(table: pa.Table, path: Path, episode: int, rows: slice) -> None:
    if rows.stop > len(table):
        raise DataError(
            f"{path} has {len(table)} rows and episode {episode} needs rows {rows.start}..{rows.stop - 1}; "
            "the file is incomplete: copy the dataset again."
        )
    if "episode_index" in table.column_names:
        seen = set(table["episode_index"][rows.start : rows.stop].to_pylist())
        if seen != {episode}:
            raise DataError(f"{path} rows {rows.start}..{rows.stop - 1} are of episodes {sorted(seen)}, not {episode}.")


def _join(
    columns: Mapping[str, np.ndarray], parts: Sequence[Part], rows: slice, openings: Mapping[str, Sequence[float]]
) -> np.ndarray:
    found = []
    for part in parts:
        values = columns[part.key][rows, part.start : part.end]
        if part.name in openings:
            closed, opened = openings[part.name]
            values = np.clip((values - closed) / (opened - closed), 0, 1).astype(np.float32)
        found.append(values)
    return np.concatenate(found, axis=1)


def _task_numbers(table: pa.Table, rows: slice) -> np.ndarray:
    if "task_index" not in table.column_names:
        return np.full(rows.stop - rows.start, -1)
    return np.asarray(table["task_index"][rows.start : rows.stop].to_pylist(), np.int64)
