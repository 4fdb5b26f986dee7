"""Drive a robot by plans: what its joints are told during one control step, worked out once at the step's beginning.

A planner turns one action and the measured state into a plan, in plain numpy; the ManiSkill controller here holds a
planner for every row of a batch and plays their plans, physics step by physics step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sapien
import torch
from gymnasium import spaces
from mani_skill.agents.controllers.base_controller import BaseController, ControllerConfig

from st4vla.envs.simpler.robot import Motors


@dataclass(frozen=True)
class Measured:
    """What a planner reads of the robot, joints in the order of the articulation (D of them).

    Attributes:
        qpos, qvel: float64 [D].
        tcp_at_base: pose of the tool centre point in the robot's base frame.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    tcp_at_base: sapien.Pose


@dataclass(frozen=True)
class Plan:
    """Drive targets of one control step (D joints in the order of the articulation).

    Attributes:
        targets: float64 [S,D], one row per physics step, or [1,D] for a step with one target all along.
        velocities: float64 [S,D] drive velocity targets, or None to leave them alone.
    """

    targets: np.ndarray
    velocities: np.ndarray | None = None


class Planner(Protocol):
    """Turn actions into plans; remembers what the robot was told before."""

    action_dim: int

    def reset(self, measured: Measured) -> None: ...
    def plan(self, action: np.ndarray, measured: Measured) -> Plan: ...
    def hold_action(self) -> np.ndarray: ...


class Kinematics:
    """Solve for joint positions by closed-loop inverse kinematics, Pinocchio's as SAPIEN carries it.

    The model is the articulation's own; the batch's rows share it, as they share the robot.
    """

    def __init__(self, articulation: Any, tcp_link: str):
        self.articulation = articulation
        self._model = articulation.create_pinocchio_model()
        self._link = [link.entity.name for link in articulation.links].index(tcp_link)

    def solve(self, pose: sapien.Pose, qpos: np.ndarray, movable: np.ndarray) -> np.ndarray | None:
        """Give the joints [D] that bring the tool to `pose` (base frame), None where 100 rounds do not.

        Args:
            pose: where to.
            qpos: the joints to start from, [D].
            movable: 1 for each joint that may move, int32 [D].
        """
        found, success, _ = self._model.compute_inverse_kinematics(
            self._link, pose, initial_qpos=qpos, active_qmask=movable, max_iterations=100
        )
        return np.asarray(found) if success else None

    def tcp_at(self, qpos: np.ndarray) -> sapien.Pose:
        """Give the tool's pose in the base frame at joints [D]."""
        self._model.compute_forward_kinematics(qpos)
        return self._model.get_link_pose(self._link)


PlannerFactory = Callable[[Kinematics, Sequence[str], int, int], Planner]


class PlannedController(BaseController):
    """Play the plans of one planner per row, as a ManiSkill controller of every joint of the robot."""

    config: "PlannedControllerConfig"
    sets_target_qpos, sets_target_qvel = True, True

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        config, names = self.config, [joint.name for joint in self.articulation.active_joints]
        kinematics = Kinematics(self.articulation._objs[0], config.tcp_link)
        sim_hz = self._sim_steps * self._control_freq
        self.planners = [
            config.make_planner(kinematics, names, sim_hz, self._sim_steps) for _ in range(self.scene.num_envs)
        ]
        self._plans: list[Plan] = []
        self._cursor = 0
        self._tip = self.articulation.links_map[config.tcp_link]._objs[0]
        self._drives = [joint._objs[0] for joint in self.articulation.active_joints]

    def _initialize_action_space(self) -> None:
        size = self.planners[0].action_dim
        self.single_action_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._original_single_action_space = self.single_action_space

    def set_drive_property(self) -> None:
        motors = self.config.motors
        for joint in self.articulation.active_joints:
            stiffness, damping, force = motors[joint.name]
            joint.set_drive_properties(stiffness, damping, force_limit=force, mode="force")
            joint.set_friction(0.0)

    def measured(self, row: int = 0) -> Measured:
        """Read the robot of one row."""
        if not self.scene.gpu_sim_enabled:
            robot = self.articulation._objs[0]
            tip = robot.pose.inv() * self._tip.entity_pose
            return Measured(robot.qpos.astype(np.float64), robot.qvel.astype(np.float64), tip)
        link = self.articulation.links_map[self.config.tcp_link]
        base, tip = self.articulation.pose[row].sp, link.pose[row].sp
        qpos, qvel = self.articulation.qpos[row], self.articulation.qvel[row]
        return Measured(qpos.cpu().numpy().astype(np.float64), qvel.cpu().numpy().astype(np.float64), base.inv() * tip)

    def reset(self) -> None:
        mask = self.scene._reset_mask
        for row, planner in enumerate(self.planners):
            if bool(mask[row]):
                planner.reset(self.measured(row))

    def set_action(self, action: Any) -> None:
        rows = np.asarray(action.cpu() if isinstance(action, torch.Tensor) else action, dtype=np.float64)
        self.command(rows.reshape(len(self.planners), -1))

    def command(self, rows: np.ndarray) -> None:
        """Plan one control step from actions [B,A]; `before_simulation_step` then plays it."""
        self._plans = [planner.plan(rows[row], self.measured(row)) for row, planner in enumerate(self.planners)]
        self._cursor = 0

    def before_simulation_step(self) -> None:
        if not self._plans or (self._cursor > 0 and len(self._plans[0].targets) == 1):
            return
        if self.scene.gpu_sim_enabled:
            self._play_batch()
        else:
            self._play_one(self._plans[0])
        self._cursor += 1

    def _play_one(self, plan: Plan) -> None:
        index = min(self._cursor, len(plan.targets) - 1)
        for drive, target in zip(self._drives, plan.targets[index].tolist(), strict=True):
            drive.set_drive_target(target)
        if plan.velocities is not None:
            for drive, velocity in zip(self._drives, plan.velocities[index].tolist(), strict=True):
                drive.set_drive_velocity_target(velocity)

    def _play_batch(self) -> None:
        """Set every row's targets at once (GPU physics; written and not yet run)."""
        rows = [plan.targets[min(self._cursor, len(plan.targets) - 1)] for plan in self._plans]
        targets = torch.as_tensor(np.stack(rows), dtype=torch.float32, device=self.device)
        self.articulation.set_joint_drive_targets(targets, self.articulation.active_joints)
        if self._plans[0].velocities is not None:
            speeds = [plan.velocities[min(self._cursor, len(plan.targets) - 1)] for plan in self._plans]  # type: ignore[index]
            velocities = torch.as_tensor(np.stack(speeds), dtype=torch.float32, device=self.device)
            self.articulation.set_joint_drive_velocity_targets(velocities, self.articulation.active_joints)
            self.scene.px.gpu_apply_articulation_target_velocity()
        self.scene.px.gpu_apply_articulation_target_position()


@dataclass
class PlannedControllerConfig(ControllerConfig):
    """What the controller plays: which planner, from which tool, by which motors."""

    make_planner: Any = None
    tcp_link: str = ""
    motors: Motors | None = None
    controller_cls: Any = PlannedController
