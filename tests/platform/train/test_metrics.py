"""Scores of answers and actions, in numbers that can be checked by hand."""

import numpy as np
import pytest
import torch

from st4vla.platform.contracts import GroundingSample, Spatial
from st4vla.platform.train.metrics import (
    action_errors,
    action_scores,
    box_iou,
    grounding_scores,
    point_in_box,
    resample_trace,
    rotation_angle,
    trace_error,
)
from st4vla.platform.train.validation import Tally

IMAGE = np.zeros((8, 8, 3), np.uint8)


def asked(kind, answer: Spatial, region=None) -> GroundingSample:
    return GroundingSample(IMAGE, kind, "red cube", answer, region)


def test_boxes_that_share_a_third_have_iou_one_third():
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_boxes_that_touch_or_lie_apart_have_iou_zero():
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0
    assert box_iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0.0


def test_a_box_is_found_at_half_overlap():
    truth = asked("box", Spatial(box=(0, 0, 4, 4)))
    assert grounding_scores(truth, Spatial(box=(0, 0, 4, 2)))["box_iou50"] == 1.0
    assert grounding_scores(truth, Spatial(box=(0, 0, 4, 1)))["box_iou50"] == 0.0


def test_a_point_on_the_edge_of_the_box_hits():
    assert point_in_box((4.0, 2.0), (0, 0, 4, 4))
    assert not point_in_box((4.1, 2.0), (0, 0, 4, 4))


def test_unreadable_text_misses_box_and_point_and_is_counted():
    assert grounding_scores(asked("box", Spatial(box=(0, 0, 1, 1))), None) == {
        "answer_rate": 0.0,
        "box_iou": 0.0,
        "box_iou50": 0.0,
    }
    assert grounding_scores(asked("point", Spatial(points=((1, 1),)), (0, 0, 2, 2)), None)["point_hit_rate"] == 0.0


def test_an_unreadable_trace_has_no_error_to_count():
    truth = asked("trace", Spatial(trajectory=((0, 0), (1, 0))))
    assert grounding_scores(truth, Spatial()) == {"answer_rate": 0.0}


def test_a_trace_shifted_by_three_and_four_pixels_is_five_off():
    line, shifted = ((0, 0), (10, 0)), ((3, 4), (13, 4))
    assert trace_error(line, shifted) == pytest.approx(5.0)


def test_way_points_on_the_same_line_do_not_matter():
    assert trace_error(((0, 0), (10, 0)), ((0, 0), (1, 0), (9, 0), (10, 0))) == pytest.approx(0.0)


def test_a_trace_of_one_point_stays_there():
    assert resample_trace([(2, 3)], 3).tolist() == [[2, 3], [2, 3], [2, 3]]


def test_a_subgoal_is_compared_word_by_word():
    truth = asked("subgoal", Spatial(label="grasp the red cube"))
    assert grounding_scores(truth, Spatial(label="grasp the red cube"))["subgoal_match"] == 1.0
    assert grounding_scores(truth, Spatial(label="grasp the blue cube"))["subgoal_match"] == 0.0


def test_quarter_turns_about_different_axes_are_two_thirds_of_a_half_turn_apart():
    quarter = np.pi / 2
    assert rotation_angle(np.array([quarter, 0, 0]), np.array([0, quarter, 0])) == pytest.approx(2 * np.pi / 3)
    assert rotation_angle(np.zeros(3), np.array([0, 0, 0.25])) == pytest.approx(0.25)


def test_action_errors_are_millimetres_radians_and_a_share_without_the_padding():
    truth = np.zeros((3, 7), np.float32)
    guess = truth.copy()
    guess[0, :3] = [0.003, 0.004, 0.0]
    guess[1, 5], guess[1, 6] = 0.2, 1.0
    guess[2] = 99.0
    assert action_errors(guess, truth, np.array([False, False, True])) == {
        "action_translation_mm": pytest.approx(2.5),
        "action_rotation_rad": pytest.approx(0.1, abs=1e-6),
        "gripper_accuracy": 0.5,
    }


def test_a_chunk_of_padding_alone_is_not_scored():
    assert action_errors(np.zeros((1, 7)), np.zeros((1, 7)), np.array([True])) == {}


def test_actions_that_move_no_tool_have_one_error_over_the_spread_of_their_columns():
    truth, is_pad, spread = np.zeros((2, 6)), np.array([False, True]), np.array([0.5, 1, 1, 1, 1, 0.0])
    guess = np.array([[1.0, 0, 0, 0, 0, 1.0], [99.0] * 6])
    assert action_scores(guess, truth, is_pad, "delta_end_effector", spread) == {"action_error": pytest.approx(0.5)}
    joints = np.zeros((2, 7)), np.ones((2, 7)), is_pad
    assert action_scores(*joints, "delta_joints", np.full(7, 2.0)) == {"action_error": pytest.approx(0.5)}
    assert "action_translation_mm" in action_scores(*joints, "delta_end_effector", np.full(7, 2.0))
    assert action_scores(guess, truth, np.array([True, True]), "absolute_joints", spread) == {}


def test_a_tally_gives_means_and_leaves_out_what_nobody_counted():
    tally = Tally(["box_iou", "trace_error_px"])
    tally.add({"box_iou": 1.0})
    tally.add({"box_iou": 0.0})
    assert tally.means(1, torch.device("cpu")) == {"box_iou": 0.5}
