"""What may be asked of the original's environments, and what is refused by name."""

import os
from pathlib import Path

import pytest

from st4vla.envs.simpler.assets import AssetTree, find_tree
from st4vla.envs.simpler.cases import Case, case_from_meta, resolve
from st4vla.envs.simpler.options import CONTROL_MODES
from st4vla.platform.errors import EnvError

NOWHERE = AssetTree(Path("nowhere"))  # opening a drawer needs no model database
DRAWER, CAN = "OpenTopDrawerCustomInScene-v0", "GraspSingleOpenedCokeCanInScene-v0"
needs_assets = pytest.mark.skipif(not os.environ.get("ST4VLA_ASSETS"), reason="SimplerEnv's files: set ST4VLA_ASSETS")


def test_only_the_official_controllers_are_taken():
    official = resolve(Case(DRAWER, {"control_mode": CONTROL_MODES["google_robot"]}), NOWHERE)
    assert official.build == resolve(Case(DRAWER, {"control_mode": None}), NOWHERE).build
    for mode in (CONTROL_MODES["widowx"], "arm_pd_ee_delta_pose_gripper_pd_joint_pos"):
        with pytest.raises(EnvError, match=f"control_mode is '{mode}'; of google_robot_static only arm_pd_ee_delta"):
            resolve(Case(DRAWER, {"control_mode": mode}), NOWHERE)


@needs_assets
def test_each_robot_has_controllers_of_its_own():
    carrot = "PutCarrotOnPlateInScene-v0"
    resolve(Case(carrot, {"control_mode": CONTROL_MODES["widowx"]}), find_tree())
    with pytest.raises(EnvError, match="of widowx only arm_pd_ee_target_delta_pose_align2"):
        resolve(Case(carrot, {"control_mode": CONTROL_MODES["google_robot"]}), find_tree())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(DRAWER, obj={"init_yaw": 1.0}), "has no object option 'init_yaw'; expected some of cabinet_init_qpos"),
        (Case(DRAWER, options={"model_id": "apple"}), "has no reset option 'model_id'; it has none"),
        (Case(DRAWER, robot={"init_yaw": 1.0}), "has no robot option 'init_yaw'; expected some of init_height"),
        (Case(CAN, obj={"episode_id": 3}), "has no object option 'episode_id'; expected some of .*orientation"),
        (Case(CAN, options={"model": "apple"}), "has no reset option 'model'; expected some of .*model_id"),
        (Case("GraspSingleAppleInScene-v0", obj={"orientation": "upright"}), "no object option 'orientation'"),
        (Case("MoveNearGoogleInScene-v0", obj={"init_xys": []}), "has no object option 'init_xys'"),
        (Case("PutCarrotOnPlateInScene-v0", options={"model_ids": []}), "has no reset option 'model_ids'"),
    ],
)
def test_an_option_that_is_not_known_is_refused_by_name(case: Case, message: str):
    with pytest.raises(EnvError, match=message):
        resolve(case, NOWHERE)


def test_what_asks_for_nothing_and_what_the_official_scripts_give_is_taken():
    meta = {"env_id": DRAWER, "reset_options": {"obj_init_options": {"init_xy": [0.0, 0.0]}, "reconfigure": True}}
    plain = resolve(Case(DRAWER, seed=0), NOWHERE)
    assert resolve(case_from_meta(meta), NOWHERE) == plain
    assert resolve(Case(DRAWER, obj={"sparkle": None}, seed=0), NOWHERE) == plain


@needs_assets
def test_an_unknown_option_of_a_distractor_is_refused():
    given = {"distractor_obj_init_options": {"apple": {"init_z": 1.0}}}
    with pytest.raises(EnvError, match="A distractor has no option 'init_z'"):
        resolve(Case("GraspSingleOpenedCokeCanDistractorInScene-v0", options=given), find_tree())
