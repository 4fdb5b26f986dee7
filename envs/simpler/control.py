"""Drive a robot by plans: what its joints are told during one control step, worked out once at the step's beginning.

A planner turns one action and the measured state into a plan, in plain numpy; the ManiSkill controller here holds a
planner for every row of a batch and plays their plans, physics step by physics step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
import sapien
import torch
from gymnasium import spaces
from mani_skill.agents.controllers.base_controller import BaseController, ControllerConfig
from sapien.pysapien_pinocchio import PinocchioModel

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


JOINT_PARTS = ("parent", "child", "origin", "axis", "limit")


class Kinematics:
    """Solve for joint positions by closed-loop inverse kinematics, Pinocchio's as SAPIEN carries it.

    The model is made from the robot's URDF as it stands, whatever was left out of the simulation.
    """

    def __init__(self, urdf: str, joints: Sequence[str], tcp_link: str, limits: np.ndarray):
        """Read the model; `joints` [D] is the articulation's order, `limits` [D,2] its joint limits."""
        self.limits = limits
        self._model = PinocchioModel(_skeleton(urdf), np.array([0.0, 0.0, -9.81]))
        self._model.set_joint_order(list(joints))
        self._model.set_link_order([tcp_link])

    def solve(self, pose: sapien.Pose, qpos: np.ndarray, movable: np.ndarray) -> np.ndarray | None:
        """Give the joints [D] that bring the tool to `pose` (base frame), None where 100 rounds do not.

        Args:
            pose: where to.
            qpos: the joints to start from, [D].
            movable: 1 for each joint that may move, int32 [D].
        """
        found, success, _ = self._model.compute_inverse_kinematics(
            0, pose, initial_qpos=qpos, active_qmask=movable, max_iterations=100
        )
        return np.asarray(found) if success else None

    def tcp_at(self, qpos: np.ndarray) -> sapien.Pose:
        """Give the tool's pose in the base frame at joints [D]."""
        self._model.compute_forward_kinematics(qpos)
        return self._model.get_link_pose(0)


def _skeleton(urdf: str) -> str:
    """Give a URDF's links and joints alone: Pinocchio's reader refuses much of the rest."""
    robot = ElementTree.Element("robot", name="skeleton")
    for part in ElementTree.parse(urdf).getroot():
        if part.tag == "link":
            ElementTree.SubElement(robot, "link", name=part.attrib["name"])
        elif part.tag == "joint":
            joint = ElementTree.SubElement(robot, "joint", name=part.attrib["name"], type=part.attrib["type"])
            kept = ("parent", "child", "origin") if joint.get("type") == "fixed" else JOINT_PARTS
            joint.extend(child for child in part if child.tag in kept)
            for limit in joint.findall("limit"):
                limit.attrib = {"effort": "0", "velocity": "0", **limit.attrib}
    return ElementTree.tostring(robot, encoding="unicode")


PlannerFactory = Callable[[Kinematics, Sequence[str], int, int], Planner]


