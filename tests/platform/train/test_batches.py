"""The order of samples is one for all workers, and a cursor finds its place in it."""

import pytest

from st4vla.platform.data.mixture import Mixture
from st4vla.platform.errors import DataError
from st4vla.platform.train.batches import StepBatches
from st4vla.platform.train.config import BatchConfig


class Numbers:
    """Sample i is the number i."""

    name = "numbers"

    def __len__(self) -> int:
        return 1000

    def load(self, item, rng):
        return item


class Broken(Numbers):
    def load(self, item, rng):
        raise DataError(f"row {item} is torn")


def read(steps: int, rank: int = 0, workers: int = 1, cursor=None, source=Numbers) -> tuple[list[dict], dict]:
    mixtures = {"robot": Mixture([source()], seed=3), "grounding": Mixture([source()], seed=4)}
    encoders = {name: lambda samples: {"items": list(samples)} for name in mixtures}
    with StepBatches(mixtures, encoders, BatchConfig(robot=8, grounding=4), rank, workers, cursor) as batches:
        return [next(batches) for _ in range(steps)], batches.cursor()


def items(batches: list[dict], source: str) -> list[list[int]]:
    return [batch[source]["items"] for batch in batches]


def test_two_workers_share_out_the_samples_of_one():
    alone, _ = read(3)
    first, second = read(3, 0, 2)[0], read(3, 1, 2)[0]
    for source in ("robot", "grounding"):
        for whole, one, other in zip(*(items(part, source) for part in (alone, first, second)), strict=True):
            assert sorted(whole) == sorted(one + other)


def test_a_resumed_run_reads_what_an_unbroken_one_would():
    unbroken, _ = read(5)
    before, cursor = read(2)
    after, _ = read(3, cursor=cursor)
    assert before + after == unbroken


def test_a_cursor_of_two_workers_serves_one():
    unbroken, _ = read(4)
    _, cursor = read(2, 1, 2)
    after, _ = read(2, cursor=cursor)
    assert items(after, "robot") == items(unbroken, "robot")[2:]


def test_the_cursor_counts_batches_taken_not_batches_made():
    _, cursor = read(2)
    assert {name: place["next_position"] for name, place in cursor.items()} == {"robot": 16, "grounding": 8}


def test_what_breaks_on_the_thread_is_raised_where_the_batch_is_taken():
    with pytest.raises(DataError, match="could not be read"):
        read(1, source=Broken)


class Torn(Numbers):
    name = "torn set!/robot"

    def load(self, item, rng):
        if item % 10 == 3:
            raise DataError(f"row {item} is torn")
        return item


def test_samples_that_cannot_be_read_are_counted_by_dataset():
    mixtures = {"robot": Mixture([Torn()], seed=3)}
    encoders = {"robot": lambda samples: {"items": list(samples)}}
    with StepBatches(mixtures, encoders, BatchConfig(8, 0, max_unreadable_share=0.3)) as batches:
        seen = [item for _ in range(20) for item in next(batches)["robot"]["items"]]
        assert batches.unreadable["torn set_"] >= 8 and not any(item % 10 == 3 for item in seen)
    with (
        pytest.raises(DataError, match="more than the share of 0.01"),
        StepBatches(mixtures, encoders, BatchConfig(8, 0)) as batches,
    ):
        for _ in range(40):
            next(batches)


class Others(Numbers):
    name = "other set!/robot"

    def load(self, item, rng):
        return -item


def test_rows_of_several_datasets_say_which_they_are_of():
    mixtures = {"robot": Mixture([Numbers(), Others()], seed=3), "grounding": Mixture([Numbers()], seed=4)}
    encoders = {name: lambda samples: {"items": list(samples)} for name in mixtures}
    with StepBatches(mixtures, encoders, BatchConfig(robot=8, grounding=4)) as batches:
        batch = next(batches)
    assert batch["robot"]["dataset"] == tuple(
        "other set_" if item < 0 else "numbers" for item in batch["robot"]["items"]
    )
    assert set(batch["robot"]["dataset"]) == {"numbers", "other set_"} and "dataset" not in batch["grounding"]
