"""Turn the description of a robot into a ManiSkill agent."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.sensors.camera import CameraConfig

from st4vla.envs.simpler.control import PlannedControllerConfig
from st4vla.envs.simpler.robot import RobotModel, robot_model


class ModelAgent(BaseAgent):
    """A robot built from its model; the concrete classes come from `agent_class`."""

    uid = "simpler"
    model: RobotModel
    load_multiple_collisions = True

    @property
    def _controller_configs(self) -> dict[str, Any]:
        model = self.model
        return {
            "raw": PlannedControllerConfig(
                [joint.name for joint in self.robot.active_joints], model.make_planner, model.tcp_link, model.motors
            )
        }

    @property
    def _sensor_configs(self) -> list[CameraConfig]:
        camera = self.model.camera
        return [
            CameraConfig(
                uid=camera.name,
                pose=camera.local_pose,
                width=camera.width,
                height=camera.height,
                near=camera.near,
                far=camera.far,
                intrinsic=camera.intrinsic,
                mount=self.robot.links_map[camera.link],
            )
        ]

    def _after_loading_articulation(self) -> None:
        if self.model.after_loading is not None:
            for articulation in self.robot._objs:
                self.model.after_loading(articulation)

    def _after_init(self) -> None:
        order = [joint.name for joint in self.robot.active_joints]
        self.to_ours = np.array([self.model.joints.index(name) for name in order])
        self.to_theirs = np.array([order.index(name) for name in self.model.joints])
        self.tcp = self.robot.links_map[self.model.tcp_link]

    def before_simulation_step(self) -> None:
        self.controller.before_simulation_step()
        if self.model.balance_coriolis and not self.scene.gpu_sim_enabled:
            robot = self.robot._objs[0]
            robot.set_qf(robot.compute_passive_force(gravity=False, coriolis_and_centrifugal=True))


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
def _agent_class(name: str, urdf: str) -> type[ModelAgent]:
    model = robot_model(name)
    return type(
        f"Simpler_{name}",
        (ModelAgent,),
        {"uid": f"simpler_{name}", "model": model, "urdf_path": urdf, "urdf_config": _urdf_config(model)},
    )


def agent_class(name: str, urdf: Path) -> type[ModelAgent]:
    """Give the ManiSkill agent of the original's robot of that name, loaded from that URDF."""
    return _agent_class(name, str(urdf))
