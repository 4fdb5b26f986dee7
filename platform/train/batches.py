"""Make each step's batches ahead of the step, in one order that any run and any number of workers shares."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from st4vla.platform.data.mixture import Loader, LoaderConfig, Mixture, Source
from st4vla.platform.data.prefetch import Prefetch
from st4vla.platform.train.config import BatchConfig

Encode = Callable[[Sequence[Any]], Mapping[str, Any]]
Cursor = dict[str, dict[str, int]]


class Named:
    """A source whose samples come with the name of their dataset."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self.label = label_of(source.name)

    def __len__(self) -> int:
        return len(self.source)

    def load(self, item: int, rng: np.random.Generator) -> tuple[str, Any]:
        return self.label, self.source.load(item, rng)


def label_of(name: str) -> str:
    """Give a source's dataset as the log names it: without the kind of sample, which follows the last slash.

    MLflow takes only some letters.
    """
    return re.sub(r"[^\w. -]", "_", name.rpartition("/")[0] or name)


def named(mixture: Mixture) -> Mixture:
    """Give the same sequence of draws, each sample with the name of its dataset."""
    twin = copy.copy(mixture)
    twin.sources = tuple(Named(source) for source in mixture.sources)
    return twin


class StepBatches:
    """Read, encode and queue micro-batches of all sources on one thread.

    Every kind of batch has one endless sequence of samples, which the workers share out, so the next position of each
    is all that a checkpoint needs, whatever the number of workers that goes on from it. Where it mixes several
    datasets, "dataset" in a batch names that of each row.
    """

    def __init__(
        self,
        mixtures: Mapping[str, Mixture],
        encoders: Mapping[str, Encode],
        config: BatchConfig,
        rank: int = 0,
        num_workers: int = 1,
        cursor: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Start reading at `cursor`.

        Args:
            mixtures: by source, "robot" or "grounding".
            encoders: by source, samples -> batch of CPU tensors.
        """
        config.check_divides(num_workers)
        sizes = {"robot": config.robot, "grounding": config.grounding}
        self._loaders: dict[str, Loader] = {}
        for name, mixture in mixtures.items():
            share = sizes[name] // (num_workers * config.accumulation)
            settings = LoaderConfig(share, prefetch=0, max_unreadable_share=config.max_unreadable_share)
            loader = Loader(named(mixture), settings, rank, num_workers)
            loader.load_state_dict((cursor or {}).get(name) or loader.state_dict())
            self._loaders[name] = loader
        self._encoders = encoders
        self._cursor = self._cursor_of_loaders()
        self._ahead = Prefetch(self._make(), config.prefetch)
        self._batches = iter(self._ahead)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """Give {source: batch} of the next micro-batch; raise here what went wrong while it was made."""
        self._cursor, made = next(self._batches)
        return made

    def cursor(self) -> Cursor:
        """Give where every source stands, counting only batches that were taken."""
        return self._cursor

    @property
    def unreadable(self) -> Counter[str]:
        """How many samples of each dataset this worker could not read since it began."""
        counts: Counter[str] = Counter()
        for loader in self._loaders.values():
            for name, count in list(loader.unreadable.items()):
                counts[label_of(name)] += count
        return counts

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._ahead.close()

    def _cursor_of_loaders(self) -> Cursor:
        return {name: loader.state_dict() for name, loader in self._loaders.items()}

    def _make(self) -> Iterator[tuple[Cursor, dict[str, Any]]]:
        samples = {name: iter(loader) for name, loader in self._loaders.items()}
        while True:
            made = {name: self._encode(name, next(read)) for name, read in samples.items()}
            yield self._cursor_of_loaders(), made

    def _encode(self, name: str, read: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
        labels, samples = zip(*read, strict=True)
        batch = self._encoders[name](samples)
        several = len(self._loaders[name].mixture.sources) > 1
        return {**batch, "dataset": labels} if several else batch
