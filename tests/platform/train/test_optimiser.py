"""Every parameter gets its rate, every step its share of it."""

import math

import pytest
import torch

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.config import OptimiserConfig
from st4vla.platform.train.optimiser import build_optimiser, learning_rate, match_rate, set_learning_rates


def model() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"planner": torch.nn.Linear(2, 2), "expert": torch.nn.Linear(2, 1)})


def rate(step: int) -> float:
    return learning_rate(step, peak=1.0, floor=0.1, warmup=4, total=104)


def test_warm_up_rises_in_equal_parts_and_never_starts_at_zero():
    assert [rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_is_half_way_between_peak_and_floor_in_the_middle():
    assert rate(4) == 1.0
    assert rate(54) == pytest.approx(0.55)
    assert rate(29) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_rate_stays_at_the_floor_after_the_last_step():
    assert rate(104) == pytest.approx(0.1)
    assert rate(1000) == pytest.approx(0.1)


def test_a_peak_below_the_floor_is_kept():
    assert learning_rate(50, peak=0.05, floor=0.1, warmup=0, total=100) == 0.05


def test_the_longest_pattern_wins_and_others_takes_the_rest():
    rates = {"planner": 1.0, "planner.vlm": 2.0, "others": 3.0}
    assert match_rate("planner.head.weight", rates) == "planner"
    assert match_rate("planner.vlm.layer.weight", rates) == "planner.vlm"
    assert match_rate("planners.weight", rates) == "others"


def test_a_parameter_without_a_rate_is_named():
    with pytest.raises(ConfigError, match=r"expert\.weight.*others"):
        match_rate("expert.weight", {"planner": 1.0})


def test_a_rate_of_zero_freezes_and_biases_are_not_decayed():
    net = model()
    optimiser = build_optimiser(
        net.named_parameters(), OptimiserConfig({"planner": 1e-3, "others": 0.0}, weight_decay=0.1)
    )
    assert [(group["name"], group["weight_decay"]) for group in optimiser.param_groups] == [
        ("planner", 0.1),
        ("planner", 0.0),
    ]
    assert not net["expert"].weight.requires_grad and net["planner"].weight.requires_grad


def test_groups_take_their_own_share_of_the_schedule():
    config = OptimiserConfig({"planner": 1.0, "others": 2.0}, min_learning_rate=0.0, warmup_steps=2)
    optimiser = build_optimiser(model().named_parameters(), config)
    assert set_learning_rates(optimiser, config, step=0, total=10) == {"planner": 0.5, "others": 1.0}


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="no parameter is trained"):
        build_optimiser(model().named_parameters(), OptimiserConfig({"others": 0.0}))
