"""Keep one row per episode, exactly once, in a file that survives a kill at any byte.

The file is JSON lines. The first line is the header (the plan's digest and the settings that made it); then come
rows, one per finished episode, and events (retries). Each line is one `write` followed by fsync, so that a kill
can tear only the last line, which opening drops. A lock keeps a second driver out.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec
from st4vla.platform.errors import DataError

log = logging.getLogger(__name__)

Row = dict[str, Any]


def plan_digest(plan: Sequence[EpisodeSpec], settings: Mapping[str, Any]) -> str:
    """Digest a plan and its settings; the order of the plan does not matter."""
    ids = sorted(spec.episode_id for spec in plan)
    canonical = json.dumps({"ids": ids, "settings": settings}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def make_row(spec: EpisodeSpec, result: EpisodeResult) -> Row:
    """Join what was asked and what came of it into one self-contained row."""
    return {**asdict(spec), **result.row()}


def without_timings(row: Mapping[str, Any]) -> Row:
    """Drop the fields that may differ between two runs of one plan."""
    return {key: value for key, value in row.items() if key not in EpisodeResult.TIMING_FIELDS}


def canonical_order(row: Row) -> tuple[Any, ...]:
    """Sort rows as a reader expects them, whatever order they finished in."""
    return row["suite"], row["task"], row["variant"], row["seed"], len(row["perturbations"]), row["episode_id"]


class Ledger:
    """The rows of one plan in one file; one process at a time may hold it open.

    A row is on disk before `append` returns. Retries are kept as events, apart from rows, so that a run in which
    actors died has the same rows as one in which none did.
    """

    def __init__(self, path: Path, plan: Sequence[EpisodeSpec] | None, settings: Mapping[str, Any]):
        """Open or create the ledger of this plan; None is an open plan, which takes any episode.

        Raises:
            DataError: the file belongs to another plan, is held by another process, or a line in it is broken.
        """
        self.path = path
        self.rows_by_id: dict[str, Row] = {}
        self.events: list[Row] = []
        self._wanted = None if plan is None else {spec.episode_id for spec in plan}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        try:
            self._lock()
            self._read(plan or (), settings)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"{self.path} is held by another running process; wait for it, or give this run another run_dir=."
            ) from error

    def _read(self, plan: Sequence[EpisodeSpec], settings: Mapping[str, Any]) -> None:
        """Load what is there, dropping a torn last line, or write the header of a new file."""
        settings = json.loads(json.dumps(settings))
        header = {
            "header": 1,
            "plan_digest": plan_digest(plan, settings),
            "num_episodes": len(plan),
            "settings": settings,
        }
        lines = self._whole_lines()
        if not lines:
            self._write(header)
            return
        self._check_header(lines[0], header)
        for record in lines[1:]:
            self._load(record)

    def _whole_lines(self) -> list[Row]:
        """Parse the file; cut off a last line that a kill tore."""
        lines, good_bytes = parse_lines(self.path)
        if good_bytes < self.path.stat().st_size:
            log.warning("%s: dropped a torn last line; its episode runs again.", self.path)
            self._file.truncate(good_bytes)
        return lines

    def _check_header(self, seen: Row, wanted: Row) -> None:
        if seen.get("plan_digest") == wanted["plan_digest"]:
            return
        raise DataError(
            f"{self.path} belongs to another plan ({seen.get('plan_digest')}, this one is {wanted['plan_digest']}): "
            f"{describe_difference(seen, wanted)}. Repeat the settings it was started with, or choose another run_dir=."
        )

    def _load(self, record: Row) -> None:
        if "event" in record:
            self.events.append(record)
        elif record["episode_id"] in self.rows_by_id:
            raise DataError(f"{self.path} holds episode {record['episode_id']} twice; restore it from a backup.")
        else:
            self.rows_by_id[record["episode_id"]] = record

    def _write(self, record: Row) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"could not write to {self.path}: {error}; free some space and run again.") from error

    def append(self, spec: EpisodeSpec, result: EpisodeResult) -> Row:
        """Put an episode's row on disk.

        Raises:
            DataError: the episode has a row already or is not of this plan, or the disk refuses.
        """
        if spec.episode_id in self.rows_by_id:
            raise DataError(f"episode {spec.episode_id} already has a row in {self.path}.")
        if self._wanted is not None and spec.episode_id not in self._wanted:
            raise DataError(f"episode {spec.episode_id} is not in the plan of {self.path}.")
        row = json.loads(json.dumps(make_row(spec, result)))
        self._write(row)
        self.rows_by_id[spec.episode_id] = row
        return row

    def event(self, kind: str, **facts: Any) -> None:
        """Put something that is not a result on disk, e.g. a retry and its reason."""
        record = {"event": kind, **facts}
        self._write(record)
        self.events.append(record)

    def missing(self, plan: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        """List the episodes that have no row yet, in the plan's order."""
        return [spec for spec in plan if spec.episode_id not in self.rows_by_id]

    def rows(self) -> list[Row]:
        """Give all rows in canonical order."""
        return sorted(self.rows_by_id.values(), key=canonical_order)

    def rows_without_timings(self) -> list[Row]:
        """Give what must be equal between two runs of one plan, whatever ran it."""
        return [without_timings(row) for row in self.rows()]

    def close(self) -> None:
        """Let go of the file and its lock."""
        self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_lines(path: Path) -> tuple[list[Row], int]:
    """Read JSON lines; give the records and how many bytes of the file hold them.

    Raises:
        DataError: a line other than a torn last one is not JSON.
    """
    records: list[Row] = []
    good_bytes = 0
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        whole = line.endswith(b"\n")
        try:
            record = json.loads(line) if whole else None
        except ValueError as error:
            if good_bytes + len(line) == len(content):
                break
            raise DataError(f"{path} line {number} is not JSON: {line[:80]!r}; restore it from a backup.") from error
        if record is None:
            break
        records.append(record)
        good_bytes += len(line)
    return records, good_bytes


def describe_difference(seen: Row, wanted: Row) -> str:
    """Name what differs between two headers, old value first."""
    old, new = seen.get("settings", {}), wanted["settings"]
    differences = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if seen.get("num_episodes") != wanted["num_episodes"]:
        differences.append(f"it has {seen.get('num_episodes')} episodes, this one {wanted['num_episodes']}")
    return "; ".join(differences) or "the same settings now plan other episodes"