class PlannedController(BaseController):
    """Play the plans of one planner per row, as a ManiSkill controller of every joint of the robot."""

    config: "PlannedControllerConfig"
    sets_target_qpos, sets_target_qvel = True, True

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        config, names = self.config, [joint.name for joint in self.articulation.active_joints]
        limits = np.asarray(self.articulation._objs[0].qlimits, dtype=np.float64)
        kinematics = Kinematics(config.urdf, names, config.tcp_link, limits)
        sim_hz = self._sim_steps * self._control_freq
        self.planners = [
            config.make_planner(kinematics, names, sim_hz, self._sim_steps) for _ in range(self.scene.num_envs)
        ]
        self._plans: list[Plan] = []
        self._cursor = 0
        carrier, self._tip_pose = config.tcp_frame
        self._tip = self.articulation.links_map[carrier]
        self._drives = [joint._objs[0] for joint in self.articulation.active_joints]
        self._driven = np.zeros(len(self._drives), dtype=bool)  # joints that ever had a velocity target

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
            tip = robot.pose.inv() * self._tip._objs[0].entity_pose * self._tip_pose
            return Measured(robot.qpos.astype(np.float64), robot.qvel.astype(np.float64), tip)
        base, tip = self.articulation.pose[row].sp, self._tip.pose[row].sp * self._tip_pose
        qpos, qvel = self.articulation.qpos[row], self.articulation.qvel[row]
        return Measured(qpos.cpu().numpy().astype(np.float64), qvel.cpu().numpy().astype(np.float64), base.inv() * tip)

    def reset(self) -> None:
        mask = self.scene._reset_mask
        for row, planner in enumerate(self.planners):
            if bool(mask[row]):
                planner.reset(self.measured(row))
        self._driven[:] = False

    def set_action(self, action: Any) -> None:
        rows = np.asarray(action.cpu() if isinstance(action, torch.Tensor) else action, dtype=np.float64)
        self.command(rows.reshape(len(self.planners), -1))

    def command(self, rows: np.ndarray) -> None:
        """Plan one control step from actions [B,A]; `before_simulation_step` then plays it."""
        self._plans = [planner.plan(rows[row], self.measured(row)) for row, planner in enumerate(self.planners)]
        self._cursor = 0
        if not self.scene.gpu_sim_enabled:
            self._prepare(self._plans[0])

    def play(self, step: Callable[[], None], steps: int, before: Callable[[], None]) -> None:
        """Run the physics of a control step of one scene on a CPU, as `before_simulation_step` would, asking less."""
        told = self._told
        for index in range(min(steps, len(self._plans[0].targets))):
            for tell, values in told:
                tell(values[index])
            before()
            step()
        for _ in range(len(self._plans[0].targets), steps):
            before()
            step()

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
        for tell, told in self._told:
            tell(told[index])

    def _prepare(self, plan: Plan) -> None:
        """Lay out a plan by joint, without the joints that are told nothing new: this is read at every physics step."""
        moving = (plan.targets != plan.targets[0]).any(axis=0)
        for drive, target in zip(self._drives, plan.targets[0].tolist(), strict=True):
            drive.set_drive_target(target)
        columns = plan.targets.T.tolist()
        self._told = [(self._drives[joint].set_drive_target, columns[joint]) for joint in np.flatnonzero(moving)]
        if plan.velocities is None:
            return
        columns, driven = plan.velocities.T.tolist(), self._driven | plan.velocities.any(axis=0)
        speeding = np.flatnonzero(driven)
        self._told += [(self._drives[joint].set_drive_velocity_target, columns[joint]) for joint in speeding]
        self._driven = driven

    def _play_batch(self) -> None:
        """Set every row's targets at once (GPU physics; written and not yet run)."""
        physics: Any = self.scene.px
        rows = [plan.targets[min(self._cursor, len(plan.targets) - 1)] for plan in self._plans]
        targets = torch.as_tensor(np.stack(rows), dtype=torch.float32, device=self.device)
        self.articulation.set_joint_drive_targets(targets, self.articulation.active_joints)
        if self._plans[0].velocities is not None:
            speeds = [plan.velocities[min(self._cursor, len(plan.targets) - 1)] for plan in self._plans]  # type: ignore[index]
            velocities = torch.as_tensor(np.stack(speeds), dtype=torch.float32, device=self.device)
            self.articulation.set_joint_drive_velocity_targets(velocities, self.articulation.active_joints)
            physics.gpu_apply_articulation_target_velocity()
        physics.gpu_apply_articulation_target_position()


@dataclass
class PlannedControllerConfig(ControllerConfig):
    """What the controller plays: which planner, from which tool (where it sits on which link), by which motors."""

    make_planner: Any = None
    tcp_link: str = ""
    motors: Motors = field(default_factory=dict)
    urdf: str = ""
    tcp_frame: tuple[str, sapien.Pose] = ("", sapien.Pose())
    controller_cls: Any = PlannedController
