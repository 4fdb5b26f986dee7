"""The potentials and rewards of the tasks, in literal numbers."""

import numpy as np
import pytest

from st4vla.envs import reward
from st4vla.envs.tasks import Situation


def situation(tcp, target, *, opening=1.0, start=None, place=(0.0, 0.0, 0.0), direction=(0.0, 0.0, 0.0)) -> Situation:
    """One world of one target with a half height of 2 cm."""
    start = target if start is None else start
    return Situation(
        tcp=np.array([tcp], dtype=float),
        opening=np.array([opening]),
        targets=np.array([[target]], dtype=float),
        half_heights=np.array([[0.02]]),
        starts=np.array([[start]], dtype=float),
        start_tcp=np.array([[0.0, 0.0, 0.2]]),
        destinations=np.array([[place]], dtype=float),
        direction=np.array([direction], dtype=float),
    )


def test_the_reach_potential_is_the_distance_to_the_point_six_centimetres_over_the_object_in_quarter_metres():
    above = situation(tcp=(0.0, 0.0, 0.20), target=(0.0, 0.0, 0.02))
    assert reward.reach_potential(above) == pytest.approx([-0.10 / 0.25])


def test_the_funnel_asks_to_come_from_above():
    place = np.array([[0.0, 0.0, 0.02]])
    assert reward.funnel_distance(np.array([[0.10, 0.0, 0.11]]), place) == pytest.approx([0.10])
    assert reward.funnel_distance(np.array([[0.10, 0.0, 0.02]]), place) == pytest.approx([0.10 + 0.09])
    assert reward.funnel_distance(np.array([[0.0, 0.0, 0.05]]), place) == pytest.approx([0.03])


def test_the_push_potential_pays_three_for_eight_centimetres_along_the_side():
    behind, right = (0.0, -0.045 + 0.08, 0.022), (0.0, 1.0, 0.0)
    pushed = situation(behind, (0.0, 0.08, 0.02), start=(0.0, 0.0, 0.02), direction=right)
    assert reward.push_potential(pushed) == pytest.approx([3.0 - 0.02 / 0.25])


def test_pushing_the_wrong_way_costs_at_most_one_and_a_half():
    right = (0.0, 1.0, 0.0)
    astray = situation((0.0, -0.245, 0.022), (0.0, -0.2, 0.02), start=(0.0, 0.0, 0.02), direction=right)
    assert reward.push_potential(astray) == pytest.approx([-1.5 - 0.02 / 0.25])


def test_lifting_a_held_object_by_half_the_height_pays_half_of_two():
    lifted = situation((0.0, 0.0, 0.06), (0.0, 0.0, 0.06), opening=0.3, start=(0.0, 0.0, 0.02))
    assert reward.pick_up_potential(lifted) == pytest.approx([0.5 + 1.0])


def test_an_object_in_its_container_is_worth_four_and_a_half():
    placed = situation((0.0, 0.0, 0.2), (0.1, 0.1, 0.02), place=(0.1, 0.1, 0.01))
    assert reward.place_potential(placed) == pytest.approx([4.5])


def test_a_step_pays_three_times_the_gain_plus_three_for_success_minus_a_twentieth():
    gained = reward.reward(np.array([-1.0, -0.5]), np.array([-0.5, -0.5]), np.array([False, True]))
    assert gained == pytest.approx([1.45, 2.95])


def test_every_task_has_a_potential():
    assert set(reward.POTENTIALS) == {"reach", "push", "pick_up", "put_on", "sort_three"}
