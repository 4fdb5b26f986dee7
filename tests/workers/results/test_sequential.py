"""Facts about stopping early."""

import math

import pytest

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.results.sequential import StopConfig, decide, in_test_order

HALF = StopConfig(0.3, 0.6)
PLAN = [EpisodeSpec("seen", "reach", "default", seed, "reach") for seed in range(40)]


def rows_of(order, outcomes):
    marks = {"w": {"success": True, "failure": ""}, "l": {"success": False, "failure": "task"}}
    marks["x"] = {"success": False, "failure": "crash"}
    return {spec.episode_id: marks[mark] for spec, mark in zip(order, outcomes, strict=False)}


def test_wins_in_a_row_decide_as_soon_as_the_ratio_reaches_one_over_alpha():
    order = in_test_order(PLAN)
    decision = decide(order, rows_of(order, "w" * 40), HALF)
    assert (decision.verdict, decision.episodes) == ("high", math.ceil(math.log(20) / math.log(2)))
    assert str(decision) == "high after 5 episodes"


def test_losses_in_a_row_decide_for_low():
    order = in_test_order(PLAN)
    decision = decide(order, rows_of(order, "l" * 40), HALF)
    assert (decision.verdict, decision.episodes) == ("low", math.ceil(math.log(20) / math.log(0.7 / 0.4)))


def test_infrastructure_failures_do_not_count_but_belong_to_the_prefix():
    order = in_test_order(PLAN)
    decision = decide(order, rows_of(order, "wxwwxww"), HALF)
    assert (decision.verdict, decision.episodes, len(decision.ids)) == ("high", 5, 7)


def test_what_finished_behind_a_gap_waits_for_the_gap():
    order = in_test_order(PLAN)
    rows = rows_of(order, "w" * 40)
    del rows[order[2].episode_id]
    assert (decide(order, rows, HALF).verdict, decide(order, rows, HALF).episodes) == ("open", 2)


def test_the_order_is_the_same_whatever_the_plans_order_was():
    assert in_test_order(PLAN) == in_test_order(PLAN[::-1])
    assert in_test_order(PLAN) != PLAN


def test_a_short_plan_leaves_the_question_open():
    order = in_test_order(PLAN)
    assert decide(order, rows_of(order, "wl" * 20), StopConfig(0.45, 0.55)).verdict == "open"


def chance_of_verdicts(rate: float, config: StopConfig, most: int) -> tuple[float, float]:
    """Work out exactly how often a policy of that rate is called high and low within `most` episodes."""
    gain, loss = math.log(config.high / config.low), math.log((1 - config.high) / (1 - config.low))
    high = low = 0.0
    still = {0: 1.0}  # wins so far -> probability
    for played in range(1, most + 1):
        after: dict[int, float] = {}
        for wins, chance in still.items():
            for won, weight in ((wins + 1, rate), (wins, 1 - rate)):
                after[won] = after.get(won, 0.0) + chance * weight
        still = {}
        for wins, chance in after.items():
            ratio = wins * gain + (played - wins) * loss
            if ratio >= -math.log(config.alpha):
                high += chance
            elif ratio <= math.log(config.beta):
                low += chance
            else:
                still[wins] = chance
    return high, low


@pytest.mark.parametrize("config", [HALF, StopConfig(0.5, 0.7, 0.1, 0.02), StopConfig(0.05, 0.2)])
def test_the_errors_are_within_what_was_asked_for(config: StopConfig):
    wrongly_high, _ = chance_of_verdicts(config.low, config, 1000)
    _, wrongly_low = chance_of_verdicts(config.high, config, 1000)
    assert config.alpha / 3 < wrongly_high <= config.alpha
    assert config.beta / 3 < wrongly_low <= config.beta


def test_rates_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match=r"stop\.low is 0\.7 and stop\.high 0\.5"):
        StopConfig(0.7, 0.5)
