"""Success and partial credit, on plain numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from st4vla.envs import tasks

NOWHERE = np.zeros((1, 3))
START = np.array([[0.10, 0.00, 0.02]])
STILL = tasks.Situation(
    tcp=np.array([-0.10, 0.0, 0.20]),
    opening=np.float64(1.0),
    targets=START,
    half_heights=np.array([0.02]),
    starts=START,
    start_tcp=np.array([-0.10, 0.0, 0.20]),
    destinations=NOWHERE,
    direction=np.array([0.0, 1.0, 0.0]),
)


def test_reach_point_lies_six_centimetres_above_the_top():
    np.testing.assert_allclose(tasks.reach_point(START[0], np.float64(0.02)), [0.10, 0.00, 0.10])


@pytest.mark.parametrize(("height", "success"), [(0.129, True), (0.131, False), (0.071, True), (0.069, False)])
def test_reach_succeeds_within_three_centimetres_of_the_point(height: float, success: bool):
    outcome = tasks.judge_reach(replace(STILL, tcp=np.array([0.10, 0.0, height])))
    assert bool(outcome.success) is success


def test_reach_gives_no_credit_before_the_first_step_and_half_on_half_the_way():
    start = np.array([-0.10, 0.0, 0.10])
    at_start = tasks.judge_reach(replace(STILL, tcp=start, start_tcp=start))
    half_way = tasks.judge_reach(replace(STILL, tcp=np.array([-0.03, 0.0, 0.10]), start_tcp=start))
    assert at_start.credit == pytest.approx(0.15)
    assert half_way.credit == pytest.approx(0.5)


@pytest.mark.parametrize(("moved", "success", "credit"), [(0.081, True, 1.0), (0.04, False, 0.5), (-0.09, False, 0.0)])
def test_push_counts_centimetres_along_the_named_side(moved: float, success: bool, credit: float):
    outcome = tasks.judge_push(replace(STILL, targets=START + np.array([0.0, moved, 0.0])))
    assert bool(outcome.success) is success
    assert outcome.credit == pytest.approx(credit)


def test_push_off_the_table_is_no_success():
    assert not tasks.judge_push(replace(STILL, targets=START + np.array([0.0, 0.5, -0.6]))).success


def test_pick_up_wants_the_object_held_and_eight_centimetres_up():
    up = START + np.array([0.0, 0.0, 0.081])
    held = replace(STILL, targets=up, tcp=up[0], opening=np.float64(0.4))
    assert tasks.judge_pick_up(held).success
    assert not tasks.judge_pick_up(replace(held, tcp=up[0] + 0.05)).success
    low = replace(held, targets=START, tcp=START[0])
    assert not tasks.judge_pick_up(low).success
    assert tasks.judge_pick_up(low).credit == pytest.approx(0.5)


def test_put_on_wants_the_object_in_the_container_and_let_go():
    place = np.array([[-0.05, 0.10, 0.015]])
    inside = place + np.array([0.03, 0.0, 0.01])
    let_go = replace(STILL, targets=inside, destinations=place, tcp=inside[0], opening=np.float64(0.9))
    assert tasks.judge_put_on(let_go).success
    assert not tasks.judge_put_on(replace(let_go, opening=np.float64(0.4))).success
    assert tasks.judge_put_on(replace(let_go, opening=np.float64(0.4), tcp=inside[0] + 0.1)).success
    assert not tasks.judge_put_on(replace(let_go, targets=place + np.array([0.05, 0.0, 0.01]))).success


def test_sorting_two_of_three_gives_two_thirds():
    places = np.array([[0.1, -0.15, 0.015], [0.1, 0.0, 0.015], [0.1, 0.15, 0.015]])
    targets = places + np.array([[0.0, 0.0, 0.01], [0.01, 0.0, 0.01], [-0.2, 0.0, 0.0]])
    outcome = tasks.judge_sort_three(
        replace(STILL, targets=targets, destinations=places, half_heights=np.full(3, 0.02), starts=targets)
    )
    assert outcome.credit == pytest.approx(2 / 3)
    assert [bool(stage) for stage in outcome.stages] == [True, True, False]
    assert not outcome.success


@pytest.mark.parametrize("task", list(tasks.JUDGES))
def test_torch_batches_are_judged_like_single_arrays(task: tasks.TaskName):
    rng = np.random.default_rng(0)
    count = 3 if task == "sort_three" else 1
    batch = tasks.Situation(
        *(rng.normal(0, 0.05, shape) for shape in ((8, 3), (8,), (8, count, 3), (8, count), (8, count, 3), (8, 3))),
        *(rng.normal(0, 0.05, shape) for shape in ((8, count, 3), (8, 3))),
    )
    as_torch = tasks.Situation(**{name: torch.tensor(value) for name, value in vars(batch).items()})
    whole = tasks.JUDGES[task](as_torch)
    for row in range(8):
        alone = tasks.JUDGES[task](tasks.Situation(**{name: value[row] for name, value in vars(batch).items()}))
        assert bool(whole.success[row]) == bool(alone.success)
        assert float(whole.credit[row]) == pytest.approx(float(alone.credit))
