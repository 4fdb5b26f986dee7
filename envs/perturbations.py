"""Disturb an episode while it runs: move its object, or change what is asked; pure functions of scene and seed."""

import numpy as np

from st4vla.envs.layout import CLEARANCE, HALF_X, HALF_Y, Scene, generator, way_is_free
from st4vla.platform.errors import EnvError

OBJECT_MOVED = "object_moved"
INSTRUCTION_CHANGED = "instruction_changed"
PERTURBATIONS = (OBJECT_MOVED, INSTRUCTION_CHANGED)

SHIFT_M = (0.06, 0.12)
FINGER_ROOM_M = 0.07  # no object is put down nearer than this to the TCP
# First and last control step at which a disturbance is due: before a quick arm is done.
DUE_STEPS = {"reach": (1, 3), "push": (2, 5), "pick_up": (2, 5), "put_on": (2, 5), "sort_three": (4, 30)}


def check(names: tuple[str, ...]) -> None:
    """Check a spec's perturbations.

    Raises:
        EnvError: one of them is not known.
    """
    for name in names:
        if name not in PERTURBATIONS:
            raise EnvError(f"There is no perturbation {name!r}; choose among {', '.join(PERTURBATIONS)}.")


def due_step(name: str, scene: Scene, seed: int) -> int:
    """Draw the control step before which the disturbance is due."""
    first, last = DUE_STEPS[scene.task]
    return int(generator(seed, f"due {name}").integers(first, last + 1))


def shifted_position(scene: Scene, index: int, positions: np.ndarray, tcp: np.ndarray, seed: int) -> np.ndarray | None:
    """Draw where thing `index` is moved to: 6-12 cm away, inside the workspace, clear of all else and of the gripper.

    Args:
        scene: the scene.
        index: of the thing among the scene's things.
        positions: [K,3] where things are now.
        tcp: [3] where the TCP is now.
        seed: the episode's.

    Returns:
        [3], or None if a thousand draws found no free place.
    """
    rng = generator(seed, OBJECT_MOVED)
    radii = np.array([thing.shape.radius for thing in scene.things])
    others = np.arange(len(scene.things)) != index
    for _ in range(1000):
        angle, length = rng.uniform(-np.pi, np.pi), rng.uniform(*SHIFT_M)
        place = positions[index, :2] + length * np.array([np.cos(angle), np.sin(angle)])
        gaps = np.linalg.norm(positions[others, :2] - place, axis=1) - radii[others] - radii[index]
        inside = np.all(np.abs(place) <= np.array([HALF_X, HALF_Y]) - 0.02)
        if inside and np.all(gaps > CLEARANCE / 2) and np.linalg.norm(tcp[:2] - place) > FINGER_ROOM_M:
            return np.array([*place, scene.things[index].shape.half_height])
    return None


def retargeted(scene: Scene, placed: tuple[bool, ...], seed: int) -> Scene:
    """Give the scene with another task: another object, or for sort_three two destinations exchanged.

    Args:
        scene: the scene as it was asked for.
        placed: for each target, whether it already lies in its container; those keep it while they can.
        seed: the episode's.
    """
    rng = generator(seed, INSTRUCTION_CHANGED)
    if scene.task == "sort_three":
        order = sorted(range(3), key=lambda index: (placed[index], rng.random()))
        places = list(scene.destinations)
        places[order[0]], places[order[1]] = places[order[1]], places[order[0]]
        return scene.retargeted(scene.targets, tuple(places))
    others = [
        index for index, thing in enumerate(scene.things) if thing.shape.kind == "solid" and index not in scene.targets
    ]
    if scene.side:
        at, direction = scene.poses[:, :2], scene.direction[:2]
        others = [index for index in others if way_is_free(at, scene.things, index, direction)] or others
    return scene.retargeted((others[rng.integers(len(others))],), scene.destinations)
