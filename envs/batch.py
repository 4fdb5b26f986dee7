"""Step many unrendered tabletop worlds of one task by arrays, as reinforcement wants them.

    actions float32 [N,7] -> Moment, everything in it [N, ...] NumPy float64, metres, world frame

Two carriers with one face: `CpuBatch` steps N small PhysX worlds one after another in this process and works the arm
with a few array operations (`ArmTargets`) instead of ManiSkill's controllers, which cost more than the physics;
`GpuBatch` is one ManiSkill environment of N worlds on `physx_cuda` (written, and not yet run).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sapien
import sapien.physx
import torch

from st4vla.envs import control, geometry, objects, tabletop, tasks
from st4vla.envs.layout import Scene
from st4vla.envs.states import BASE

SUBSTEPS = tabletop.SIM_HZ // tabletop.CONTROL_HZ
UNRENDERED = {"obs_mode": "none", "reward_mode": "none", "render_backend": "none"}


@dataclass(frozen=True)
class Moment:
    """What is known of N worlds between two control steps.

    Attributes:
        situation: what the judges look at, batched.
        tcp_turn: [N,4] orientation of the hand, wxyz.
        target_turns: [N,M,4] of the objects to handle.
    """

    situation: tasks.Situation
    tcp_turn: np.ndarray
    target_turns: np.ndarray


class Batch(Protocol):
    """N worlds of one task."""

    num_worlds: int

    def set_out(self, rows: Sequence[int], scenes: Sequence[Scene]) -> None: ...

    def step(self, actions: np.ndarray, rows: Sequence[int]) -> None: ...

    def moment(self) -> Moment: ...

    def close(self) -> None: ...


def make_batch(task: str, num_worlds: int, device: str = "cpu") -> Batch:
    """Make a batch on the CPU or, `device="cuda"`, on a GPU."""
    return GpuBatch(task, num_worlds) if device == "cuda" else CpuBatch(task, num_worlds)


@dataclass(frozen=True)
class Facts:
    """What stays as it was at the start of each row's episode; arrays as in `tasks.Situation`."""

    half_heights: np.ndarray
    starts: np.ndarray
    start_tcp: np.ndarray
    direction: np.ndarray

    @classmethod
    def empty(cls, num_worlds: int, num_targets: int) -> "Facts":
        """Make room for the facts of N worlds with M targets each."""
        wide = (num_worlds, num_targets)
        return cls(np.zeros(wide), np.zeros((*wide, 3)), np.zeros((num_worlds, 3)), np.zeros((num_worlds, 3)))

    def note(self, row: int, scene: Scene, start_tcp: np.ndarray) -> None:
        """Write down the facts of a row whose episode begins."""
        targets = list(scene.targets)
        self.half_heights[row] = [scene.things[index].shape.half_height for index in targets]
        self.starts[row], self.start_tcp[row] = scene.poses[targets, :3], start_tcp
        self.direction[row] = scene.direction


class ArmTargets:
    """Hold the poses that N arms were last told to reach, robot base frame; `control.DeltaPoseController` in NumPy."""

    def __init__(self, num_worlds: int):
        self.position, self.turn = np.zeros((num_worlds, 3)), np.tile(geometry.TOOL_DOWN, (num_worlds, 1))

    def shift(self, actions: np.ndarray, actual: np.ndarray) -> None:
        """Shift by actions [N,7]; no target runs further than the leash from its arm's actual place [N,3]."""
        wanted = self.position + _limited(actions[:, :3], control.MAX_STEP_M) - actual
        self.position = actual + _limited(wanted, control.LEASH_M)
        self.position[:, 2] = self.position[:, 2].clip(control.LOWEST_TCP_M)
        turn = geometry.from_rotation_vector(_limited(actions[:, 3:6], control.MAX_TURN_RAD))
        self.turn = geometry.multiply(turn, self.turn)


def _limited(vector: np.ndarray, limit: float) -> np.ndarray:
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector * np.minimum(limit / np.maximum(norm, 1e-9), 1.0)


