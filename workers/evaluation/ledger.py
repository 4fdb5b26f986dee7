"""Keep one row per episode, exactly once, in a file that survives a kill at any byte.

The file is JSON lines. The first line is the header (the plan's digest and the settings that made it); then come
rows, one per finished episode, and events (retries, rows that are void). Each line is one `write` followed by fsync,
so that a kill can tear only the last line, which opening drops; a write that the disk refuses is undone. A lease keeps
a second driver out (`lease.py`); who takes over from a driver that is gone puts a copy in the file's place, so that
whatever the other still writes goes nowhere.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec
from st4vla.platform.data.disk import write_file
from st4vla.platform.errors import DataError
from st4vla.workers.evaluation.lease import Lease, LeaseConfig

log = logging.getLogger(__name__)

Row = dict[str, Any]
VOID = "void"


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
    """The rows of one plan in one file; one driver at a time may hold it open.

    A row is on disk before `append` returns. Retries are kept as events, apart from rows, so that a run in which
    actors died has the same rows as one in which none did.
    """

    def __init__(
        self,
        path: Path,
        plan: Sequence[EpisodeSpec] | None,
        settings: Mapping[str, Any],
        lease: LeaseConfig = LeaseConfig(),  # noqa: B008 (frozen)
    ):
        """Open or create the ledger of this plan; None is an open plan, which takes any episode.

        Raises:
            DataError: the file belongs to another plan, is held by another process, or a line in it is broken.
        """
        self.path = path
        self.rows_by_id: dict[str, Row] = {}
        self.events: list[Row] = []
        self._wanted = None if plan is None else {spec.episode_id for spec in plan}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lease: Lease | None = Lease(path, lease)
        self._handle = -1
        try:
            lines, good = parse_lines(path) if path.exists() else ([], b"")
            self._handle = self._open(good)
            self._read(lines, plan or (), settings)
        except BaseException:
            self.close()
            raise

    def _open(self, good: bytes) -> int:
        """Open the file to append; drop a torn last line, and after a takeover put a copy in the file's place."""
        torn = self.path.exists() and self.path.stat().st_size > len(good)
        if torn:
            log.warning("%s: dropped a torn last line; its episode runs again.", self.path)
        if torn or (good and self._lease is not None and self._lease.taken_over):
            self._replace(good)
        handle = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        self._size = os.fstat(handle).st_size
        _sync_folder(self.path.parent)
        return handle

    def _replace(self, content: bytes) -> None:
        """Put a copy in the file's place; who lost the lease since it read the file would undo the other's rows."""
        assert self._lease is not None, "the ledger was closed"
        self._lease.check()
        write_file(self.path, content, sync=True)

    def _read(self, lines: Sequence[Row], plan: Sequence[EpisodeSpec], settings: Mapping[str, Any]) -> None:
        header = {
            "header": 1,
            "plan_digest": plan_digest(plan, settings),
            "num_episodes": len(plan),
            "episodes": dict(Counter(f"{spec.suite}/{spec.task}" for spec in plan)),
            "settings": settings,
        }
        if not lines:
            self._write(header)
            return
        self._check_header(lines[0], header)
        for record in lines[1:]:
            self._load(record)

    def _check_header(self, seen: Row, wanted: Row) -> None:
        if seen.get("plan_digest") == wanted["plan_digest"]:
            return
        raise DataError(
            f"{self.path} belongs to another plan ({seen.get('plan_digest')}, this one is {wanted['plan_digest']}): "
            f"{describe_difference(seen, wanted)}. Repeat the settings it was started with, or choose another run_dir= "
            "(of a collection: another out=)."
        )

    def _load(self, record: Row) -> None:
        if record.get("event") == VOID:
            self.rows_by_id.pop(record["episode_id"], None)
        if "event" in record:
            self.events.append(record)
        elif record["episode_id"] in self.rows_by_id:
            raise DataError(f"{self.path} holds episode {record['episode_id']} twice; restore it from a backup.")
        else:
            self.rows_by_id[record["episode_id"]] = record

    def _write(self, record: Row) -> None:
        """Append one line; a write that fails half way is taken back, so that the file stays whole."""
        assert self._lease is not None, "the ledger was closed"
        self._lease.check()
        self._check_file()
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
            os.fsync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):  # what cannot be cut off now is dropped at the next opening
                os.ftruncate(self._handle, self._size)
            raise DataError(
                f"could not write to {self.path}: {error}; the {len(self.rows_by_id)} rows in it are safe. Free some "
                "space and run the same command again."
            ) from error
        self._size += len(line)

    def _check_file(self) -> None:
        """Make sure that what is written will be found under the file's name.

        Raises:
            DataError: the file was replaced or removed since it was opened.
        """
        with contextlib.suppress(OSError):  # NFS says by an error that either is gone
            ours, named = os.fstat(self._handle), os.stat(self.path)
            if (named.st_ino, named.st_dev) == (ours.st_ino, ours.st_dev):
                return
        raise DataError(
            f"{self.path} was replaced or removed while this driver had it open; this one stops here, as rows written "
            "now would be lost. Run the same command again to go on from the file that is there now."
        )

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

    def void(self, episode_id: str, reason: str) -> None:
        """Take a row back, so that its episode is missing again; the row itself stays in the file.

        Raises:
            DataError: there is no such row.
        """
        if episode_id not in self.rows_by_id:
            raise DataError(f"episode {episode_id} has no row in {self.path} that could be void.")
        self.event(VOID, episode_id=episode_id, reason=reason)
        del self.rows_by_id[episode_id]

    @property
    def num_retries(self) -> int:
        """Count the retries so far, those of earlier drivers included."""
        return sum(event["event"] == "retry" for event in self.events)

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
        """Let go of the file and its lease."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_lines(path: Path) -> tuple[list[Row], bytes]:
    """Read JSON lines; give the records and the part of the file that holds them, without a torn last line.

    Raises:
        DataError: a line other than the last is not JSON.
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
    return records, content[:good_bytes]


def read_rows(path: Path) -> tuple[Row, list[Row]]:
    """Read a ledger without holding it: its header and its rows in canonical order, those that are void left out.

    Raises:
        DataError: there is no ledger, or a line in it is broken.
    """
    if not path.is_file():
        raise DataError(f"there is no ledger at {path}; give the folder of an evaluation, as `st4vla eval` names it.")
    lines, _ = parse_lines(path)
    if not lines or "header" not in lines[0]:
        raise DataError(f"{path} has no header; it is not a ledger that `st4vla eval` wrote.")
    rows: dict[str, Row] = {}
    for record in lines[1:]:
        if record.get("event") == VOID:
            rows.pop(record["episode_id"], None)
        elif "event" not in record:
            rows.setdefault(record["episode_id"], record)
    return lines[0], sorted(rows.values(), key=canonical_order)


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on disk; some network file systems refuse to sync folders and need it not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def describe_difference(seen: Row, wanted: Row) -> str:
    """Name what differs between two headers, old value first."""
    old, new = seen.get("settings", {}), wanted["settings"]
    differences = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    planned_then, planned_now = seen.get("episodes", {}), wanted["episodes"]
    differences += [
        f"{name} had {planned_then.get(name, 0)} episodes, has {planned_now.get(name, 0)}"
        for name in sorted(planned_then.keys() | planned_now.keys())
        if planned_then.get(name, 0) != planned_now.get(name, 0)
    ]
    if not differences and seen.get("num_episodes") != wanted["num_episodes"]:
        differences.append(f"it has {seen.get('num_episodes')} episodes, this one {wanted['num_episodes']}")
    return "; ".join(differences) or "the same settings now plan other episodes"
