"""The WidowX tasks have the original's 24 starts each, in its order, and its verdicts."""

import math

import numpy as np
import pytest

from st4vla.envs.simpler.put_on import TASKS, PutOn, Situation, turned, verdict

CARROT = TASKS["PutCarrotOnPlateInScene-v0"]
SPOON = TASKS["PutSpoonOnTableClothInScene-v0"]
EGGPLANT = TASKS["PutEggplantInBasketScene-v0"]
STACK = TASKS["StackGreenCubeOnYellowCubeBakedTexInScene-v0"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_has_24_different_starts(task: PutOn) -> None:
    starts = {task.start(episode) for episode in range(24)}
    assert task.num_episodes == len(starts) == 24
    assert task.start(24) == task.start(0)


def test_the_carrot_starts_at_a_corner_and_is_turned_first() -> None:
    places, turn = CARROT.start(0)
    assert places == (pytest.approx((-0.235, -0.075)), pytest.approx((-0.235, 0.075)))
    assert turn == pytest.approx((0, 0, 0, 1))
    places, turn = CARROT.start(5)
    assert places == (pytest.approx((-0.235, -0.075)), pytest.approx((-0.085, 0.075)))
    assert turn == pytest.approx((math.sqrt(0.5), 0, 0, -math.sqrt(0.5)))


def test_the_cubes_start_on_a_small_square_and_then_on_a_large_one() -> None:
    assert STACK.start(0)[0] == (pytest.approx((-0.21, -0.05)), pytest.approx((-0.21, 0.05)))
    assert STACK.start(23)[0] == (pytest.approx((-0.06, 0.1)), pytest.approx((-0.06, -0.1)))


def test_the_eggplant_has_three_turns_at_eight_places() -> None:
    assert EGGPLANT.start(0)[0] == (pytest.approx((-0.115, 0.191)), (-0.125, 0.025))
    assert EGGPLANT.start(23)[0][0] == pytest.approx((-0.095, 0.221))
    assert EGGPLANT.start(2)[1] == pytest.approx((math.cos(math.pi / 8), 0, 0, -math.sin(math.pi / 8)))


def test_a_turned_box_keeps_its_signs() -> None:
    quarter = np.array([math.sqrt(0.5), 0, 0, math.sqrt(0.5)])
    assert turned((0.14, 0.04, 0.02), quarter) == pytest.approx([-0.04, 0.14, 0.02])
    assert turned((0.14, 0.04, 0.02), np.array([1.0, 0, 0, 0])) == pytest.approx([0.14, 0.04, 0.02])


def situation(task: PutOn, offset: tuple[float, float, float], **other: object) -> Situation:
    """Source and target as they settled 0.15 m apart, and the source now at an offset from the target."""
    target, start = np.array([0.0, 0.0, 0.87]), np.array([0.15, 0.0, 0.88])
    now = target + offset
    box = np.array([0.1, 0.04, 0.03])
    settled = {task.source: start, task.target: target}
    flags = {"grasped": False, "held_steps": 0, "touches_other": False, **other}
    return Situation(task.source, settled, {task.source: now, task.target: target}, now, target, box, box, **flags)  # pyright: ignore[reportArgumentType]


def test_resting_on_the_target_is_success() -> None:
    found = verdict(CARROT, situation(CARROT, (0.0, 0.0, 0.03)))
    assert found["success"] and found["src_on_target"] and found["moved_correct_obj"] and not found["moved_wrong_obj"]


def test_the_source_may_be_off_by_half_the_target_s_diagonal_and_three_millimetres() -> None:
    reach = math.hypot(0.05, 0.02) + 0.003
    assert verdict(CARROT, situation(CARROT, (reach - 1e-6, 0, 0.03)))["success"]
    assert not verdict(CARROT, situation(CARROT, (reach + 1e-6, 0, 0.03)))["success"]


def test_the_source_may_hover_two_centimetres_and_the_eggplant_six() -> None:
    assert verdict(CARROT, situation(CARROT, (0, 0, 0.0499)))["success"]
    assert not verdict(CARROT, situation(CARROT, (0, 0, 0.0501)))["success"]
    assert verdict(EGGPLANT, situation(EGGPLANT, (0, 0, 0.0899)))["success"]
    assert not verdict(EGGPLANT, situation(EGGPLANT, (0, 0, -0.001)))["success"]


def test_the_carrot_may_touch_nothing_else_and_the_spoon_may() -> None:
    assert not verdict(CARROT, situation(CARROT, (0, 0, 0.03), touches_other=True))["success"]
    assert verdict(SPOON, situation(SPOON, (0, 0, 0.03), touches_other=True))["success"]


def test_a_grasp_counts_as_held_after_five_steps() -> None:
    assert not verdict(CARROT, situation(CARROT, (0, 0, 0.2), grasped=True, held_steps=4))["consecutive_grasp"]
    found = verdict(CARROT, situation(CARROT, (0, 0, 0.2), grasped=True, held_steps=5))
    assert found["consecutive_grasp"] and found["is_src_obj_grasped"] and not found["success"]


def test_moving_the_target_is_moving_the_wrong_object() -> None:
    base = situation(CARROT, (0.15, 0.0, 0.01))
    now = {**base.now, CARROT.target: base.now[CARROT.target] + [0.0, 0.04, 0.0]}
    moved = Situation(**{**vars(base), "now": now})
    assert verdict(CARROT, moved)["moved_wrong_obj"] and not verdict(CARROT, moved)["moved_correct_obj"]
