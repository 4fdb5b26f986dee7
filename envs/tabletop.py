"""Build the tabletop scenes as the ManiSkill environment `St4vlaTabletop-v1`.

The whole library is built once; what an episode does not use lies on a shelf out of sight. A reset only moves things,
so the same code serves one world on a CPU and batches on a GPU (`num_envs > 1`, `sim_backend="physx_cuda"`; the GPU
path is written and not yet run).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import sapien
import sapien.physx
import sapien.render
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.building.actor_builder import ActorBuilder
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs import Pose
from mani_skill.utils.structs.actor import Actor
from mani_skill.utils.structs.types import SceneConfig, SimConfig

from st4vla.envs import objects, tasks
from st4vla.envs.control import EMBODIMENT, FINGER_CLOSED_M, FINGER_OPEN_M, HOME_QPOS
from st4vla.envs.layout import BASE_X, Scene, draw_scene

ENV_ID = "St4vlaTabletop-v1"
CONTROL_HZ, SIM_HZ = 5, 100
THIRD_PERSON_EYE, THIRD_PERSON_TARGET, THIRD_PERSON_FOV = (0.52, 0.0, 0.43), (-0.05, 0.0, 0.03), 0.76
SHELF_Z = -3.0
TABLE_RGB, FLOOR_RGB = (0.30, 0.20, 0.13), (0.14, 0.15, 0.17)
SOLID_DENSITY = 600.0  # kg/m3, a hard wood


@register_env(ENV_ID, max_episode_steps=max(tasks.MAX_STEPS.values()))
class TabletopEnv(BaseEnv):
    """One task's scenes with the Panda; `reset(options={"scenes": [...]})` sets given scenes, else seeds draw them."""

    SUPPORTED_ROBOTS = [EMBODIMENT]
    SUPPORTED_REWARD_MODES = ("normalized_dense", "sparse", "none")
    agent: Any

    def __init__(self, *args: Any, task: str = "reach", variant: str = "default", image_size: int = 128, **kwargs: Any):
        self.task, self.variant, self.image_size = task, variant, image_size
        kwargs.setdefault("robot_uids", EMBODIMENT)
        super().__init__(*args, **kwargs)

    @property
    def _default_sim_config(self) -> SimConfig:
        return SimConfig(
            sim_freq=SIM_HZ,
            control_freq=CONTROL_HZ,
            scene_config=SceneConfig(enable_enhanced_determinism=True, solver_position_iterations=15),
        )

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        pose = sapien_utils.look_at(THIRD_PERSON_EYE, THIRD_PERSON_TARGET)
        size = self.image_size
        return [CameraConfig("third_person", pose, size, size, THIRD_PERSON_FOV, 0.01, 10.0)]

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        pose = sapien_utils.look_at(THIRD_PERSON_EYE, THIRD_PERSON_TARGET)
        return CameraConfig("render_camera", pose, 512, 512, THIRD_PERSON_FOV, 0.01, 10.0)

    def _load_agent(self, options: dict, *args: Any, **kwargs: Any) -> None:
        super()._load_agent(options, sapien.Pose(p=[BASE_X, 0.0, 0.0]))

    def _load_scene(self, options: dict) -> None:
        _build_static(self.scene.create_actor_builder(), "table", (0.55, 0.75, 0.02), (-0.15, 0.0, -0.02), TABLE_RGB)
        _build_static(self.scene.create_actor_builder(), "floor", (20.0, 20.0, 0.01), (0.0, 0.0, -0.80), FLOOR_RGB)
        _build_static(self.scene.create_actor_builder(), "shelf", (3.0, 3.0, 0.05), (0.0, 0.0, SHELF_Z - 0.05), None)
        self.shelf_poses = _shelf_poses()
        self.things: list[Actor] = [
            _build_thing(self.scene.create_actor_builder(), thing, pose)
            for thing, pose in zip(objects.LIBRARY, self.shelf_poses, strict=True)
        ]

    def _load_lighting(self, options: dict) -> None:
        self.scene.set_ambient_light([0.45, 0.45, 0.45])
        self.scene.add_directional_light([-0.5, 0.35, -1.0], [1.5, 1.48, 1.42], shadow=self.enable_shadow)

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict) -> None:
        rows = env_idx.tolist()
        scenes: Sequence[Scene] = options.get("scenes") or [
            draw_scene(self.task, self.variant, int(self._episode_seed[row])) for row in rows
        ]
        if len(rows) == self.num_envs:
            self.scenes = list(scenes)
        else:
            for row, scene in zip(rows, scenes, strict=True):
                self.scenes[row] = scene
        self._set_out(scenes)
        self.agent.reset(torch.tensor(np.tile(HOME_QPOS, (len(rows), 1)), dtype=torch.float32, device=self.device))
        self._remember(env_idx)

    def _set_out(self, scenes: Sequence[Scene]) -> None:
        """Put every thing of the library where its scene wants it, or on the shelf."""
        poses = np.tile(self.shelf_poses, (len(scenes), 1, 1))
        for row, scene in enumerate(scenes):
            for thing, pose in zip(scene.things, scene.poses, strict=True):
                poses[row, objects.INDEX[thing.name]] = pose
        batch = torch.tensor(poses, dtype=torch.float32, device=self.device)
        for index, actor in enumerate(self.things):
            actor.set_pose(Pose.create(batch[:, index]))
            if objects.LIBRARY[index].shape.kind == "solid":
                actor.set_linear_velocity(torch.zeros(3, device=self.device))
                actor.set_angular_velocity(torch.zeros(3, device=self.device))

    def _remember(self, env_idx: torch.Tensor) -> None:
        """Index what the judges need by episode: library indices [B,M] of targets and destinations, and the start."""
        targets = [[objects.INDEX[name] for name in scene.names(scene.targets)] for scene in self.scenes]
        places = [
            [objects.INDEX[name] for name in scene.names(scene.destinations)] or [0] * len(scene.targets)
            for scene in self.scenes
        ]
        heights = [[objects.LIBRARY[index].shape.half_height for index in row] for row in targets]
        directions = np.stack([scene.direction for scene in self.scenes])
        self.target_index = torch.tensor(targets, device=self.device)
        self.place_index = torch.tensor(places, device=self.device)
        self.half_heights = torch.tensor(heights, dtype=torch.float32, device=self.device)
        self.directions = torch.tensor(directions, dtype=torch.float32, device=self.device)
        starts = self._positions(self.target_index)
        if len(env_idx) == self.num_envs:
            self.starts, self.start_tcp = starts, self.agent.tcp_pose.p.clone()
        else:
            self.starts[env_idx], self.start_tcp[env_idx] = starts[env_idx], self.agent.tcp_pose.p[env_idx]

    def _positions(self, index: torch.Tensor) -> torch.Tensor:
        """Gather positions [B,M,3] of things by library index [B,M]."""
        everything = torch.stack([actor.pose.p for actor in self.things], dim=1)
        return torch.gather(everything, 1, index[..., None].expand(-1, -1, 3))

    def situation(self) -> tasks.Situation:
        """Give what the judges look at, batched over the environments."""
        return tasks.Situation(
            tcp=self.agent.tcp_pose.p,
            opening=self.agent.robot.get_qpos()[:, -2:].mean(-1) / FINGER_OPEN_M,
            targets=self._positions(self.target_index),
            half_heights=self.half_heights,
            starts=self.starts,
            start_tcp=self.start_tcp,
            destinations=self._positions(self.place_index),
            direction=self.directions,
        )

    def evaluate(self) -> dict[str, torch.Tensor]:
        outcome = tasks.JUDGES[self.scenes[0].task](self.situation())
        return {"success": outcome.success, "partial_credit": outcome.credit}

    def compute_normalized_dense_reward(self, obs: Any, action: torch.Tensor, info: dict) -> torch.Tensor:
        return info["partial_credit"]

    def _get_obs_extra(self, info: dict) -> dict[str, torch.Tensor]:
        if "state" not in self.obs_mode:
            return {"tcp_pose": self.agent.tcp_pose.raw_pose}
        situation = self.situation()
        return {
            "tcp_pose": self.agent.tcp_pose.raw_pose,
            "targets": situation.targets.flatten(1),
            "destinations": situation.destinations.flatten(1),
            "direction": situation.direction,
        }


