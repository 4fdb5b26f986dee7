"""List the things a scene may hold: coloured solids to handle and coloured containers to put them in.

Everything is made of boxes and cylinders, so that nothing is downloaded and each thing looks the same everywhere.
A part is (shape, half sizes or (radius, half length), centre in the thing's frame); the frame's origin is the
middle of the thing's bounding box, z up.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["solid", "container"]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.05, 0.05),
    "green": (0.05, 0.55, 0.10),
    "blue": (0.04, 0.16, 0.80),
    "yellow": (0.92, 0.72, 0.02),
    "purple": (0.36, 0.06, 0.55),
    "cyan": (0.02, 0.66, 0.72),
}
CONTAINER_COLOURS = ("red", "green", "blue", "yellow")


@dataclass(frozen=True)
class Part:
    """One primitive of a thing: a box (three half sizes) or an upright cylinder (radius, half height), in metres."""

    shape: Literal["box", "cylinder"]
    size: tuple[float, ...]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Shape:
    """One form of thing.

    Attributes:
        kind: solid or container.
        parts: its primitives.
        half_height: m, from the middle of the bounding box to the top.
        radius: m, of the circle around it, seen from above; layouts keep these circles apart.
        grasp_offset: m, height of the grasp above the middle.
        grasp_fold: how many equally good grasps there are in a full turn about z; 0 for any.
    """

    kind: Kind
    parts: tuple[Part, ...]
    half_height: float
    radius: float
    grasp_offset: float = 0.0
    grasp_fold: int = 2


def _bin(half: float, height: float, wall: float) -> tuple[Part, ...]:
    """Build an open square bin of outer half width `half`, standing on a floor of thickness `wall`."""
    side, middle = half - wall / 2, wall / 2
    walls = [Part("box", (wall / 2, half, height / 2), (sign * side, 0.0, 0.0)) for sign in (-1, 1)]
    walls += [Part("box", (half - wall, wall / 2, height / 2), (0.0, sign * side, 0.0)) for sign in (-1, 1)]
    return (Part("box", (half - wall, half - wall, wall / 2), (0.0, 0.0, middle - height / 2)), *walls)


SHAPES: dict[str, Shape] = {
    "cube": Shape("solid", (Part("box", (0.021, 0.021, 0.021)),), 0.021, 0.030, 0.0, 4),
    "cylinder": Shape("solid", (Part("cylinder", (0.021, 0.026)),), 0.026, 0.021, 0.004, 0),
    "bar": Shape("solid", (Part("box", (0.045, 0.015, 0.015)),), 0.015, 0.048),
    "arch": Shape(
        "solid",
        (
            Part("box", (0.034, 0.016, 0.011), (0.0, 0.0, 0.014)),
            Part("box", (0.010, 0.016, 0.014), (-0.024, 0.0, -0.011)),
            Part("box", (0.010, 0.016, 0.014), (0.024, 0.0, -0.011)),
        ),
        0.025,
        0.038,
        0.010,
    ),
    "bin": Shape("container", _bin(0.056, 0.030, 0.005), 0.015, 0.079),
    "plate": Shape("container", (Part("cylinder", (0.056, 0.004)),), 0.004, 0.056),
}


@dataclass(frozen=True)
class Thing:
    """One named thing of the library, e.g. "red cube"."""

    colour: str
    form: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}"

    @property
    def shape(self) -> Shape:
        return SHAPES[self.form]

    @property
    def rgb(self) -> tuple[float, float, float]:
        return COLOURS[self.colour]


# Each colour and each form of these is seen in training, but never together.
HELD_OUT = ("red bar", "green cylinder", "blue arch", "yellow cube", "purple cylinder", "cyan arch")

SOLIDS = tuple(Thing(c, f) for c in COLOURS for f, s in SHAPES.items() if s.kind == "solid")
CONTAINERS = tuple(Thing(c, f) for c in CONTAINER_COLOURS for f, s in SHAPES.items() if s.kind == "container")
LIBRARY = SOLIDS + CONTAINERS
SEEN_SOLIDS = tuple(thing for thing in SOLIDS if thing.name not in HELD_OUT)
HELD_OUT_SOLIDS = tuple(thing for thing in SOLIDS if thing.name in HELD_OUT)
INDEX = {thing.name: index for index, thing in enumerate(LIBRARY)}


def vocabulary() -> list[str]:
    """List every word that names a thing, held-out things included, sorted."""
    return sorted({word for thing in LIBRARY for word in thing.name.split()})
