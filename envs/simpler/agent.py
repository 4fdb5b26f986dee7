"""Turn the description of a robot into a ManiSkill agent."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sapien
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.structs import Articulation, Pose

from st4vla.envs.simpler.control import PlannedControllerConfig
from st4vla.envs.simpler.lean import Frames, lean
from st4vla.envs.simpler.robot import RobotModel, robot_model

NEAR = 0.05  # rad between the fingers, summed, under which their limits are watched


class ModelAgent(BaseAgent):
    """A robot built from its model; the concrete classes come from `agent_class`."""

    uid = "simpler"
    model: RobotModel
    load_multiple_collisions = True
    lean = False

    def _load_articulation(self, initial_pose: Any = None) -> None:
        """Load the robot, thinned out if asked to.

        `seen_links` are the links that have something to be seen, kept or not, and `pad_shapes` what each pad of the
        gripper touches with: every pad has a surface of its own, by which its shapes are known wherever they are.
        """
        loader = self.scene.create_urdf_loader()
        loader.name, loader.fix_root_link = self.uid, True
        loader.load_multiple_collisions_from_file = True
        config = sapien_utils.parse_urdf_config(self.urdf_config)  # type: ignore[arg-type]
        sapien_utils.apply_urdf_config(loader, config)
        builder = loader.parse(str(self.urdf_path))["articulation_builders"][0]
        self.seen_links = tuple(link.name for link in builder.link_builders if link.visual_records)
        surfaces = {link.name: [shape.material for shape in link.collision_records] for link in builder.link_builders}
        self.frames: Frames = lean(builder) if self.lean and not self.scene.can_render() else {}
        builder.initial_pose = initial_pose
        self.robot: Articulation = builder.build()
        pads = {name for side in self.model.pads for name in side.links}
        self.pad_shapes = {name: self._shapes_of(name, surfaces[name]) for name in pads}
        self.robot_link_names = [link.name for link in self.robot.get_links()]

    def _shapes_of(self, name: str, surfaces: list[Any]) -> tuple[Any, ...]:
        """Give the collision shapes that a link of the URDF brought along, by their surfaces."""
        carrier: Any = self.robot.links_map[self.frame(name)[0]]._objs[0]
        return tuple(shape for shape in carrier.collision_shapes if shape.physical_material in surfaces)

    @property
    def _controller_configs(self) -> dict[str, Any]:
        model, joints = self.model, [joint.name for joint in self.robot.active_joints]
        config = PlannedControllerConfig(
            joints, model.make_planner, model.tcp_link, model.motors, str(self.urdf_path), self.frame(model.tcp_link)
        )
        return {"raw": config}

    def frame(self, link: str) -> tuple[str, sapien.Pose]:
        """Say where a link of the URDF is: on which link that was built, and its pose on that."""
        return self.frames.get(link, (link, sapien.Pose()))

    @property
    def _sensor_configs(self) -> list[CameraConfig]:
        camera = self.model.camera
        carrier, pose = self.frame(camera.link)
        return [
            CameraConfig(
                uid=camera.name,
                pose=Pose.create(pose * camera.local_pose),
                width=camera.width,
                height=camera.height,
                near=camera.near,
                far=camera.far,
                intrinsic=camera.intrinsic,
                mount=self.robot.links_map[carrier],
            )
        ]

    def _after_loading_articulation(self) -> None:
        if self.model.after_loading is not None:
            for articulation in self.robot._objs:
                self.model.after_loading(articulation)

    def _after_init(self) -> None:
        for name, armature in self.model.armatures.items():
            for joint in self.robot.active_joints_map[name]._objs:
                joint.set_armature(np.array([armature], dtype=np.float32))
        order = [joint.name for joint in self.robot.active_joints]
        self._meeting, self._near = self.model.meeting or 0.0, False
        names = self.model.fingers if self.model.meeting is not None else ()
        self._at = [order.index(name) for name in names]
        drives = [self.robot.active_joints[index]._objs[0] for index in self._at]
        self._fingers = [(drive, np.array(drive.limits).tolist()) for drive in drives]
        self.to_ours = np.array([self.model.joints.index(name) for name in order])
        self.to_theirs = np.array([order.index(name) for name in self.model.joints])

    @property
    def tcp_pose(self) -> Pose:
        """The tool's pose in the world, one row per environment."""
        carrier, pose = self.frame(self.model.tcp_link)
        return self.robot.links_map[carrier].pose * Pose.create(pose, device=self.device)

    def part_fingers(self) -> None:
        """Give the fingers their own limits back."""
        for joint, limits in self._fingers:
            joint.set_limits(limits)
        self._near = False

    def _keep_fingers_apart(self, robot: Any) -> None:
        """Let each finger move by half of what is left between them, where they are about to meet."""
        (one, first), (other, second) = self._fingers
        qpos = robot.qpos
        here, there = float(qpos[self._at[0]]), float(qpos[self._at[1]])
        gap = self._meeting - here - there
        if gap > NEAR:
            if self._near:
                self.part_fingers()
            return
        self._near = True
        one.set_limits([[first[0][0], min(here + gap / 2, first[0][1])]])
        other.set_limits([[second[0][0], min(there + gap / 2, second[0][1])]])

    def before_simulation_step(self) -> None:
        self.controller.before_simulation_step()
        if not self.scene.gpu_sim_enabled:
            self.before_physics()

    def before_physics(self) -> None:
        """Keep the fingers apart and cancel the forces of the robot's own motion, in one scene on a CPU."""
        robot: Any = self.robot._objs[0]
        if self._fingers:
            self._keep_fingers_apart(robot)
        if self.model.balance_coriolis:
            robot.set_qf(robot.compute_passive_force(False, True))  # gravity, Coriolis and centrifugal


def _urdf_config(model: RobotModel) -> dict[str, Any]:
    materials, links = {}, {}
    for link, surface in model.surfaces.items():
        materials[link] = {
            "static_friction": surface.static_friction,
            "dynamic_friction": surface.dynamic_friction,
            "restitution": 0.0,
        }
        links[link] = {
            "material": link,
            "patch_radius": surface.patch_radius,
            "min_patch_radius": surface.min_patch_radius,
        }
    return {"_materials": materials, "link": links}


@cache
def _agent_class(name: str, urdf: str, lean: bool) -> type[ModelAgent]:
    model, uid = robot_model(name), f"simpler_{name}"
    fields = {"uid": uid, "model": model, "urdf_path": urdf, "urdf_config": _urdf_config(model), "lean": lean}
    return type(f"Simpler_{name}", (ModelAgent,), fields)


def agent_class(name: str, urdf: Path, lean: bool = False) -> type[ModelAgent]:
    """Give the ManiSkill agent of the original's robot of that name, loaded from that URDF.

    A lean one has no link that cannot move, in a scene where nothing is drawn.
    """
    return _agent_class(name, str(urdf), lean)
