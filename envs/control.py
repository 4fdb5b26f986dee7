"""Move the Panda by the platform's 7-D action, as a ManiSkill agent.

Action: [dx, dy, dz] m and a rotation vector in rad, both in the robot base frame, added to the pose the arm was last
told to reach (not to where it is: a lagging arm then still arrives), and gripper 0 closed .. 1 open.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.agents.controllers import PDEEPoseController, PDEEPoseControllerConfig, PDJointPosMimicControllerConfig
from mani_skill.agents.controllers.pd_joint_pos import PDJointPosMimicController
from mani_skill.agents.registration import register_agent
from mani_skill.agents.robots.panda.panda import Panda
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.geometry.rotation_conversions import axis_angle_to_quaternion, quaternion_multiply
from mani_skill.utils.structs import Pose

EMBODIMENT = "tabletop_panda"
MAX_STEP_M = 0.05
MAX_TURN_RAD = 0.3
LEASH_M = 0.08
LOWEST_TCP_M = 0.008
WRIST_CAMERA_AT, WRIST_CAMERA_TILT, WRIST_CAMERA_FOV = (0.09, 0.0, 0.025), 0.36, 1.25
FINGER_OPEN_M, FINGER_CLOSED_M = 0.04, -0.01  # below zero, so that a closed gripper still presses

# TCP at (-0.11, 0, 0.20) in the world, tool straight down, behind the workspace as the third-person camera sees it.
HOME_QPOS = np.array([0.0, 0.0592, 0.0, -2.35891, 0.0, 2.4181, np.pi / 4, FINGER_OPEN_M, FINGER_OPEN_M])


def wrist_camera_pose() -> sapien.Pose:
    """Give the wrist camera's pose on the hand: in front of it, looking along the tool and back at the finger tips.

    Its picture has the same left and right as the third-person camera's. SAPIEN's cameras look along their x, z up.
    """
    sine, cosine = np.sin(WRIST_CAMERA_TILT), np.cos(WRIST_CAMERA_TILT)
    frame = np.eye(4)
    frame[:3, :3] = np.column_stack([(-sine, 0.0, cosine), (0.0, 1.0, 0.0), (-cosine, 0.0, -sine)])
    frame[:3, 3] = WRIST_CAMERA_AT
    return sapien.Pose(frame)


def limit_norm(vector: torch.Tensor, limit: float) -> torch.Tensor:
    """Shorten [..., 3] vectors longer than `limit` to it, keeping their direction."""
    norm = torch.linalg.norm(vector, dim=-1, keepdim=True)
    return vector * torch.clamp(limit / torch.clamp(norm, min=1e-9), max=1.0)


class DeltaPoseController(PDEEPoseController):
    """Track a target pose that each action shifts; the target never runs further than a leash from the arm."""

    def _clip_and_scale_action(self, action: torch.Tensor) -> torch.Tensor:
        return action

    def compute_target_pose(self, prev_ee_pose_at_base: Pose, action: torch.Tensor) -> Pose:
        shift, turn = limit_norm(action[:, :3], MAX_STEP_M), limit_norm(action[:, 3:6], MAX_TURN_RAD)
        actual = self.ee_pose_at_base.p
        position = actual + limit_norm(prev_ee_pose_at_base.p + shift - actual, LEASH_M)
        position = torch.cat([position[:, :2], position[:, 2:].clamp(min=LOWEST_TCP_M)], dim=1)
        return Pose.create_from_pq(
            position, quaternion_multiply(axis_angle_to_quaternion(turn), prev_ee_pose_at_base.q)
        )


@dataclass
class DeltaPoseControllerConfig(PDEEPoseControllerConfig):
    controller_cls: Any = DeltaPoseController


class OpeningController(PDJointPosMimicController):
    """Set both fingers by one number, 0 closed .. 1 open."""

    def set_action(self, action: torch.Tensor) -> None:
        opening = torch.clamp(torch.as_tensor(action), 0.0, 1.0)
        super().set_action(FINGER_CLOSED_M + opening * (FINGER_OPEN_M - FINGER_CLOSED_M))


@dataclass
class OpeningControllerConfig(PDJointPosMimicControllerConfig):
    controller_cls: Any = OpeningController


@register_agent()
class TabletopPanda(Panda):
    """The Panda with the platform's action and a camera on its wrist."""

    uid = EMBODIMENT
    arm_stiffness = 2e3
    arm_damping = 2e2

    @property
    def _controller_configs(self) -> dict[str, Any]:
        arm = DeltaPoseControllerConfig(
            joint_names=self.arm_joint_names,
            pos_lower=-MAX_STEP_M,
            pos_upper=MAX_STEP_M,
            rot_lower=-MAX_TURN_RAD,
            rot_upper=MAX_TURN_RAD,
            stiffness=self.arm_stiffness,
            damping=self.arm_damping,
            force_limit=self.arm_force_limit,
            ee_link=self.ee_link_name,
            urdf_path=str(self.urdf_path),
            use_target=True,
            normalize_action=False,
        )
        mimic: dict[str, Any] = {"panda_finger_joint2": {"joint": "panda_finger_joint1"}}
        gripper = OpeningControllerConfig(
            joint_names=self.gripper_joint_names,
            lower=0.0,
            upper=1.0,
            stiffness=self.gripper_stiffness,
            damping=self.gripper_damping,
            force_limit=self.gripper_force_limit,
            normalize_action=False,
            mimic=mimic,
        )
        return {"delta_end_effector": {"arm": arm, "gripper": gripper}}

    @property
    def _sensor_configs(self) -> list[CameraConfig]:
        return [
            CameraConfig(
                uid="wrist",
                pose=Pose.create(wrist_camera_pose()),
                width=128,
                height=128,
                fov=WRIST_CAMERA_FOV,
                near=0.01,
                far=10,
                mount=self.robot.links_map["panda_hand"],
            )
        ]
