"""The sequence of samples depends on the seed alone, not on workers, resumes or what is made ahead."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from st4vla.platform.data.mixture import Loader, LoaderConfig, Mixture
from st4vla.platform.data.prefetch import Prefetch
from st4vla.platform.errors import ConfigError, DataError


class Numbers:
    """A source whose sample is (its name, the item, a draw); items in `broken` cannot be read."""

    def __init__(self, name: str, size: int, broken: frozenset[int] = frozenset()) -> None:
        self.name, self.size, self.broken = name, size, broken

    def __len__(self) -> int:
        return self.size

    def load(self, item: int, rng: np.random.Generator) -> tuple[str, int, int]:
        if item in self.broken:
            raise DataError(f"item {item} is broken")
        return self.name, item, int(rng.integers(1000))


def mixture(seed: int = 0) -> Mixture:
    return Mixture([Numbers("a", 30), Numbers("b", 50)], [3, 1], seed)


def take(loader: Loader, batches: int) -> list[Any]:
    iterator = iter(loader)
    taken = list(itertools.islice(iterator, batches))
    iterator.close()  # type: ignore[attr-defined]
    return taken


def test_a_draw_is_the_same_on_every_machine() -> None:
    draws = [mixture(seed=7).draw(0, index) for index in range(4)]
    assert [(draw.source, draw.item) for draw in draws] == [(0, 18), (0, 13), (0, 1), (0, 20)]
    assert draws == [mixture(seed=7).draw(0, index) for index in range(4)]
    assert mixture(seed=8).draw(0, 0) != mixture(seed=7).draw(0, 0) != mixture(seed=7).draw(1, 0)


def test_sources_are_drawn_by_weight_and_items_evenly() -> None:
    draws = [mixture().at(position) for position in range(8000)]
    assert sum(draw.source == 0 for draw in draws) / 8000 == pytest.approx(0.75, abs=0.02)
    of_b = Counter(draw.item for draw in draws if draw.source == 1)
    assert len(of_b) == 50 and max(of_b.values()) < 80


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_the_positions_without_overlap(world: int) -> None:
    loaders = [Loader(mixture(), LoaderConfig(batch_size=8 // world), rank, world) for rank in range(world)]
    shares = [loader.positions(16) for loader in loaders]
    assert sorted(position for share in shares for position in share) == list(range(16, 24))
    assert all(len(share) == 8 // world for share in shares)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batches_are_the_same_on_1_2_and_4_workers(world: int) -> None:
    config = LoaderConfig(batch_size=8 // world)
    parts = [take(Loader(mixture(), config, rank, world), 3) for rank in range(world)]
    together = [sorted(sample for part in parts for sample in part[step]) for step in range(3)]
    whole = [sorted(batch) for batch in take(Loader(mixture(), LoaderConfig(batch_size=8)), 3)]
    assert together == whole


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_resume_goes_on_where_the_last_batch_ended_on_any_number_of_workers(world: int) -> None:
    unbroken = take(Loader(mixture(), LoaderConfig(batch_size=8)), 5)
    first = Loader(mixture(), LoaderConfig(batch_size=4, prefetch=3), 0, 2)
    take(first, 2)
    assert first.state_dict()["next_position"] == 16
    rest = []
    for rank in range(world):
        loader = Loader(mixture(), LoaderConfig(batch_size=8 // world), rank, world)
        loader.load_state_dict(first.state_dict())
        rest += [sample for batch in take(loader, 3) for sample in batch]
    assert sorted(rest) == sorted(sample for batch in unbroken[2:] for sample in batch)


def test_a_cursor_of_another_mixture_is_refused() -> None:
    loader = Loader(mixture(seed=1), LoaderConfig())
    with pytest.raises(DataError, match="cursor has seed 0 and this mixture 1"):
        loader.load_state_dict(Loader(mixture(seed=0), LoaderConfig()).state_dict())


def test_an_unreadable_sample_is_counted_and_drawn_anew() -> None:
    broken = Mixture([Numbers("a", 100, frozenset({3}))])
    loader = Loader(broken, LoaderConfig(batch_size=50, max_unreadable_share=0.5))
    batches = take(loader, 10)
    assert all(len(batch) == 50 and 3 not in [item for _, item, _ in batch] for batch in batches)
    assert loader.unreadable["a"] >= 1


def test_too_many_unreadable_samples_stop_the_run_with_their_share() -> None:
    broken = Mixture([Numbers("a", 100, frozenset(range(30)))])
    with pytest.raises(DataError, match=r"samples could not be read, more than the share of 0.1"):
        take(Loader(broken, LoaderConfig(batch_size=50, max_unreadable_share=0.1)), 100)


def test_samples_that_cannot_be_read_in_a_row_stop_the_run_with_the_last_ones_reason() -> None:
    broken = Mixture([Numbers("a", 3, frozenset(range(3)))])
    with pytest.raises(
        DataError, match=r"10 samples in a row could not be read; .*\['a'\]\. The last one: item \d is b"
    ):
        take(Loader(broken, LoaderConfig(batch_size=1)), 1)


def test_a_source_without_samples_and_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="sources b hold no sample"):
        Mixture([Numbers("a", 1), Numbers("b", 0)])
    with pytest.raises(ConfigError, match=r"weights is \[1\] for 2 sources"):
        Mixture([Numbers("a", 1), Numbers("b", 1)], [1])


def test_prefetch_hands_on_items_in_order_and_then_the_error() -> None:
    def items():
        yield from range(3)
        raise DataError("no more")

    seen = []
    with pytest.raises(DataError, match="no more"):
        for item in Prefetch(items(), depth=2):
            seen.append(item)
    assert seen == [0, 1, 2]
