"""Read one row of a batch of scenes for its judge, by ManiSkill's batched poses and pairwise contact impulses.

Answers what `SceneView` answers. On a GPU (written and not yet run; on a CPU a test holds it against `SceneView`)
contacts can only be asked for pair by pair and body by body: an object in a drawer then counts as lying on its floor
if it touches any part of the drawer.
"""

from typing import Any

import numpy as np

from st4vla.envs.simpler.contacts import TOUCHING_NS, angle_between
from st4vla.envs.simpler.env import SimplerEnv


class BatchView:
    """Look at row `row` of an environment."""

    def __init__(self, env: SimplerEnv, row: int):
        self.env, self.row = env, row

    def _numbers(self, batch: Any) -> np.ndarray:
        return batch[self.row].cpu().numpy().astype(np.float64)

    def position(self, name: str) -> np.ndarray:
        """Where an object's frame is, [3]."""
        return self._numbers(self.env.things[name].pose.p)

    def turn(self, name: str) -> np.ndarray:
        """How an object's frame is turned, quaternion [4]."""
        return self._numbers(self.env.things[name].pose.q)

    def mass_pose(self, name: str) -> np.ndarray:
        """Pose [7] of an object's centre of mass frame."""
        actor: Any = self.env.things[name]
        body = actor._bodies[self.row]
        pose = actor.pose[self.row].sp * body.cmass_local_pose
        return np.concatenate([pose.p, pose.q]).astype(np.float64)

    def drawer(self, name: str) -> float:
        """How far the top, middle or bottom drawer is open, m."""
        cabinet = self.env.cabinet
        assert cabinet is not None
        names = [joint.name for joint in cabinet.active_joints]
        return float(cabinet.qpos[self.row, names.index(f"{name}_drawer_joint")])

    def _impulse(self, first: Any, second: Any) -> np.ndarray:
        """Sum the impulse [3] on `first` from `second`."""
        return self._numbers(self.env.scene.get_pairwise_contact_impulses(first, second))

    def lies_in_drawer(self, name: str, drawer: str) -> bool:
        """Say whether an object presses on a drawer."""
        assert self.env.cabinet is not None
        link = self.env.cabinet.links_map[f"{drawer}_drawer"]
        return float(np.linalg.norm(self._impulse(self.env.things[name], link))) > TOUCHING_NS

    def grasps(self, name: str, max_degrees: float) -> bool:
        """Say whether the gripper grasps an object."""
        return all(self._pressed(side, name, max_degrees) for side in self.env.agent.model.pads)

    def _pressed(self, side: Any, name: str, max_degrees: float) -> bool:
        strongest, best = 0.0, np.pi
        for link_name in side.links:
            link = self.env.agent.robot.links_map[link_name]
            impulse = self._impulse(link, self.env.things[name])
            opens = side.opens * self._numbers(link.pose.to_transformation_matrix())[:3, 1]
            strongest = max(strongest, float(np.linalg.norm(impulse)))
            best = min(best, angle_between(opens, impulse))
        return strongest >= TOUCHING_NS and bool(np.rad2deg(best) <= max_degrees)

    def touched_by_others(self, name: str, but: tuple[str, ...] = ()) -> bool:
        """Say whether an object is touched by anything but the robot and the objects named."""
        env = self.env
        others = [actor for other, actor in env.things.items() if other not in (name, *but)]
        others += [] if env.cabinet is None else list(env.cabinet.links)
        others += [env.arena] if env.build.arena.solid and env.arena is not None else []
        thing = env.things[name]
        return any(float(np.linalg.norm(self._impulse(thing, other))) > TOUCHING_NS for other in others)
