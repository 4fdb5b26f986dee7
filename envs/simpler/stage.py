"""Render what a SimplerEnv world recorded: a second set of the scene that is posed and photographed, never simulated.

Only what is seen is loaded here, and bodies are posed by their links, so that nothing is rendered unless somebody
looks, a recorded state gives bitwise the picture it gave live, and physics can be renewed without the renderer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sapien
import sapien.wrapper.actor_builder
import sapien.wrapper.urdf_loader
from mani_skill.render.shaders import PREBUILT_SHADER_CONFIGS, set_shader_pack

from st4vla.envs.simpler import build as building
from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.overlay import compose, photograph
from st4vla.envs.simpler.robot import robot_model
from st4vla.envs.simpler.setup import Build, View

BACKGROUND_NAMES = ("arena",)
SHADERS = {
    # Half the cost of ManiSkill's usual shaders, and within 0.5 of 255 of what they draw.
    "default": PREBUILT_SHADER_CONFIGS["minimal"],
    # The original's 32 samples of 8 bounces, denoised; on a GPU (written and not yet run).
    "rt": replace(
        PREBUILT_SHADER_CONFIGS["rt"],
        shader_pack_config={
            "ray_tracing_samples_per_pixel": 32,
            "ray_tracing_path_depth": 8,
            "ray_tracing_denoiser": "optix",
        },
    ),
}


@dataclass(frozen=True)
class Frame:
    """One picture as the policy sees it.

    Attributes:
        rgb: uint8 [H,W,3], the photograph laid over the background.
        segmentation: int16 [H,W]; index into the stage's `names` + 1, 0 where nothing is.
        intrinsic: float64 [3,3], pixels.
        extrinsic: float64 [3,4], world to camera; x right, y down, z forward.
    """

    rgb: np.ndarray
    segmentation: np.ndarray
    intrinsic: np.ndarray
    extrinsic: np.ndarray


class Stage:
    """Hold the rendered twin of one build; its bodies are the robot's links, the cabinet's links and the things.

    Attributes:
        names: of the bodies, "robot/LINK", "cabinet/LINK" or the thing's model.
    """

    def __init__(self, build: Build, tree: AssetTree):
        set_shader_pack(SHADERS[build.shader])
        self._ray_traced = build.shader == "rt"
        self._tree = tree
        self._scene = sapien.Scene([sapien.render.RenderSystem()])
        self._entities: dict[str, sapien.Entity] = {}
        self._add_arena(build)
        self._add_robot(build)
        if build.cabinet is not None:
            self._add_links("cabinet", str(tree.station(build.cabinet.station)), shiny=False)
        self._add_things(build)
        building.add_lights(self._scene, build.lights)
        self.names = tuple(name for name in self._entities if name not in BACKGROUND_NAMES)
        self._camera = self._mount(build)

    def _add(self, name: str, component: sapien.render.RenderBodyComponent) -> sapien.Entity:
        entity = sapien.Entity()
        entity.name = name
        entity.add_component(component)
        self._scene.add_entity(entity)
        self._entities[name] = entity
        return entity

    def _add_arena(self, build: Build) -> None:
        builder = sapien.wrapper.actor_builder.ActorBuilder()
        building.add_arena(builder, build.arena, self._tree, solid=False, seen=True)
        if builder.visual_records:
            self._add("arena", builder.build_render_component()).set_pose(building.arena_pose(build.arena))

    def _add_robot(self, build: Build) -> None:
        self._add_links("robot", str(self._tree.robot(build.robot, build.recolouring)), shiny=build.shiny)

    def _add_links(self, owner: str, urdf: str, shiny: bool) -> None:
        loader = sapien.wrapper.urdf_loader.URDFLoader()
        loader.set_scene(self._scene)
        for link in loader.parse(urdf)[0][0].link_builders:
            if link.visual_records:
                body = link.build_render_component()
                if shiny:
                    building.make_shiny(body)
                self._add(f"{owner}/{link.name}", body)

    def _add_things(self, build: Build) -> None:
        for thing in build.things:
            builder = sapien.wrapper.actor_builder.ActorBuilder()
            building.add_thing(builder, thing, build.family, self._tree, solid=False, seen=True)
            body = builder.build_render_component()
            if thing.matte:
                building.make_matte(body)
            self._add(thing.model, body)

    def _mount(self, build: Build) -> Any:
        model = robot_model(build.robot).camera
        camera = sapien.render.RenderCameraComponent(model.width, model.height)
        camera.set_perspective_parameters(model.near, model.far, *model.focal, *model.centre, 0.0)
        entity = sapien.Entity()
        entity.name = model.name
        entity.add_component(camera)
        self._scene.add_entity(entity)
        self._camera_entity = entity
        return camera

    def pose(self, rows: Mapping[str, np.ndarray], camera: np.ndarray) -> None:
        """Put every body (pose [7] by name; those that the stage does not show are passed over) and the camera."""
        for name in self.names:
            row = rows[name]
            self._entities[name].set_pose(as_pose(row))
        self._camera_entity.set_pose(as_pose(camera))
        self._scene.update_render()

    def photograph(self, view: View) -> Frame:
        """Take the picture of what was posed last."""
        camera = self._camera
        camera.take_picture()
        colour = camera.get_picture("Color")[..., :3]
        if self._ray_traced:
            ids = camera.get_picture("Segmentation")[..., 1]
        else:
            ids = camera.get_picture("PositionSegmentation")[..., 3]
        table = np.zeros(max(int(ids.max()), *(e.per_scene_id for e in self._entities.values())) + 1, dtype=np.int16)
        for number, name in enumerate(self.names, start=1):
            table[self._entities[name].per_scene_id] = number
        segmentation = table[ids]
        photo, kept = None, None
        if view.overlay:
            photo = photograph(self._tree.overlay(view.overlay), camera.width, camera.height)
            kept = self._kept(view)[segmentation]
        return Frame(
            rgb=compose(colour, kept, photo, "debug" in view.mode),
            segmentation=segmentation,
            intrinsic=camera.get_intrinsic_matrix().astype(np.float64),
            extrinsic=camera.get_extrinsic_matrix()[:3].astype(np.float64),
        )

    def _kept(self, view: View) -> np.ndarray:
        """Say of every segment whether it is foreground: bool, indexed as `Frame.segmentation`."""
        only_robot = "object" in view.mode and "debug" not in view.mode
        kept = [False]
        for name in self.names:
            owner = name.split("/")[0]
            kept.append(owner == "robot" if only_robot else owner not in view.covered)
        return np.array(kept)

    def close(self) -> None:
        """Give the scene back; the renderer stays."""
        for entity in list(self._scene.entities):
            self._scene.remove_entity(entity)
        self._entities = {}


def as_pose(row: np.ndarray) -> sapien.Pose:
    """Give a row [7] as a pose."""
    values: Any = row
    return sapien.Pose(values[:3], values[3:])


def rows_of(poses: Sequence[sapien.Pose]) -> np.ndarray:
    """Give poses as float32 [N,7]."""
    return np.array([[*pose.p, *pose.q] for pose in poses], dtype=np.float32)
