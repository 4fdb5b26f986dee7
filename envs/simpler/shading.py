"""Draw with shaders of our own, which leave out what a picture under a photograph has no need of.

On a CPU most of a frame went to shading pixels that the photograph then covered, to a pass over the whole picture that
lays an empty sky behind it, and to inverting a matrix for every corner of every mesh. Here what is covered gives its
depth only, there is no sky, and the corners need no inverse. What is seen is shaded by SAPIEN's own formulas.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import sapien

from st4vla.envs.simpler.setup import Build

SOURCES = Path(__file__).resolve().parent / "shaders"
MOST_BODIES = 255  # a body's number has to fit a channel of the picture "Segments"
PICTURES = {"Color": "r8g8b8a8unorm", "Segments": "r8g8b8a8unorm"}


class Shading(IntEnum):
    """How a body is drawn, SAPIEN's "shading mode": one pass of the renderer each, one after the other.

    SAPIEN moves what is translucent from the first pass to the second, so the second is the first again.
    """

    HIDDEN = 0
    SEEN = 2
    NAMED = 3


PASSES = {
    "gbuffer": ("hidden.vert", "hidden.frag"),
    "gbuffer1": ("hidden.vert", "hidden.frag"),
    "gbuffer2": ("seen.vert", "seen.frag"),
    "gbuffer3": ("hidden.vert", "named.frag"),
}


def can_shade(build: Build, bodies: Collection[Any]) -> bool:
    """Say whether our shaders draw a build as SAPIEN's do: no shadows, no normal maps, not too many bodies."""
    casts = any(shadow for _, _, shadow in build.lights.directional)
    maps = any(material.normal_texture is not None for body in bodies for material in _materials(body))
    few = all(body.entity.per_scene_id <= MOST_BODIES for body in bodies)
    return build.shader == "default" and few and not casts and not maps


def _materials(body: Any) -> Iterator[Any]:
    for shape in body.render_shapes:
        parts = getattr(shape, "parts", None)
        yield from [shape.material] if parts is None else [part.material for part in parts]


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Lay the shaders out in a folder as SAPIEN reads them, beside its own formulas of light."""
    folder = tempfile.TemporaryDirectory(prefix="st4vla-shaders-")
    for name, (vertex, fragment) in PASSES.items():
        shutil.copyfile(SOURCES / vertex, Path(folder.name) / f"{name}.vert")
        shutil.copyfile(SOURCES / fragment, Path(folder.name) / f"{name}.frag")
    shutil.copyfile(SOURCES / "placing.glsl", Path(folder.name) / "placing.glsl")
    light = Path(sapien.__file__).parent / "vulkan_shader" / "common" / "lights.glsl"
    shutil.copyfile(light, Path(folder.name) / light.name)
    return folder


def shader_folder() -> Path:
    """Give the folder of our shaders, made once per process and gone with it."""
    return Path(_folder().name)
