"""Recordings are replayed, states judged and two recordings compared by command.

Needs the scenes of ST4VLA_ASSETS; the original's own recordings are those of ST4VLA_DATA.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from st4vla.envs.simpler import command
from st4vla.envs.simpler.google_suites import AT_NEAR
from st4vla.envs.simpler.parity import FIGURES, deviations
from st4vla.envs.simpler.recording import Recording, read_recording, write_recording
from st4vla.envs.simpler.states import case_of_name
from st4vla.platform.cli import main
from st4vla.platform.errors import ConfigError, DataError

ASSETS = Path(os.environ.get("ST4VLA_ASSETS", ""), "data", "robots", "widowx")
ORIGINALS = Path(os.environ.get("ST4VLA_DATA", ""), "simplerenv_parity")
CARROT = ORIGINALS / "widowx_carrot_on_plate__ep00__smooth.npz"
needs_assets = pytest.mark.skipif(not ASSETS.is_dir(), reason="ST4VLA_ASSETS names no tree with the WidowX")
needs_originals = pytest.mark.skipif(not CARROT.is_file(), reason="ST4VLA_DATA has no recordings of the original")


def told(env_id: str = "PutCarrotOnPlateInScene-v0", **meta: object) -> Recording:
    """What somebody else's recording holds at the least: a case, and three actions."""
    case = {"env_id": env_id, "make": {"prepackaged_config": True}, "obj": {"episode_id": 1}}
    actions = np.tile([0.01, 0.0, -0.01, 0.0, 0.0, 0.05, 1.0], (3, 1))
    return Recording("told", {"case": case, **meta}, {"actions": actions})


@needs_assets
@pytest.mark.sim
def test_a_bare_recording_is_filled_in_and_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    write_recording(tmp_path / "a_broken.npz", told("MakeCoffeeInScene-v0"))
    write_recording(tmp_path / "b_strange.npz", told(obj_names=["teapot"]))
    write_recording(tmp_path / "c_good.npz", told(seg_id_to_name={"7": "robot/gripper_link", "9": "arena"}))
    assert main(["simplerenv", "replay", str(tmp_path), "--out", str(tmp_path / "ours")]) == 1
    assert [file.name for file in (tmp_path / "ours").iterdir()] == ["c_good.npz"]
    ours = read_recording(tmp_path / "ours" / "c_good.npz")
    shapes = {key: value.shape for key, value in ours.arrays.items()}
    assert shapes["qpos"] == (4, 8) and shapes["obj_pose"] == (4, 2, 7) and shapes["cabinet_qpos"] == (4, 0)
    assert shapes["rgb_first"] == (480, 640, 3) and shapes["seg_first"] == (480, 640)
    assert ours.meta["seg_id_to_name"]["7"] == "robot/gripper_link"
    assert set(np.unique(ours.arrays["seg_first"])) <= {int(number) for number in ours.meta["seg_id_to_name"]}
    assert ours.meta["instruction"] == "put carrot on plate" and len(ours.meta["step_info"]) == 3
    again = tmp_path / "again"
    assert main(["simplerenv", "replay", str(tmp_path / "ours"), "--out", str(again)]) == 0
    found = deviations(ours, read_recording(again / "c_good.npz"))
    assert found["tcp_max_mm"] == 0.0 and found["objects_mm"] == 0.0 and found["foreground_iou"] == 1.0


@needs_assets
@needs_originals
@pytest.mark.sim
def test_the_carrot_of_the_original_is_repeated_within_every_limit(tmp_path: Path) -> None:
    assert main(["simplerenv", "replay", str(CARROT), "--out", str(tmp_path)]) == 0
    out = tmp_path / "parity.json"
    assert main(["simplerenv", "parity", str(CARROT), str(tmp_path / CARROT.name), "--out", str(out)]) == 0
    (found,) = json.loads(out.read_text()).values()
    assert [figure.key for figure in FIGURES if figure.holds(found[figure.key]) is False] == []
    assert found["tcp_max_mm"] < 0.2 and found["objects_mm"] < 0.1 and found["foreground_iou"] > 0.999


