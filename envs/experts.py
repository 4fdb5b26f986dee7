"""Solve the tasks from privileged state, closed loop: each action is worked out anew from where things are.

An expert reads the pose the arm was last told to reach, so noise put on its executed actions, an object that is moved
or an instruction that changes is corrected by its next action. Its one memory is how long it has been closing.
"""

import numpy as np

from st4vla.envs import geometry, tasks
from st4vla.envs.world import TabletopWorld

STEP_M, REACH_STEP_M, TURN_RAD = 0.04, 0.03, 0.25
CLEAR_M = 0.05  # height of the TCP over an object's top while travelling
CARRY_HEIGHT_M = 0.15
ON_SPOT_M, ALIGNED_RAD = 0.010, 0.12
CLOSING_STEPS = 2
PUSH_HEIGHT_M = 0.022
PUSH_GAP_M = 0.035
OPEN, CLOSED = 1.0, 0.0


class Expert:
    """The scripted expert of every task; one per episode of one world."""

    def __init__(self, world: TabletopWorld):
        self._world = world
        self._closing = 0

    def act(self) -> np.ndarray:
        """Give the next action, float32 [7], without noise."""
        which, _ = self._world.focus()
        index = self._world.scene.targets[which]
        task = self._world.scene.task
        if task == "reach":
            return self._reach(index)
        if task == "push":
            return self._push(index)
        if self._world.progress().success:
            return self._world.hold_action()
        if not self._holds(index):
            return self._grasp(index)
        return self._lift() if task == "pick_up" else self._carry(index, self._world.scene.destinations[which])

    def _towards(self, point: np.ndarray, gripper: float, yaw: float = 0.0, step_m: float = STEP_M) -> np.ndarray:
        """Shift and turn the commanded pose towards a point (world frame) and a turn of the hand about z."""
        position, quaternion = self._world.commanded_tcp
        wanted = geometry.multiply(geometry.about_z(yaw), geometry.TOOL_DOWN)
        turn = geometry.rotation_vector(geometry.multiply(wanted, geometry.conjugate(quaternion)))
        shift = _limited(point - position, step_m)
        return np.concatenate([shift, _limited(turn, TURN_RAD), [gripper]]).astype(np.float32)

    def _reach(self, index: int) -> np.ndarray:
        pose = self._world.thing_pose(index)
        half_height = np.float64(self._world.scene.things[index].shape.half_height)
        return self._towards(tasks.reach_point(pose[:3], half_height), OPEN, step_m=REACH_STEP_M)

    def _holds(self, index: int) -> bool:
        """Tell whether the object is firmly in hand, or still being let go."""
        world = self._world
        held = tasks.is_held(world.tcp[0], world.opening, world.thing_pose(index)[:3])
        if not held and self._closing > CLOSING_STEPS:
            self._closing = 0
        return bool(held) and self._closing > CLOSING_STEPS

    def _grasp(self, index: int) -> np.ndarray:
        """Go above the object, down to it, and close; from wherever the hand is."""
        shape, pose = self._world.scene.things[index].shape, self._world.thing_pose(index)
        yaw = geometry.nearest_grasp_yaw(geometry.yaw_of(pose[3:]), shape.grasp_fold)
        at = pose[:3] + np.array([0.0, 0.0, shape.grasp_offset])
        position, quaternion = self._world.tcp
        gap = float(np.linalg.norm(position[:2] - at[:2]))
        hand_yaw = geometry.yaw_of(geometry.multiply(quaternion, geometry.conjugate(geometry.TOOL_DOWN)))
        aligned = gap < ON_SPOT_M and abs(hand_yaw - yaw) < ALIGNED_RAD
        if self._closing or (aligned and abs(position[2] - at[2]) < ON_SPOT_M):
            self._closing += 1
            return self._towards(at, CLOSED, yaw)
        over = pose[2] + shape.half_height + CLEAR_M
        if aligned and self._world.opening > 0.8:
            return self._towards(at, OPEN, yaw)
        return self._travel(at, over, OPEN, yaw)

    def _travel(self, at: np.ndarray, height: float, gripper: float, yaw: float = 0.0) -> np.ndarray:
        """Go to `height` above a place, straight up first if the hand is low and not there yet."""
        position, _ = self._world.tcp
        far = np.linalg.norm(position[:2] - at[:2]) > 3 * ON_SPOT_M
        if far and position[2] < height - 0.03:
            return self._towards(np.array([*position[:2], height + 0.02]), gripper, yaw)
        return self._towards(np.array([*at[:2], height]), gripper, yaw)

    def _lift(self) -> np.ndarray:
        position, _ = self._world.commanded_tcp
        return self._towards(np.array([*position[:2], CARRY_HEIGHT_M]), CLOSED)

    def _carry(self, index: int, destination: int) -> np.ndarray:
        """Carry the held object over its container, lower it and let go."""
        things, place = self._world.scene.things, self._world.thing_pose(destination)
        hang = self._world.tcp[0] - self._world.thing_pose(index)[:3]
        at = place[:3] + np.array([hang[0], hang[1], 0.0])
        drop = 0.022 if things[destination].form == "bin" else 0.010
        low = place[2] + things[destination].shape.half_height * (-1 if drop > 0.02 else 1)
        release = low + drop + things[index].shape.half_height + hang[2]
        position, _ = self._world.tcp
        if np.linalg.norm(position[:2] - at[:2]) > 1.5 * ON_SPOT_M:
            return self._travel(at, CARRY_HEIGHT_M, CLOSED)
        if position[2] > release + ON_SPOT_M and self._world.opening < tasks.OPEN_FRACTION + 0.1:
            return self._towards(np.array([*at[:2], release]), CLOSED)
        return self._towards(np.array([*at[:2], release]), OPEN)

    def _push(self, index: int) -> np.ndarray:
        """Go behind the object with closed fingers, down, and drive it along its side."""
        scene, pose = self._world.scene, self._world.thing_pose(index)
        direction, position = scene.direction, self._world.tcp[0]
        offset = position - pose[:3]
        along = float(offset @ direction)
        across = np.array([*(offset - along * direction)[:2], 0.0])
        if self._world.progress().success:
            return self._towards(self._world.commanded_tcp[0], CLOSED)
        low = position[2] < PUSH_HEIGHT_M + ON_SPOT_M
        if low and along < -ON_SPOT_M and np.linalg.norm(across) < 2.5 * ON_SPOT_M:
            return self._towards(self._beside(position + direction * 0.04 - across), CLOSED)
        behind = pose[:3] - direction * (self._reach_of(index, direction) + PUSH_GAP_M)
        if np.linalg.norm(position[:2] - behind[:2]) < 1.5 * ON_SPOT_M:
            return self._towards(self._beside(behind), CLOSED)
        return self._travel(behind, 2 * scene.things[index].shape.half_height + CLEAR_M, CLOSED)

    def _reach_of(self, index: int, direction: np.ndarray) -> float:
        """Bound how far the object reaches from its middle along a direction, m."""
        thing = self._world.scene.things[index]
        yaw = geometry.yaw_of(self._world.thing_pose(index)[3:])
        half_x = max(part.size[0] + abs(part.centre[0]) for part in thing.shape.parts)
        half_y = max(part.size[1] if part.shape == "box" else part.size[0] for part in thing.shape.parts)
        axis_x, axis_y = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        return float(half_x * abs(axis_x @ direction[:2]) + half_y * abs(axis_y @ direction[:2]))

    @staticmethod
    def _beside(point: np.ndarray) -> np.ndarray:
        return np.array([*point[:2], PUSH_HEIGHT_M])


def _limited(vector: np.ndarray, limit: float) -> np.ndarray:
    """Shorten a vector to a length."""
    norm = float(np.linalg.norm(vector))
    return vector if norm <= limit else vector * (limit / norm)
