"""Read the state of one CPU scene in plain numpy: what judges judge by, and what recordings hold."""

from typing import Any

import numpy as np
import sapien

from st4vla.envs.simpler.contacts import TOUCHING_NS, Contacts, Pad, is_grasped
from st4vla.envs.simpler.env import SimplerEnv
from st4vla.envs.simpler.settle import body_of

INTERIOR_BOTTOM = 2  # which of a drawer's collision shapes its contents lie on


def as_row(pose: sapien.Pose) -> np.ndarray:
    """Give a pose as float64 [7], position then quaternion w, x, y, z."""
    return np.concatenate([pose.p, pose.q]).astype(np.float64)


class SceneView:
    """Look at the one scene of an environment; `refresh` after a physics step, contacts are of that step."""

    def __init__(self, env: SimplerEnv):
        self.env = env
        self.entities = {name: actor._objs[0] for name, actor in env.things.items()}
        self.bodies = {name: body_of(actor) for name, actor in env.things.items()}
        self.robot: Any = env.agent.robot._objs[0]
        self.links = {link.entity.name: link.entity for link in self.robot.links}
        self.cabinet: Any = None if env.cabinet is None else env.cabinet._objs[0]
        names = [] if env.cabinet is None else [joint.name for joint in env.cabinet.active_joints]
        self._drawers = {name.removesuffix("_drawer_joint"): index for index, name in enumerate(names)}
        links = [] if self.cabinet is None else self.cabinet.links
        self._cabinet_links = {link.entity.name: link.entity for link in links}
        self._contacts: Contacts | None = None

    def refresh(self) -> None:
        """Forget the contacts that were read before."""
        self._contacts = None

    @property
    def contacts(self) -> Contacts:
        """The contacts of the last physics step."""
        if self._contacts is None:
            physics: Any = self.env.scene.px
            self._contacts = Contacts(physics.get_contacts())
        return self._contacts

    def position(self, name: str) -> np.ndarray:
        """Where an object's frame is, [3]."""
        return np.asarray(self.entities[name].pose.p, dtype=np.float64)

    def turn(self, name: str) -> np.ndarray:
        """How an object's frame is turned, quaternion [4]."""
        return np.asarray(self.entities[name].pose.q, dtype=np.float64)

    def pose(self, name: str) -> np.ndarray:
        """Pose [7] of an object's frame."""
        return as_row(self.entities[name].pose)

    def mass_pose(self, name: str) -> np.ndarray:
        """Pose [7] of an object's centre of mass frame."""
        return as_row(self.entities[name].pose * self.bodies[name].cmass_local_pose)

    def drawer(self, name: str) -> float:
        """How far the top, middle or bottom drawer is open, m."""
        return float(self.cabinet.qpos[self._drawers[name]])

    def set_drawers(self, qpos: dict[str, float]) -> None:
        """Move drawers, by name, without a physics step."""
        wanted = np.array(self.cabinet.qpos)
        for name, value in qpos.items():
            wanted[self._drawers[name]] = value
        self.cabinet.set_qpos(wanted)

    def lies_in_drawer(self, name: str, drawer: str) -> bool:
        """Say whether an object presses on the floor of a drawer."""
        link = next(link for link in self.cabinet.links if link.entity.name == f"{drawer}_drawer")
        floor = link.collision_shapes[INTERIOR_BOTTOM]
        return float(np.linalg.norm(self.contacts.between(self.entities[name], link.entity, (floor,)))) > TOUCHING_NS

    def grasps(self, name: str, max_degrees: float) -> bool:
        """Say whether the gripper grasps an object."""
        agent = self.env.agent
        pads = {link: self._pad(link) for link in agent.pad_shapes}
        return is_grasped(self.contacts, pads, agent.model.pads, self.entities[name], max_degrees)

    def _pad(self, link: str) -> Pad:
        carrier, _ = self.env.agent.frame(link)
        return Pad(self.links[carrier], self.entity_pose(f"robot/{link}"), self.env.agent.pad_shapes[link])

    def touched_by_others(self, name: str, but: tuple[str, ...] = ()) -> bool:
        """Say whether an object is touched by anything but the robot and the objects named."""
        allowed = [*self.links.values(), *(self.entities[other] for other in but)]
        return self.contacts.touches_other_than(self.entities[name], allowed)

    @property
    def tcp(self) -> sapien.Pose:
        """The tool's pose in the world."""
        return self.entity_pose(f"robot/{self.env.agent.model.tcp_link}")

    def names(self) -> tuple[str, ...]:
        """Name all that can be seen and moves or might: "robot/LINK", "cabinet/LINK", and the things."""
        cabinet = () if self.cabinet is None else (link.entity.name for link in self.cabinet.links)
        return (
            *(f"robot/{name}" for name in self.env.agent.seen_links),
            *(f"cabinet/{name}" for name in cabinet),
            *self.entities,
        )

    def entity_pose(self, name: str) -> sapien.Pose:
        """Give the pose in the world of what `names` lists, or of any link of the robot's URDF."""
        owner, _, link = name.rpartition("/")
        if owner == "robot":
            carrier, pose = self.env.agent.frame(link)
            return self.links[carrier].pose * pose
        return self._cabinet_links[link].pose if owner == "cabinet" else self.entities[name].pose

    def qvel(self) -> np.ndarray:
        """Joint velocities in the original's order."""
        return np.asarray(self.robot.qvel, dtype=np.float64)[self.env.agent.to_theirs]

    def drive_targets(self) -> np.ndarray:
        """Where the joints' drives were last told to go, in the original's order."""
        told = [float(np.squeeze(joint.drive_target)) for joint in self.robot.active_joints]
        return np.array(told)[self.env.agent.to_theirs]

    def qpos(self) -> np.ndarray:
        """Joint positions in the original's order."""
        return np.asarray(self.robot.qpos, dtype=np.float64)[self.env.agent.to_theirs]
