"""Judge by contacts as the original does: point impulses of the last physics step, summed, against 1e-6 N s."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sapien

from st4vla.envs.simpler.robot import Pads

TOUCHING_NS = 1e-6


class Contacts:
    """The contacts of one scene after a physics step."""

    def __init__(self, contacts: Iterable[Any]):
        self._contacts = list(contacts)

    def between(self, first: Any, second: Any, shapes_of_second: Collection[Any] | None = None) -> np.ndarray:
        """Sum the impulse [3] on `first` from `second` (entities), or from some collision shapes of `second`."""
        total = np.zeros(3)
        for contact in self._contacts:
            one, other = (body.entity for body in contact.bodies)
            if (one, other) not in ((first, second), (second, first)):
                continue
            if shapes_of_second is not None and contact.shapes[1 if one == first else 0] not in shapes_of_second:
                continue
            total += _impulse(contact) if one == first else -_impulse(contact)
        return total

    def touches_other_than(self, entity: Any, allowed: Collection[Any]) -> bool:
        """Say whether an entity is touched by anything but the allowed entities."""
        for contact in self._contacts:
            one, other = (body.entity for body in contact.bodies)
            if entity not in (one, other):
                continue
            stranger = other if one == entity else one
            if stranger not in allowed and np.linalg.norm(_impulse(contact)) > TOUCHING_NS:
                return True
        return False


def _impulse(contact: Any) -> np.ndarray:
    return np.sum([point.impulse for point in contact.points], axis=0, dtype=np.float64).reshape(-1)[:3]


@dataclass(frozen=True)
class Pad:
    """One link of the gripper's sides now: the entity that carries it, its pose in the world, its collision shapes."""

    carrier: Any
    pose: sapien.Pose
    shapes: Collection[Any]


def is_grasped(
    contacts: Contacts, links: Mapping[str, Pad], pads: Sequence[Pads], thing: Any, max_degrees: float
) -> bool:
    """Say whether both sides of the gripper press on a thing, within an angle of the way they open.

    Args:
        contacts: of the last physics step.
        links: of the gripper, by name.
        pads: the sides of the gripper.
        thing: the entity.
        max_degrees: between the impulse on a pad and the direction in which its side opens; the best pad counts.
    """
    for side in pads:
        strongest, best = 0.0, np.pi
        for name in side.links:
            pad = links[name]
            impulse = -contacts.between(thing, pad.carrier, pad.shapes)
            opens = side.opens * pad.pose.to_transformation_matrix()[:3, 1]
            strongest = max(strongest, float(np.linalg.norm(impulse)))
            best = min(best, angle_between(opens, impulse))
        if strongest < TOUCHING_NS or np.rad2deg(best) > max_degrees:
            return False
    return True


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Give the angle in rad; that to a vector shorter than 1e-6 counts as a right angle, as in the original."""
    dot = np.dot(_unit(first), _unit(second))
    return float(np.arccos(np.clip(dot, -1.0, 1.0)))


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return np.zeros_like(vector) if norm < 1e-6 else vector / norm
