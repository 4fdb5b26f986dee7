"""Put the original's rooms, objects and cabinets into a builder, for physics, for pictures, or for both."""

from typing import Any

import numpy as np
import sapien
from sapien.physx import PhysxMaterial
from sapien.render import RenderMaterial

from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.pieces import add_pieces
from st4vla.envs.simpler.setup import Arena, AssetFamily, Thing

CABINET_POSE = sapien.Pose([-0.295, 0.0, 0.017])
OBJECT_FRICTION = 0.5
# Rooms whose mesh stands elsewhere than the google stage's: pose [7] of the mesh, before the turn.
MOVED_STAGES = {
    "modern_bedroom": (0.178, -2.235, 1.669, 0.007, 0.0, 0.0, -1.0),
    "modern_office": (-0.192, -1.728, 1.48, 0.709, 0.0, 0.0, -0.705),
}
GOOGLE_OFFSET = (-1.6616, -3.0337, 0.0)
BRIDGE_OFFSET = (-2.0634, -2.8313, 0.0)
FLOOR_HALF_SIZE = (10.0, 10.0, 0.017)


def arena_pose(arena: Arena) -> sapien.Pose:
    """Where the arena's actor stands."""
    return sapien.Pose([-value for value in arena.offset])


def add_arena(builder: Any, arena: Arena, tree: AssetTree, solid: bool, seen: bool) -> None:
    """Add a stage mesh, or the boxes of a dummy room, to a builder."""
    if "dummy" in arena.stage:
        _add_dummy(builder, arena.stage, solid and arena.solid, seen)
        return
    path, pose = str(tree.stage(arena.stage)), sapien.Pose(q=arena.turn)
    for name, moved in MOVED_STAGES.items():
        if name in arena.stage:
            pose = sapien.Pose(moved[:3], moved[3:]) * pose
    if solid and arena.solid:
        builder.add_nonconvex_collision_from_file(path, pose)
    if seen:
        builder.add_visual_from_file(path, pose)


def _add_dummy(builder: Any, stage: str, solid: bool, seen: bool) -> None:
    if stage == "dummy_tabletop":
        pose, half_size = sapien.Pose([-0.295, 0.0, 0.017 + 0.865 / 2]), np.array([0.63, 0.615, 0.865]) / 2
        if solid:
            builder.add_box_collision(pose, half_size)
        if seen:
            wood = RenderMaterial(base_color=_linear(168, 120, 79), metallic=0.0, roughness=0.3, specular=0.8)
            builder.add_box_visual(pose, half_size, wood)
    if seen:
        colour = _linear(70, 46, 34) if stage == "dummy_tabletop" else [1.0, 1.0, 1.0, 1.0]
        half_size = FLOOR_HALF_SIZE if stage != "dummy" else (*FLOOR_HALF_SIZE[:2], FLOOR_HALF_SIZE[2] / 2)
        builder.add_box_visual(sapien.Pose(), half_size, RenderMaterial(base_color=colour))


def _linear(red: int, green: int, blue: int) -> list[float]:
    """Give the linear colour of 8-bit sRGB values, as the original approximates it."""
    return [*((np.array([red, green, blue]) / 255) ** 2.2).tolist(), 1.0]


def add_thing(builder: Any, thing: Thing, family: AssetFamily, tree: AssetTree, solid: bool, seen: bool) -> None:
    """Add one object to a builder: its collision mesh as convex pieces, its textured mesh as it is seen."""
    if solid:
        rubber = PhysxMaterial(OBJECT_FRICTION, OBJECT_FRICTION, 0.0)
        add_pieces(builder, tree.model(family, thing.model) / "collision.obj", thing.scale, rubber, thing.density)
    if seen:
        builder.add_visual_from_file(str(tree.visual(family, thing.model)), scale=[thing.scale] * 3)


def make_matte(body: Any) -> None:
    """Make the render materials of an object rough and unspecular."""
    for material in _materials(body):
        material.roughness, material.metallic, material.specular = 1.0, 0.0, 0.0


def make_shiny(body: Any) -> None:
    """Give the render materials of a robot's link the original's shine."""
    for material in _materials(body):
        material.specular, material.roughness = 0.9, 0.3


def _materials(body: Any) -> list[RenderMaterial]:
    found = []
    for shape in body.render_shapes:
        parts = getattr(shape, "parts", None)
        found += [part.material for part in parts] if parts else [shape.material]
    return found


def add_lights(scene: Any, lights: Any) -> None:
    """Light a SAPIEN scene."""
    scene.set_ambient_light(list(lights.ambient))
    for direction, colour, shadow in lights.directional:
        scene.add_directional_light(list(direction), list(colour), shadow=shadow, shadow_scale=5, shadow_map_size=2048)