@needs_assets
@needs_originals
@pytest.mark.sim
@pytest.mark.slow
def test_recorded_states_are_judged_as_the_original_judged_them(tmp_path: Path) -> None:
    states = json.loads((ORIGINALS / "states_sample.json").read_text())
    out = tmp_path / "verdicts.json"
    assert main(["simplerenv", "judge", str(ORIGINALS / "states_sample.json"), "--out", str(out)]) == 0
    verdicts = json.loads(out.read_text())
    for state, verdict in zip(states, verdicts, strict=True):
        flags = {name: flag for name, flag in state.items() if isinstance(flag, bool)}
        assert {name: verdict[name] for name in flags} == flags, state["case"]


@needs_assets
@pytest.mark.sim
def test_a_state_that_cannot_be_judged_keeps_its_place_in_the_list(tmp_path: Path) -> None:
    good = {"case": "widowx_carrot_on_plate__ep02__smooth", "poses": {}}
    states = [{"case": "kitchen__ep00"}, {**good, "poses": {"teapot": [0] * 7}}, good, {**good, "cabinet_qpos": [0.1]}]
    (tmp_path / "states.json").write_text(json.dumps(states))
    out = tmp_path / "out.json"
    assert main(["simplerenv", "judge", str(tmp_path / "states.json"), "--out", str(out)]) == 1
    verdicts = json.loads(out.read_text())
    assert ["error" in verdict for verdict in verdicts] == [True, True, False, True]
    assert verdicts[2]["success"] is False and "teapot" in verdicts[1]["error"]


@pytest.mark.parametrize(
    ("name", "env_id", "obj"),
    [
        ("widowx_spoon_on_towel__ep05__smooth", "PutSpoonOnTableClothInScene-v0", {"episode_id": 5}),
        ("widowx_put_eggplant_in_basket__ep23", "PutEggplantInBasketScene-v0", {"episode_id": 23}),
        ("google_robot_move_near_v1__ep17__smooth", "MoveNearGoogleBakedTexInScene-v1", {"episode_id": 17}),
        ("google_robot_move_near_v0__ep59", "MoveNearGoogleBakedTexInScene-v0", {"episode_id": 59}),
        ("google_robot_close_middle_drawer__b1__smooth", "CloseMiddleDrawerCustomInScene-v0", {}),
    ],
)
def test_a_case_is_read_from_its_name(name: str, env_id: str, obj: dict[str, int]) -> None:
    case = case_of_name(name)
    assert case.env_id == env_id and case.obj == obj


def test_the_can_s_grid_runs_along_x_first() -> None:
    case = case_of_name("google_robot_pick_vertical_coke_can__grid07__smooth")
    assert case.build["laid_vertically"] is True
    assert case.obj["init_xy"] == pytest.approx((-0.2925, 0.2))


def test_the_robot_near_the_table_stands_as_in_the_official_evaluation() -> None:
    robot = case_of_name("google_robot_move_near_v0__ep59").robot
    assert robot["init_rot_quat"] == pytest.approx((0.0449848, 0.0, 0.0, 0.9989877))  # yaw -0.09, on top of half a turn
    assert robot == AT_NEAR


def test_a_name_that_stands_for_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="lay its recording beside the states"):
        case_of_name("kitchen__ep00")


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CASE.npz ... --out DIR"):
        command.replay_files([], tmp_path, None)
    with pytest.raises(ConfigError, match="STATES.json --out FILE"):
        command.judge_file([tmp_path / "a", tmp_path / "b"], tmp_path / "out", None)
    with pytest.raises(ConfigError, match="two recordings, or two folders"):
        command.compare([tmp_path], None)
    with pytest.raises(ConfigError, match="are a folder and a file"):
        command.compare([tmp_path, tmp_path / "a.npz"], None)


def test_a_replay_never_overwrites_the_recording(tmp_path: Path) -> None:
    write_recording(tmp_path / "told.npz", told())
    with pytest.raises(ConfigError, match="choose another folder"):
        command.replay_files([tmp_path / "told.npz"], tmp_path, None)


def test_comparing_folders_says_which_recording_is_missing_and_compares_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, names in (("a", ("one", "two")), ("b", ("one",))):
        for name in names:
            write_recording(tmp_path / folder / f"{name}.npz", told())
    assert main(["simplerenv", "parity", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "one" in capsys.readouterr().out
