"""Pack web pictures with questions for training: one Ray Data task a shard, and only the shards that are missing.

Ray Data spreads the shards over the cluster, starts a task again when its process dies, and hands on what became of
each shard as it is done; the driver holds a row a shard. Each task reads its shard as a stream
(`platform/data/shards.py`) and writes its part (`platform/data/packed.py`), so no picture passes through the object
store. Training then reads any row at once, in the order that (seed, epoch, index) gives on any number of workers, which
a stream of shards could not promise.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st4vla.platform.data.address import absolute
from st4vla.platform.data.mixture import JUDGED_FROM
from st4vla.platform.data.packed import PackedPart, pack_shard
from st4vla.platform.data.picture_formats import COORDINATES
from st4vla.platform.data.remote import files_under
from st4vla.platform.data.shards import SUFFIXES
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackConfig:
    """What to pack.

    Attributes:
        shards: files, folders or addresses; of folders and addresses all .parquet and .tar below.
        out: folder of the parts; on a cluster it lies on storage that all nodes share.
        coordinates: of points, boxes and answers: "pixels", "thousandths" or "unit".
        max_unreadable_share: packing stops when more than this share of the rows cannot be read.
        downloads: folder that shards of a hub are fetched to.
    """

    shards: tuple[str, ...]
    out: str
    coordinates: str = "pixels"
    max_unreadable_share: float = 0.01
    downloads: str = "runs/downloads"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(absolute(path) for path in self.shards))
        for name in ("out", "downloads"):
            object.__setattr__(self, name, str(Path(getattr(self, name)).absolute()))
        if not self.shards:
            raise ConfigError("no shards are named; write: st4vla pack FOLDER --out runs/packed")
        if self.coordinates not in COORDINATES:
            raise ConfigError(f"coordinates is {self.coordinates!r}; choose one of {', '.join(COORDINATES)}.")
        if not 0 <= self.max_unreadable_share < 1:
            raise ConfigError(f"max_unreadable_share is {self.max_unreadable_share}; expected 0 <= share < 1.")

    def listed(self) -> list[str]:
        """List every shard once, in order.

        Raises:
            DataError: a place cannot be read, or holds no shard.
        """
        found: list[str] = []
        for place in self.shards:
            files = files_under(place, SUFFIXES, self.downloads)
            if not files:
                raise DataError(f"{place} holds no shard; expected files that end in {' or '.join(SUFFIXES)}.")
            found += files
        return list(dict.fromkeys(found))


@dataclass
class Tally:
    """What was packed so far; `broken` are shards that could not be read at all or to their end."""

    config: PackConfig
    rows: int = 0
    bad: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, part: PackedPart | str) -> None:
        """Count one shard; report what could not be read.

        Raises:
            DataError: too large a share of the rows could not be read.
        """
        if isinstance(part, str):
            self.broken.append(part)
            log.warning("a shard is left out: %s", part)
            return
        self.rows, self.bad = self.rows + part.rows, self.bad + part.bad
        for reason in part.reasons:
            log.warning("a row is left out: %s", reason)
        total = self.rows + self.bad
        if total >= JUDGED_FROM and self.bad > self.config.max_unreadable_share * total:
            raise DataError(
                f"{self.bad} of {total} rows could not be read, more than the share of "
                f"{self.config.max_unreadable_share} allowed; the last of {part.shard}: {part.reasons[-1:]}. "
                "Mend them, or raise max_unreadable_share; parts that are written stay."
            )


class PackShard:
    """The work of one Ray Data task; what is wrong with a shard is handed to the driver, who judges."""

    def __init__(self, config: PackConfig) -> None:
        self.config = config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Pack one shard; give its counts, or in `broken` why it cannot be read."""
        config = self.config
        try:
            part = pack_shard(row["item"], Path(config.out), config.coordinates, config.downloads)
        except DataError as error:
            return {"shard": row["item"], "rows": 0, "bad": 0, "reasons": [], "broken": str(error)}
        return {**vars(part), "reasons": list(part.reasons), "broken": ""}


def pack(config: PackConfig, shards: Sequence[str]) -> Iterator[PackedPart | str]:
    """Pack the shards through Ray Data and give what became of each as it is done; a Ray must be up."""
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    # Each shard is a block of its own, so that it is a task of its own and a retry costs one shard.
    listed = data.from_items(list(shards), override_num_blocks=len(shards))
    for row in listed.map(PackShard(config).__call__, num_cpus=1).iter_rows():
        if row["broken"]:
            yield row["broken"]
        else:
            yield PackedPart(row["shard"], row["rows"], row["bad"], tuple(row["reasons"]))


def main(cfg: Any) -> int:
    """Run `st4vla pack`."""
    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.progress import track

    from st4vla.workers.cluster import EngineConfig, connect

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    names = ("shards", "out", "coordinates", "max_unreadable_share", "downloads")
    config = PackConfig(**{name: settings[name] for name in names})
    shards, tally = config.listed(), Tally(config)
    with connect(EngineConfig(**settings["engine"])):
        for part in track(pack(config, shards), "packing", len(shards)):
            tally.add(part)
    print_tally(tally, len(shards), Console())
    if tally.broken:
        raise DataError(
            f"{len(tally.broken)} of {len(shards)} shards could not be read; all others are packed. "
            f"The first: {tally.broken[0]} Mend them and run the same command again."
        )
    return 0


def print_tally(tally: Tally, shards: int, console: Any) -> None:
    """Print what was packed."""
    console.print(f"{shards - len(tally.broken)} of {shards} shards, {tally.rows} pictures; {tally.bad} rows left out")
    console.print(f"train on it: grounding_data=[{{path: {tally.config.out}, kind: packed}}]", soft_wrap=True)
