"""Facts about the intervals, checked against values worked out by hand."""

import math

import pytest

from st4vla.workers.results.intervals import Pair, disturbance, wilson


def test_wilson_of_77_in_100_is_68_to_84_percent():
    rate = wilson(77, 100)
    assert rate.value == 0.77
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.6785, 0.8416)


def test_wilson_never_leaves_zero_to_one():
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert round(wilson(0, 10).high, 4) == 0.2775


def test_wilson_of_nothing_is_a_dash():
    assert str(wilson(0, 0)) == "-"
    assert math.isnan(wilson(0, 0).value)


def test_wilson_refuses_more_successes_than_episodes():
    with pytest.raises(ValueError, match="11 of 10"):
        wilson(11, 10)


def test_recovery_counts_only_pairs_whose_twin_succeeded():
    pairs = [Pair(True, True, 6), Pair(True, True, 10), Pair(True, False, None), Pair(False, True, 2)]
    outcome = disturbance(pairs)
    assert (outcome.recovery.successes, outcome.recovery.total) == (2, 3)
    assert outcome.drop == 0.0
    assert outcome.median_recovery_steps == 6.0


def test_drop_interval_is_agresti_min():
    pairs = [Pair(True, False, None)] * 3 + [Pair(True, True, 4)] * 7
    outcome = disturbance(pairs)
    assert outcome.drop == pytest.approx(0.3)
    assert (round(outcome.drop_low, 4), round(outcome.drop_high, 4)) == (-0.0444, 0.5444)


def test_no_pairs_give_no_drop():
    outcome = disturbance([])
    assert math.isnan(outcome.drop)
    assert outcome.median_recovery_steps is None
