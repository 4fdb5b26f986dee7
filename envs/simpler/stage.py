"""Render what a SimplerEnv world recorded: a second set of the scene that is posed and photographed, never simulated.

Only what is seen is loaded here, and bodies are posed by their links, so that nothing is rendered unless somebody
looks, a recorded state gives bitwise the picture it gave live, and physics can be renewed without the renderer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
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
from st4vla.envs.simpler.shading import PICTURES, Shading, can_shade, shader_folder

BACKGROUND_NAMES = ("arena",)
SHADERS = {
    # Half the cost of ManiSkill's usual shaders, and within 0.5 of 255 of what they draw; ours cost half of these.
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
        segmentation: uint8 [H,W]; index into the stage's `names` + 1, 0 where nothing is.
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
        lean: whether our shaders draw it.
    """

    def __init__(self, build: Build, tree: AssetTree, lean: bool = True):
        """Load what is seen.

        Args:
            build: what there is.
            tree: where its files are.
            lean: draw by our shaders where they can draw this build (`shading.can_shade`), else by SAPIEN's.
        """
        set_shader_pack(SHADERS[build.shader])
        self._ray_traced = build.shader == "rt"
        self._tree = tree
        self._scene = sapien.Scene([sapien.render.RenderSystem()])
        self._entities: dict[str, sapien.Entity] = {}
        self._bodies: dict[str, sapien.render.RenderBodyComponent] = {}
        self._shown: dict[str, Shading] = {}
        self._add_arena(build)
        self._add_robot(build)
        if build.cabinet is not None:
            self._add_links("cabinet", str(tree.station(build.cabinet.station)), shiny=False)
        self._add_things(build)
        building.add_lights(self._scene, build.lights)
        self.names = tuple(name for name in self._entities if name not in BACKGROUND_NAMES)
        self.lean = lean and can_shade(build, self._bodies.values())
        self._numbers = self._number()
        self._camera = self._mount(build)

    def _add(self, name: str, component: sapien.render.RenderBodyComponent) -> sapien.Entity:
        entity = sapien.Entity()
        entity.name = name
        entity.add_component(component)
        self._scene.add_entity(entity)
        self._entities[name], self._bodies[name] = entity, component
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
        for name, form in PICTURES.items() if self.lean else ():
            sapien.render.set_picture_format(name, form)
        shaders = str(shader_folder()) if self.lean else ""
        camera = sapien.render.RenderCameraComponent(model.width, model.height, shaders)
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
        camera, kept = self._camera, self._kept(view)
        if self.lean:
            self._show(view, kept)
        camera.take_picture()
        segmentation = self._segmentation()
        photo, foreground = None, None
        if view.overlay:
            photo = photograph(self._tree.overlay(view.overlay), camera.width, camera.height)
            foreground = cv2.LUT(segmentation, kept)
        return Frame(
            rgb=compose(camera.get_picture("Color"), foreground, photo, "debug" in view.mode),
            segmentation=segmentation,
            intrinsic=camera.get_intrinsic_matrix().astype(np.float64),
            extrinsic=camera.get_extrinsic_matrix()[:3].astype(np.float64),
        )

    def _show(self, view: View, kept: np.ndarray) -> None:
        """Say how each body is to be drawn for a view: what the photograph covers is not shaded."""
        covers = bool(view.overlay) and "debug" not in view.mode
        shown = {name: Shading.HIDDEN if covers else Shading.SEEN for name in self._bodies}
        for number, name in enumerate(self.names, start=1):
            shown[name] = Shading.NAMED if covers and not kept[number] else Shading.SEEN
        for name, shading in shown.items() if shown != self._shown else ():
            self._bodies[name].shading_mode = int(shading)
            self._bodies[name].visibility = 0.0  # SAPIEN takes notice of a new mode when a body comes into sight
            self._bodies[name].visibility = 1.0
        self._shown = shown

    def _segmentation(self) -> np.ndarray:
        """Give what the picture that was taken shows where, as `Frame.segmentation`."""
        if self.lean:
            return cv2.LUT(cv2.extractChannel(self._camera.get_picture("Segments"), 0), self._numbers)
        picture, channel = ("Segmentation", 1) if self._ray_traced else ("PositionSegmentation", 3)
        return self._numbers[self._camera.get_picture(picture)[..., channel]]

    def _number(self) -> np.ndarray:
        """Give the number in `names`, from 1 on, of every id that SAPIEN may have given a body; uint8."""
        ids = {name: entity.per_scene_id for name, entity in self._entities.items()}
        numbers = np.zeros(max(256, *(number + 1 for number in ids.values())), dtype=np.uint8)
        for number, name in enumerate(self.names, start=1):
            numbers[ids[name]] = number
        return numbers

    def _kept(self, view: View) -> np.ndarray:
        """Say of every segment whether it is foreground: uint8 [256] of 0 and 1, indexed by `Frame.segmentation`."""
        only_robot = "object" in view.mode and "debug" not in view.mode
        kept = np.zeros(256, dtype=np.uint8)
        for number, name in enumerate(self.names, start=1):
            owner = name.split("/")[0]
            kept[number] = owner == "robot" if only_robot else owner not in view.covered
        return kept

    def close(self) -> None:
        """Give the scene back; the renderer stays."""
        for entity in list(self._scene.entities):
            self._scene.remove_entity(entity)
        self._entities, self._bodies = {}, {}


def as_pose(row: np.ndarray) -> sapien.Pose:
    """Give a row [7] as a pose."""
    values: Any = row
    return sapien.Pose(values[:3], values[3:])


def rows_of(poses: Sequence[sapien.Pose]) -> np.ndarray:
    """Give poses as float32 [N,7]."""
    return np.array([[*pose.p, *pose.q] for pose in poses], dtype=np.float32)