class SmallWorld:
    """One physics world of a `CpuBatch`: SAPIEN's own objects, nothing of ManiSkill in the loop."""

    def __init__(self, task: str):
        self._env = tabletop.make_env(task, num_envs=1, sim_backend="physx_cpu", **UNRENDERED)
        self._env.reset(seed=0)
        self._robot = self._env.agent.robot._objs[0]
        self._hand = self._env.agent.tcp._objs[0].entity
        arm, gripper = (self._env.agent.controller.controllers[name] for name in ("arm", "gripper"))
        self._kinematics = arm.kinematics
        self._arm_joints = [joint._objs[0] for joint in arm.joints]
        self._fingers = [joint._objs[0] for joint in gripper.joints]
        self._entities = [thing._objs[0] for thing in self._env.things]
        self._on_table: set[int] = set(range(len(self._entities)))

    def set_out(self, scene: Scene) -> None:
        """Put the scene's things on the table, the others on the shelf, and the arm home, all at rest."""
        wanted = [objects.INDEX[thing.name] for thing in scene.things]
        for index in self._on_table - set(wanted):
            self._put(index, self._env.shelf_poses[index])
        for index, pose in zip(wanted, scene.poses, strict=True):
            self._put(index, pose)
        self._on_table = set(wanted)
        self._targets = [self._entities[wanted[index]] for index in scene.targets]
        self._places = [self._entities[wanted[index]] for index in scene.destinations]
        self._robot.set_qpos(control.HOME_QPOS)
        self._robot.set_qvel(np.zeros(len(control.HOME_QPOS)))

    def _put(self, index: int, pose: np.ndarray) -> None:
        entity = self._entities[index]
        entity.set_pose(sapien.Pose(pose[:3].tolist(), pose[3:].tolist()))
        if objects.LIBRARY[index].shape.kind == "solid":
            body: Any = entity.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
            body.linear_velocity = body.angular_velocity = np.zeros(3)

    def step(self, position: np.ndarray, turn: np.ndarray, opening: float) -> None:
        """Drive towards a TCP pose in the robot base frame and an opening 0..1, for one control step."""
        solver = self._kinematics
        qpos, reached, _ = solver.pmodel.compute_inverse_kinematics(
            solver.end_link_idx,
            sapien.Pose(position.tolist(), turn.tolist()),
            initial_qpos=self._robot.qpos,
            active_qmask=solver.qmask,
            max_iterations=100,
        )
        for joint, angle in zip(self._arm_joints, qpos if reached else self._robot.qpos, strict=False):
            joint.set_drive_target(angle)
        finger_m = control.FINGER_CLOSED_M + opening * (control.FINGER_OPEN_M - control.FINGER_CLOSED_M)
        for joint in self._fingers:
            joint.set_drive_target(finger_m)
        for _ in range(SUBSTEPS):
            self._env.scene.px.step()

    def read(self) -> np.ndarray:
        """Give one row [8 + 7 M + 3 D]: TCP pose, opening, poses of targets, places of destinations."""
        poses = [self._hand.pose, *(entity.pose for entity in self._targets)]
        tcp, *targets = [np.concatenate([pose.p, pose.q]) for pose in poses]
        opening = self._robot.qpos[-2:].mean() / control.FINGER_OPEN_M
        return np.concatenate([tcp, [opening], *targets, *(entity.pose.p for entity in self._places)])

    def close(self) -> None:
        """Give the scene back."""
        self._env.close()


class CpuBatch:
    """N small worlds, stepped one after another in this process."""

    def __init__(self, task: str, num_worlds: int):
        self.num_worlds, self._num_targets = num_worlds, 3 if task == "sort_three" else 1
        self._worlds = [SmallWorld(task) for _ in range(num_worlds)]
        self._arms, self._facts = ArmTargets(num_worlds), Facts.empty(num_worlds, self._num_targets)
        self._rows: list[np.ndarray] = [np.zeros(0)] * num_worlds

    def set_out(self, rows: Sequence[int], scenes: Sequence[Scene]) -> None:
        """Begin an episode in each of these rows."""
        for row, scene in zip(rows, scenes, strict=True):
            self._worlds[row].set_out(scene)
            reading = self._rows[row] = self._worlds[row].read()
            self._arms.position[row], self._arms.turn[row] = reading[:3] - BASE, reading[3:7]
            self._facts.note(row, scene, reading[:3])

    def step(self, actions: np.ndarray, rows: Sequence[int]) -> None:
        """Execute one action [N,7] for one control step in these rows; the others stay as they are."""
        actual = np.stack([reading[:3] for reading in self._rows]) - BASE
        self._arms.shift(actions, actual)
        opening = actions[:, 6].clip(0.0, 1.0)
        for row in rows:
            self._worlds[row].step(self._arms.position[row], self._arms.turn[row], opening[row])
            self._rows[row] = self._worlds[row].read()

    def moment(self) -> Moment:
        """Say how the worlds stand."""
        table, facts, count = np.stack(self._rows).astype(np.float64), self._facts, self._num_targets
        targets = table[:, 8 : 8 + 7 * count].reshape(len(table), count, 7)
        places = table[:, 8 + 7 * count :].reshape(len(table), -1, 3)
        situation = tasks.Situation(
            tcp=table[:, :3],
            opening=table[:, 7].clip(0.0, 1.0),
            targets=targets[..., :3],
            half_heights=facts.half_heights,
            starts=facts.starts,
            start_tcp=facts.start_tcp,
            destinations=places if places.size else np.zeros((len(table), count, 3)),
            direction=facts.direction,
        )
        return Moment(situation, table[:, 3:7], targets[..., 3:])

    def close(self) -> None:
        """Give the scenes back."""
        for world in self._worlds:
            world.close()


class GpuBatch:
    """One ManiSkill environment of N worlds on a GPU; rows not stepped are those about to be set out anew."""

    def __init__(self, task: str, num_worlds: int):
        self.num_worlds = num_worlds
        self._env = tabletop.make_env(task, num_envs=num_worlds, sim_backend="physx_cuda", **UNRENDERED)

    def set_out(self, rows: Sequence[int], scenes: Sequence[Scene]) -> None:
        """Begin an episode in each of these rows."""
        index = torch.tensor(list(rows), device=self._env.device)
        self._env.reset(options={"env_idx": index, "scenes": list(scenes)})

    def step(self, actions: np.ndarray, rows: Sequence[int]) -> None:
        """Execute one action [N,7] for one control step; a GPU steps all rows at once."""
        self._env._step_action(torch.as_tensor(actions, dtype=torch.float32, device=self._env.device))

    def moment(self) -> Moment:
        """Say how the worlds stand, with one copy to the host per array."""
        env, situation = self._env, self._env.situation()
        turns = torch.stack([thing.pose.q for thing in env.things], dim=1)
        index = env.target_index[..., None].expand(-1, -1, 4)
        fields = {name: _to_host(value) for name, value in vars(situation).items()}
        fields["opening"] = fields["opening"].clip(0.0, 1.0)
        picked = torch.gather(turns, 1, index)
        return Moment(tasks.Situation(**fields), _to_host(env.agent.tcp_pose.q), _to_host(picked))

    def close(self) -> None:
        """Give the scene back."""
        self._env.close()


def _to_host(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy().astype(np.float64)
