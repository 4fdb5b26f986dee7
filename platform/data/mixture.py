"""Draw training samples from several sources: the same sequence on any number of workers, before and after a resume.

Samples are numbered by position, 0, 1, 2, ... over the whole run. What lies at a position follows from (seed, epoch,
index) alone: a hash chooses the source by weight, then an item of it evenly, with replacement. Position p belongs to
worker p % world, and a global batch is `world * batch_size` consecutive positions, so the one number that a checkpoint
must keep is the next position.
"""

import hashlib
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from st4vla.platform.data.prefetch import Prefetch
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)
# A sample that cannot be read is drawn anew, this often at most, before the run stops.
MAX_REDRAWS = 10
# The share of unreadable samples is judged from this many on: one bad sample in the first ten is no verdict.
JUDGED_FROM = 200


class Source(Protocol):
    """Something samples are read from. `load` raises DataError for one that cannot be read."""

    name: str

    def __len__(self) -> int: ...

    def load(self, item: int, rng: np.random.Generator) -> Any: ...


@dataclass(frozen=True)
class Draw:
    """What lies at one position: item `item` of source number `source`, and the seed of the sample's own draws."""

    source: int
    item: int
    seed: int


class Mixture:
    """The sequence of draws from `sources` in proportion to `weights` (None: to their sizes).

    Raises:
        ConfigError: a source is empty, or the weights do not fit the sources.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        empty = [source.name for source in sources if not len(source)]
        if empty or not sources:
            raise ConfigError(f"the sources {', '.join(empty) or '(none given)'} hold no sample; leave them out.")
        shares = np.array(weights if weights is not None else [len(source) for source in sources], np.float64)
        if len(shares) != len(sources) or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError(
                f"weights is {list(weights or [])} for {len(sources)} sources; give each one of 0 or more."
            )
        self.sources, self.seed = tuple(sources), seed
        self._edges = np.cumsum(shares / shares.sum())

    @property
    def epoch_length(self) -> int:
        """Give the samples of one epoch: as many as the sources hold."""
        return sum(len(source) for source in self.sources)

    def at(self, position: int, redraw: int = 0) -> Draw:
        """Give what lies at `position`; `redraw` > 0 gives its stand-ins, should it be unreadable."""
        return self.draw(*divmod(position, self.epoch_length), redraw)

    def draw(self, epoch: int, index: int, redraw: int = 0) -> Draw:
        """Give sample `index` of `epoch`, a function of these and the seed alone."""
        packed = struct.pack("<qqqq", self.seed, epoch, index, redraw)
        choice, item, seed = struct.unpack("<QQQ", hashlib.blake2b(packed, digest_size=24).digest())
        source = int(np.searchsorted(self._edges, choice / 2**64, side="right"))
        source = min(source, len(self.sources) - 1)
        return Draw(source, item * len(self.sources[source]) >> 64, seed)


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        batch_size: samples of one worker's batch.
        prefetch: batches made ahead by a background thread; 0 makes them when they are asked for.
        max_unreadable_share: the run stops when more than this share of the samples could not be read.
    """

    batch_size: int = 32
    prefetch: int = 2
    max_unreadable_share: float = 0.01

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.batch_size < 1:
            raise ConfigError(f"loader.batch_size is {self.batch_size}; expected 1 or more.")
        if self.prefetch < 0:
            raise ConfigError(f"loader.prefetch is {self.prefetch}; expected 0 or more batches.")
        if not 0 <= self.max_unreadable_share < 1:
            raise ConfigError(f"loader.max_unreadable_share is {self.max_unreadable_share}; expected 0 <= share < 1.")


class Loader:
    """One worker's endless batches of a mixture, made ahead in the background.

    `state_dict` is the cursor behind the last batch that was handed out, whatever has been made ahead; it is the same
    on every worker and may be loaded on another number of workers, as long as the global batch divides evenly.
    A sample that cannot be read is logged, counted in `unreadable` and drawn anew by the next hash of its position.
    """

    def __init__(self, mixture: Mixture, config: LoaderConfig, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank is {rank} of {world} workers; expected 0 <= rank < world.")
        self.mixture, self.config, self.rank, self.world = mixture, config, rank, world
        self.position = 0
        self.unreadable: dict[str, int] = {}
        self._read = 0

    def __iter__(self) -> Iterator[list[Any]]:
        """Give batches from the cursor on, without end; closing the iterator stops the background thread."""
        made: Any = self._batches(self.position)
        ahead = Prefetch(made, self.config.prefetch) if self.config.prefetch else None
        try:
            for position, batch in ahead or made:
                self.position = position
                yield batch
        finally:
            if ahead is not None:
                ahead.close()

    def state_dict(self) -> dict[str, int]:
        """Give the cursor."""
        return {"next_position": self.position, "seed": self.mixture.seed, "epoch_length": self.mixture.epoch_length}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a saved cursor; call it before iterating.

        Raises:
            DataError: the cursor belongs to a mixture of another seed or size, so other samples would follow.
        """
        for name, own in (("seed", self.mixture.seed), ("epoch_length", self.mixture.epoch_length)):
            if state.get(name, own) != own:
                raise DataError(
                    f"the saved data cursor has {name} {state[name]} and this mixture {own}; "
                    "resume with the data and the seed the run was started with."
                )
        self.position = state["next_position"]

    def positions(self, start: int) -> list[int]:
        """Give this worker's positions of the global batch that begins at `start`."""
        batch = range(start, start + self.world * self.config.batch_size)
        return [position for position in batch if position % self.world == self.rank]

    def _batches(self, start: int) -> Iterator[tuple[int, list[Any]]]:
        while True:
            batch = [self._load(position) for position in self.positions(start)]
            start += self.world * self.config.batch_size
            yield start, batch

    def _load(self, position: int) -> Any:
        last: DataError | None = None
        for redraw in range(MAX_REDRAWS):
            draw = self.mixture.at(position, redraw)
            source = self.mixture.sources[draw.source]
            self._read += 1
            try:
                return source.load(draw.item, np.random.default_rng(draw.seed))
            except DataError as error:
                self._count(source.name, draw.item, error)
                last = error
        raise DataError(
            f"{MAX_REDRAWS} samples in a row could not be read; mend or leave out {list(self.unreadable)}. "
            f"The last one: {last}"
        ) from last

    def _count(self, name: str, item: int, error: DataError) -> None:
        self.unreadable[name] = self.unreadable.get(name, 0) + 1
        log.warning("sample %d of %s cannot be read and another is drawn: %s", item, name, error)
        total = sum(self.unreadable.values())
        if self._read >= JUDGED_FROM and total > self.config.max_unreadable_share * self._read:
            raise DataError(
                f"{total} of {self._read} samples could not be read, more than the share of "
                f"{self.config.max_unreadable_share} allowed: {self.unreadable}. The last one: {error}"
            ) from error
