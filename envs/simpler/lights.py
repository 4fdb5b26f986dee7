"""Hold the original's sets of lights as data."""

import math
from collections.abc import Mapping
from typing import Any

from st4vla.envs.simpler.setup import Lights

DIM = (0.3, 0.3, 0.3)
FULL = (1.0, 1.0, 1.0)
# The build options of moving near and putting on, and the lights each asks for; the first that is set counts.
ASKED = {
    "original_lighting": "original",
    "slightly_darker_lighting": "darker",
    "slightly_brighter_lighting": "brighter",
    "ambient_only_lighting": "ambient",
}


def _grey(level: float) -> tuple[float, float, float]:
    return (level, level, level)


def _three(top: float, sides: float, shadow: bool) -> Lights:
    return Lights(
        DIM,
        (
            ((0.0, 0.0, -1.0), _grey(top), shadow),
            ((-1.0, -0.5, -1.0), _grey(sides), False),
            ((1.0, 1.0, -1.0), _grey(sides), False),
        ),
    )


def _two(level: float, shadow: bool) -> Lights:
    return Lights(DIM, (((1.0, 1.0, -1.0), _grey(level), shadow), ((0.0, 0.0, -1.0), _grey(level), False)))


def asked_for(build: Mapping[str, Any], names: Mapping[str, str]) -> Lights:
    """Give the tabletop lights of the first option in `names` that a case's build options switch on."""
    kind = next((kind for key, kind in names.items() if build.get(key)), "standard")
    return tabletop(kind, bool(build.get("enable_shadow")))


def tabletop(kind: str = "standard", shadow: bool = False) -> Lights:
    """Give the lights of the tabletop tasks: "standard", "brighter", "darker", "darkest", "original" or "ambient"."""
    return {
        "standard": _three(2.2, 0.7, shadow),
        "brighter": _three(3.6, 1.3, shadow),
        "darker": _two(0.8, shadow),
        "darkest": _two(0.3, shadow),
        "original": _two(1.0, shadow),
        "ambient": Lights(FULL),
    }[kind]


def _slanted(degrees: float) -> tuple[float, float, float]:
    return (-math.cos(math.radians(degrees)), 0.0, -math.sin(math.radians(degrees)))


def drawers(mode: str | None) -> Lights:
    """Give the lights of the drawer tasks by the original's `light_mode`: None, simple, vertical, darker, brighter."""
    if mode == "simple":
        return Lights(FULL, ((_slanted(75.0), FULL, False),))
    first = (-0.1, 0.0, -1.0) if mode == "vertical" else (-0.2, 0.0, -1.0)
    level = {"darker": 0.5, "brighter": 2.0}.get(mode or "", 1.0)
    sides = (((-1.0, 1.0, -0.05), _grey(0.5), False), ((-1.0, -1.0, -0.05), _grey(0.5), False))
    return Lights(DIM, ((first, _grey(level), True), *sides))


def baked(mode: str | None) -> Lights | None:
    """Give the special lights of the second baked move-near, None where it has the tabletop's."""
    if mode == "simple":
        return Lights(FULL)
    return Lights(FULL, ((_slanted(90.0), _grey(0.5), False),)) if mode == "simple2" else None


def sink() -> Lights:
    """Give the lights over the sink."""
    return Lights(DIM, (((0.0, 0.0, -1.0), DIM, False),))
