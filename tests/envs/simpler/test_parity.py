"""Deviations between two recordings are the arithmetic one would do by hand."""

import numpy as np
import pytest

from st4vla.envs.simpler.parity import FIGURES, deviations, foreground
from st4vla.envs.simpler.recording import Recording
from st4vla.platform.errors import DataError

HALF = np.sqrt(0.5)


def recording(**arrays: np.ndarray) -> Recording:
    pose = np.tile([0.0, 0, 0, 1, 0, 0, 0], (5, 1))
    segments = np.zeros((4, 4), np.int16)
    segments[:2] = 3
    meta = {"case": {"env_id": "x"}, "seg_id_to_name": {"3": "carrot", "0": "arena", "5": "sink"}}
    full = {
        "actions": np.zeros((4, 7)),
        "success": np.array([False, False, True, True]),
        "tcp_pose": pose,
        "obj_pose": pose[:, None],
        "robot_base_pose": pose[0],
        "cabinet_qpos": np.zeros((5, 0)),
        "cam_cam2world_gl": np.eye(4),
        "cam_intrinsic_cv": np.eye(3),
        "seg_first": segments,
        "rgb_first": np.full((4, 4, 3), 100, np.uint8),
        **arrays,
    }
    return Recording("a", meta, full)


def test_a_recording_does_not_deviate_from_itself() -> None:
    found = deviations(recording(), recording())
    assert {
        value for key, value in found.items() if key not in ("foreground_iou", "cabinet_mm", "cabinet_path_mm")
    } == {0.0}
    assert found["foreground_iou"] == 1.0
    assert found["cabinet_mm"] is None
    assert [figure.holds(found[figure.key]) for figure in FIGURES if figure.limit is not None].count(False) == 0


def test_the_tool_s_path_is_measured_after_the_start_and_in_mm() -> None:
    path = recording().arrays["tcp_pose"].copy()
    path[:, 0] += [0.5, 0.001, 0.002, 0.003, 0.006]
    found = deviations(recording(), recording(tcp_pose=path))
    assert found["tcp_mean_mm"] == pytest.approx(3.0)
    assert found["tcp_max_mm"] == pytest.approx(6.0)
    assert found["robot_mm"] == pytest.approx(500.0)


def test_only_the_first_forty_actions_count_for_the_tool() -> None:
    still = {"actions": np.zeros((50, 7)), "success": np.zeros(50, bool)}
    pose = np.tile([0.0, 0, 0, 1, 0, 0, 0], (51, 1))
    gone = pose.copy()
    gone[41:, 1] = 1.0
    shared = {**still, "obj_pose": pose[:, None]}
    assert deviations(recording(**shared, tcp_pose=pose), recording(**shared, tcp_pose=gone))["tcp_max_mm"] == 0.0


def test_a_turn_is_measured_in_degrees_and_a_quaternion_s_sign_does_not_matter() -> None:
    turned = recording().arrays["obj_pose"].copy()
    turned[:, 0, 3:] = [-HALF, 0, 0, -HALF]
    found = deviations(recording(), recording(obj_pose=turned))
    assert found["objects_deg"] == pytest.approx(90.0)
    turned[:, 0, 3:] = [-1, 0, 0, 0]
    assert deviations(recording(), recording(obj_pose=turned))["objects_deg"] == pytest.approx(0.0)


def test_verdicts_are_counted_and_the_last_one_apart() -> None:
    found = deviations(recording(), recording(success=np.array([True, False, True, False])))
    assert found["success_differs"] == 2.0 and found["last_success_differs"] == 1.0


def test_the_foreground_is_robot_objects_and_cabinet_and_never_what_a_photograph_covers() -> None:
    meta = {"seg_id_to_name": {"1": "robot/arm", "2": "cabinet/top", "3": "carrot", "4": "arena", "5": "sink"}}
    assert foreground(np.array([[0, 1, 2, 3, 4, 5]]), meta).tolist() == [[False, True, True, True, False, False]]


def test_overlap_and_error_are_those_of_the_foreground() -> None:
    segments, picture = recording().arrays["seg_first"].copy(), recording().arrays["rgb_first"].copy()
    segments[2] = 3
    picture[0] += 8
    picture[3] += 50
    found = deviations(recording(), recording(seg_first=segments, rgb_first=picture))
    assert found["foreground_iou"] == pytest.approx(2 / 3)
    assert found["foreground_error"] == pytest.approx(4.0)


def test_recordings_of_different_actions_or_shapes_are_not_compared() -> None:
    with pytest.raises(DataError, match="told different actions"):
        deviations(recording(), recording(actions=np.ones((4, 7))))
    with pytest.raises(DataError, match=r"obj_pose is \[5, 1, 7\] in one and \[5, 2, 7\] in the other"):
        deviations(recording(), recording(obj_pose=np.zeros((5, 2, 7))))
