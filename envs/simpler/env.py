"""Build SimplerEnv's scenes as one ManiSkill environment: a `Build` says what is in it, a `Layout` how it starts.

On CPU physics a reset lets objects fall exactly as the original does. On a GPU (`num_envs > 1`,
`sim_backend="physx_cuda"`; written, not yet run) a body's motions cannot be locked while it falls, PCM cannot be
turned off, and contacts are asked for pair by pair: see docs/simplerenv.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sapien
import sapien.physx
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs import Actor, Articulation, Pose
from mani_skill.utils.structs.types import DefaultMaterialsConfig, SceneConfig, SimConfig

from st4vla.envs.simpler import build as building
from st4vla.envs.simpler.agent import ModelAgent, agent_class
from st4vla.envs.simpler.assets import AssetTree, find_tree
from st4vla.envs.simpler.settle import body_of, settle
from st4vla.envs.simpler.setup import Build, Layout

ENV_ID = "St4vlaSimpler-v1"
AWAY = sapien.Pose([-10.0, 0.0, 0.0])
DAMPING = 0.1


@register_env(ENV_ID, max_episode_steps=200)
class SimplerEnv(BaseEnv):
    """One build of SimplerEnv; `reset(options={"layouts": [...]})` sets out one layout per row.

    A lean one's robot has no link that cannot move (`lean.py`); it is for a scene that is not drawn, and `SceneView`.
    """

    SUPPORTED_REWARD_MODES = ("sparse", "none")
    agent: ModelAgent

    def __init__(
        self,
        *args: Any,
        build: Build,
        layout: Layout,
        tree: AssetTree | None = None,
        lean: bool = False,
        **kwargs: Any,
    ):
        self.build, self.tree = build, tree or find_tree()
        self.layouts: list[Layout] = [layout] * int(kwargs.get("num_envs", 1))
        self._lean = lean
        super().__init__(*args, robot_uids=self._robot(), **kwargs)

    def _robot(self) -> Any:
        """Give the class of the build's robot; recolourings differ in what is seen only."""
        return agent_class(self.build.robot, self.tree.robot(self.build.robot, self.build.recolouring), self._lean)

    @property
    def _default_sim_config(self) -> SimConfig:
        return SimConfig(
            sim_freq=self.build.sim_hz,
            control_freq=self.build.control_hz,
            spacing=20,
            default_materials_config=DefaultMaterialsConfig(1.0, 1.0, 0.0),
            scene_config=SceneConfig(
                contact_offset=self.build.contact_offset,
                solver_position_iterations=25,
                solver_velocity_iterations=1,
                enable_pcm=False,
                enable_tgs=True,
                enable_enhanced_determinism=True,
            ),
        )

    @property
    def _default_sensor_configs(self) -> list[Any]:
        return []

    @property
    def _default_human_render_camera_configs(self) -> Any:
        return []

    def _load_agent(self, options: dict, *args: Any, **kwargs: Any) -> None:
        self.robot_uids = self._robot()  # the scene may be built anew for another build
        super()._load_agent(options, AWAY)
        if self.build.shiny and self.scene.can_render():
            for link in self.agent.robot.links:
                for body in link._bodies:
                    component = body.entity.find_component_by_type(sapien.render.RenderBodyComponent)
                    if component is not None:
                        building.make_shiny(component)

    def _load_scene(self, options: dict) -> None:
        build, seen = self.build, self.scene.can_render()
        self.things: dict[str, Actor] = {}
        builder = self.scene.create_actor_builder()
        building.add_arena(builder, build.arena, self.tree, solid=True, seen=seen)
        builder.set_initial_pose(building.arena_pose(build.arena))
        self.arena: Actor | None = None
        if builder.collision_records or builder.visual_records:
            self.arena = builder.build_static("arena")
        for number, thing in enumerate(build.things):
            self.things[thing.model] = self._load_thing(number)
        self.cabinet: Articulation | None = self._load_cabinet() if build.cabinet is not None else None

    def _load_thing(self, number: int) -> Actor:
        thing = self.build.things[number]
        builder = self.scene.create_actor_builder()
        building.add_thing(builder, thing, self.build.family, self.tree, solid=True, seen=self.scene.can_render())
        start = (
            sapien.Pose([number, 10.0, 5.0]) if thing.fixed is None else sapien.Pose(thing.fixed[:3], thing.fixed[3:])
        )
        builder.set_initial_pose(start)
        if thing.fixed is not None:
            return self._fix(builder, thing.model)
        actor = builder.build_dynamic(thing.model)
        if thing.damped:
            actor.set_linear_damping(DAMPING)
            actor.set_angular_damping(DAMPING)
        if thing.matte and self.scene.can_render():
            for entity in actor._objs:
                building.make_matte(entity.find_component_by_type(sapien.render.RenderBodyComponent))
        return actor

    def _fix(self, builder: Any, name: str) -> Actor:
        """Build an object that stays put: as in the original a body with every motion locked, on a GPU kinematic."""
        if self.gpu_sim_enabled:
            return builder.build_kinematic(name)
        actor = builder.build_dynamic(name)
        body_of(actor).set_locked_motion_axes([True] * 6)
        return actor

    def _load_cabinet(self) -> Articulation:
        assert self.build.cabinet is not None
        loader = self.scene.create_urdf_loader()
        loader.fix_root_link, loader.name = True, "cabinet"
        builder = loader.parse(str(self.tree.station(self.build.cabinet.station)))["articulation_builders"][0]
        builder.initial_pose = building.CABINET_POSE
        cabinet = builder.build("cabinet")
        for joint in cabinet.active_joints:
            joint.set_friction(self.build.cabinet.joint_friction)
            joint.set_drive_properties(0.0, 1.0)
        return cabinet

    def _load_lighting(self, options: dict) -> None:
        for scene in self.scene.sub_scenes:
            building.add_lights(scene, self.build.lights)

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict) -> None:
        rows, layouts = env_idx.tolist(), options.get("layouts")
        for place, row in enumerate(rows):
            self.layouts[row] = layouts[place] if layouts else self.layouts[row]
        chosen = [self.layouts[row] for row in rows]
        self._set_cabinet([replace(layout, cabinet_qpos=(0.0, 0.0, 0.0)) for layout in chosen])
        self._pose_robot(chosen)
        robot: Any = self.agent.robot
        robot.set_pose(Pose.create(AWAY, device=self.device))
        scene: Any = self
        settle(scene, chosen, env_idx)
        self._pose_robot(chosen)
        self._set_cabinet(chosen)

    def _pose_robot(self, layouts: Sequence[Layout]) -> None:
        """Put the robot where it starts, at rest, its drives told to stay."""
        robot: Any = self.agent.robot
        ours = self.agent.to_ours
        qpos = np.array([layout.qpos for layout in layouts])[:, ours]
        batch = torch.tensor(qpos, dtype=torch.float32, device=self.device)
        robot.set_qpos(batch)
        robot.set_qvel(torch.zeros_like(batch))
        robot.set_qf(torch.zeros_like(batch))
        poses = np.array([layout.robot_pose for layout in layouts])
        robot.set_pose(Pose.create(torch.tensor(poses, dtype=torch.float32, device=self.device)))
        robot.set_joint_drive_targets(batch, robot.active_joints)
        robot.set_joint_drive_velocity_targets(torch.zeros_like(batch), robot.active_joints)
        self.agent.part_fingers()
        self.agent.controller.reset()

    def _set_cabinet(self, layouts: Sequence[Layout]) -> None:
        if self.cabinet is None:
            return
        names = [joint.name for joint in self.cabinet.active_joints]
        order = [("top", "middle", "bottom").index(name.removesuffix("_drawer_joint")) for name in names]
        qpos = np.array([layout.cabinet_qpos for layout in layouts])[:, order]
        batch = torch.tensor(qpos, dtype=torch.float32, device=self.device)
        self.cabinet.set_qpos(batch)
        self.cabinet.set_qvel(torch.zeros_like(batch))

    def run_control_step(self, action: np.ndarray) -> None:
        """Execute one raw action [A] in the one scene on a CPU, without ManiSkill's observations and rewards."""
        controller: Any = self.agent.controller
        controller.command(action[None])
        controller.play(self.scene.px.step, self.build.substeps, self.agent.before_physics)

    def evaluate(self) -> dict[str, torch.Tensor]:
        return {}

    def _get_obs_extra(self, info: dict) -> dict[str, torch.Tensor]:
        return {"tcp_pose": self.agent.tcp_pose.raw_pose}
