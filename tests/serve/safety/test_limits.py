"""Limits of motion: what comes out of random wishes never breaks one, across the seams of chunks as within them."""

import numpy as np
import pytest

from st4vla.serve.safety.course import at
from st4vla.serve.safety.embodiment import Part
from st4vla.serve.safety.limits import bend, brake, lengths, stop_path, stops

HAND = Part("hand", 0, 3, "m", "delta", 0, (-0.1,) * 3, (0.1,) * 3, (0.25,), (1.5,), (15,))
JOINTS = Part("joints", 0, 2, "rad", "absolute", 0, (-1, -2), (1, 2), (1, 0.5), (4, 2), (60, 30))
GRIPPER = Part("gripper", 0, 1, "1", "absolute", None, (0,), (1,))


def measure(part, dt, start, actions):
    """Give positions, velocities, accelerations and jerks of actions from a standstill, by definition alone."""
    positions = start + np.cumsum(actions, 0) if part.form == "delta" else np.asarray(actions)
    moved = np.concatenate([[start] * 3, positions])
    rates = [np.diff(moved, n, axis=0)[-len(actions) :] / dt**n for n in (1, 2, 3)]
    return positions, *rates


def assert_kept(part, dt, start, actions, tolerance=2e-4):
    positions, *rates = measure(part, dt, start, actions)
    if part.low:
        slack = tolerance * (np.array(part.high) - part.low)
        assert (positions >= part.low - slack).all() and (positions <= part.high + slack).all()
    for values, limit in zip(rates, (part.velocity, part.acceleration, part.jerk), strict=True):
        if len(limit) == 1:
            assert np.linalg.norm(values, axis=1).max() <= limit[0] * (1 + tolerance)
        elif limit:
            assert (np.abs(values).max(0) <= np.array(limit) * (1 + tolerance)).all()


@pytest.mark.parametrize("hz", [5, 20, 50])
@pytest.mark.parametrize("part", [HAND, JOINTS], ids=["delta", "absolute"])
@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_come_out_within_every_limit_across_their_seams(part, hz, seed):
    rng, dt = np.random.default_rng(seed), 1 / hz
    motion, start, given = at(np.zeros(part.width)), np.zeros(part.width), []
    for _ in range(12):
        wild = rng.choice([0.5, 1, 3]) * (0.25 / hz if part.form == "delta" else 2.0)
        smooth = np.cumsum(rng.normal(0, 0.4, (8, part.width)), 0) if rng.random() < 0.5 else rng.normal(0, 1, (8, 1))
        bent = bend(part, dt, motion, wild * (smooth + rng.normal(0, 0.3, (8, part.width))))
        used = int(rng.integers(1, 9))
        given += list(bent.actions[:used])
        motion = bent.motions[used - 1]
    assert_kept(part, dt, start, np.array(given))


@pytest.mark.parametrize("hz", [5, 50])
def test_a_robot_told_to_run_into_a_wall_stops_at_it_within_its_limits(hz):
    rows = np.tile([0.2 / hz, 0, 0], (2 * hz, 1))
    bent = bend(HAND, 1 / hz, at(np.zeros(3)), rows)
    assert_kept(HAND, 1 / hz, np.zeros(3), bent.actions)
    assert 0.085 < bent.motions[-1].position[0] <= 0.1 + 1e-4
    assert {"stopping", "range"} & set(bent.broken[-1])


def test_braking_at_any_moment_of_a_bent_motion_keeps_every_limit_and_ends_at_rest():
    rng = np.random.default_rng(0)
    bent = bend(HAND, 0.02, at(np.zeros(3)), rng.normal(0, 0.01, (60, 3)))
    for moment in range(0, 60, 7):
        motion, given = bent.motions[moment], list(bent.actions[: moment + 1])
        for _ in range(200):
            if motion.is_at_rest:
                break
            motion, action = brake(HAND, 0.02, motion)
            given.append(action)
        assert motion.is_at_rest
        assert_kept(HAND, 0.02, np.zeros(3), np.array(given))


def test_rows_that_keep_every_limit_come_back_bit_for_bit():
    rows = np.linspace(0, 0.01, 8)[:, None] * [1, -1, 0.5]
    bent = bend(HAND, 0.2, at(np.zeros(3)), rows)
    assert bent.actions.tolist() == rows.tolist() and not any(bent.broken)


def test_an_arms_fastest_step_from_rest_is_its_velocity_limit():
    bent = bend(HAND, 0.2, at(np.zeros(3)), np.array([[0.08, 0, 0]]))
    assert bent.actions[0] == pytest.approx([0.05, 0, 0], abs=1e-9)
    assert bent.broken[0] == ("velocity", "acceleration")


def test_a_turn_about_is_spread_over_the_acceleration_limit():
    first = bend(HAND, 0.2, at(np.zeros(3)), np.array([[0.04, 0, 0], [-0.04, 0, 0]]))
    assert first.actions[1] == pytest.approx([-0.02, 0, 0], abs=1e-6)
    assert first.broken[1] == ("acceleration",)


def test_a_gripper_without_rate_limits_is_only_kept_in_its_range():
    bent = bend(GRIPPER, 0.2, at(np.array([np.nan])), np.array([[1.4], [0.0], [-0.2], [0.6]]))
    assert bent.actions[:, 0] == pytest.approx([1, 0, 0, 0.6])
    assert bent.broken == (("range",), (), ("range",), ())


def test_a_robot_found_outside_its_workspace_may_go_in_but_never_further_out():
    outside = at(np.array([0.15, 0, 0]))
    away = bend(HAND, 0.2, outside, np.array([[0.02, 0, 0]])).actions[0, 0]
    home = bend(HAND, 0.2, outside, np.array([[-0.02, 0, 0]])).actions[0, 0]
    assert away <= 1e-9 and home == -0.02


def test_a_robot_held_at_the_wall_does_not_creep_through_it():
    bent = bend(HAND, 0.2, at(np.array([0.1, 0, 0])), np.tile([0.02, 0, 0], (200, 1)))
    assert bent.motions[-1].position[0] <= 0.1 + 2.1e-5


def test_the_stop_of_one_step_cancels_the_velocity():
    assert stops(1, 0.2, np.array([[0.2]]), np.array([[0.7]]))[0, 0, 0] == pytest.approx(-1.0)


@pytest.mark.parametrize("length", [2, 5, 20])
def test_every_stop_ends_with_neither_velocity_nor_acceleration(length):
    path = stop_path(length, 0.05, np.zeros((1, 1)), np.array([[0.3]]), np.array([[1.0]]))
    assert path.velocity[0, -1, 0] == pytest.approx(0, abs=1e-12) and path.acceleration[0, -1, 0] == 0


def test_no_other_stop_of_as_many_steps_has_less_squared_jerk():
    rng = np.random.default_rng(0)
    best = stops(6, 0.1, np.array([[0.3]]), np.array([[-0.4]]))[0, :, 0]

    def cost(accelerations):
        return np.square(np.diff(np.concatenate([[-0.4], accelerations, [0]]))).sum()

    for _ in range(20):
        other = rng.normal(0, 0.1, 6)
        assert cost(best + other - other.mean()) > cost(best)


def test_the_numbers_of_steps_that_are_tried_reach_the_longest():
    assert lengths(4) == (1, 2, 3, 4) and lengths(80)[-1] >= 80 and len(lengths(200)) < 30
