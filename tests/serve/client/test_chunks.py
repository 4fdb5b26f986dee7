"""The queue of actions and the estimate of the delay, with the bugs that others met in the field."""

import numpy as np
import pytest

from st4vla.serve.client.chunks import ChunkQueue, DelayEstimate, look_at


def rows(first: int, count: int = 8) -> np.ndarray:
    return np.arange(first, first + count, dtype=float)[:, None]


def test_the_first_chunk_from_a_standstill_skips_no_action_however_late_it_comes():
    chunks = ChunkQueue()
    assert chunks.replace(rows(0), executed_when_seen=0) == 0
    assert chunks.pop() == 0


def test_a_chunk_that_comes_while_the_old_one_is_executed_begins_at_the_present():
    chunks = ChunkQueue()
    chunks.replace(rows(0), 0)
    for _ in range(4):
        chunks.pop()
    seen = chunks.executed
    assert chunks.remaining()[:, 0].tolist() == [4, 5, 6, 7]
    chunks.pop()
    chunks.pop()
    assert chunks.replace(rows(100), seen) == 2
    assert chunks.pop() == 102


def test_no_more_rows_are_dropped_than_actions_were_executed_however_long_the_answer_took():
    chunks = ChunkQueue()
    chunks.replace(rows(0, 3), 0)
    chunks.pop()
    seen = chunks.executed
    chunks.pop()
    chunks.pop()
    assert len(chunks) == 0
    assert chunks.replace(rows(100), seen) == 2


def test_a_chunk_shorter_than_the_delay_leaves_nothing():
    chunks = ChunkQueue()
    chunks.replace(rows(0), 0)
    for _ in range(5):
        chunks.pop()
    assert chunks.replace(rows(100, 3), 0) == 3 and len(chunks) == 0


def test_what_was_executed_of_a_chunk_that_is_dropped_still_counts():
    chunks = ChunkQueue()
    chunks.replace(rows(0), 0)
    for _ in range(5):
        chunks.pop()
    chunks.clear(unused=1)
    assert (len(chunks), chunks.cursor, chunks.executed) == (0, 4, 4) and not len(chunks.remaining())


def test_the_estimate_is_the_longest_of_the_last_few():
    delay = DelayEstimate(window=3, warmup=0)
    for steps in (5, 2, 3, 1):
        delay.add(steps)
    assert delay.steps == 3


def test_the_warm_up_is_left_out_of_the_estimate_after_every_connection():
    delay = DelayEstimate(window=8, warmup=1, first=2)
    delay.add(40)
    assert delay.steps == 2
    delay.add(3)
    delay.reconnected()
    delay.add(50)
    assert delay.steps == 3


@pytest.mark.parametrize(
    ("execute", "delay", "row"), [(4, 0, 4), (4, 2, 4), (1, 3, 3), (8, 2, 6), (8, 0, 8), (4, 4, 4), (2, 7, 4)]
)
def test_the_next_chunk_is_asked_for_between_the_delay_and_the_horizon_less_the_delay(execute, delay, row):
    assert look_at(8, execute, delay) == row