def opening_of(finger_m: float) -> float:
    """Give the gripper command, 0 closed .. 1 open, that drives each finger to `finger_m`."""
    return (finger_m - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M)


def _shelf_poses() -> np.ndarray:
    """Spread the library over the shelf: [N,7]."""
    poses = np.zeros((len(objects.LIBRARY), 7))
    for index, thing in enumerate(objects.LIBRARY):
        poses[index] = [
            (index % 6) * 0.4 - 1.0,
            (index // 6) * 0.4 - 1.0,
            SHELF_Z + thing.shape.half_height,
            1,
            0,
            0,
            0,
        ]
    return poses


def _material(rgb: tuple[float, float, float]) -> sapien.render.RenderMaterial:
    return sapien.render.RenderMaterial(base_color=[*rgb, 1.0], roughness=0.7, specular=0.3)


def _build_static(
    builder: ActorBuilder,
    name: str,
    half_size: tuple[float, float, float],
    centre: tuple[float, float, float],
    rgb: tuple[float, float, float] | None,
) -> None:
    """Build one fixed slab; without a colour it is invisible."""
    builder.add_box_collision(half_size=half_size)
    if rgb is not None and builder.scene.can_render():
        builder.add_box_visual(half_size=half_size, material=_material(rgb))
    builder.set_initial_pose(sapien.Pose(p=centre))
    builder.build_static(name)


def _build_thing(builder: ActorBuilder, thing: objects.Thing, pose: np.ndarray) -> Actor:
    """Build one thing of the library: solids move freely, containers stay where they are put."""
    upright = [0.7071068, 0.0, -0.7071068, 0.0]  # SAPIEN's cylinders lie along x
    for part in thing.shape.parts:
        turn = upright if part.shape == "cylinder" else [1.0, 0.0, 0.0, 0.0]
        where = sapien.Pose(p=part.centre, q=turn)
        if part.shape == "box":
            builder.add_box_collision(where, part.size, density=SOLID_DENSITY)
        else:
            builder.add_cylinder_collision(where, part.size[0], part.size[1], density=SOLID_DENSITY)
        if builder.scene.can_render():
            _add_visual(builder, part, where, thing.rgb)
    builder.set_initial_pose(sapien.Pose(p=pose[:3].tolist(), q=pose[3:].tolist()))
    return builder.build_dynamic(thing.name) if thing.shape.kind == "solid" else builder.build_kinematic(thing.name)


def _add_visual(builder: ActorBuilder, part: objects.Part, where: sapien.Pose, rgb: tuple[float, float, float]) -> None:
    if part.shape == "box":
        builder.add_box_visual(where, part.size, _material(rgb))
    else:
        builder.add_cylinder_visual(where, part.size[0], part.size[1], _material(rgb))


def make_env(task: str, **kwargs: Any) -> TabletopEnv:
    """Make one environment of this module without ManiSkill's wrappers."""
    return gymnasium.make(ENV_ID, task=task, **kwargs).unwrapped  # type: ignore[return-value]
