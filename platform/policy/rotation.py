"""Turn the rotation of an action from the form a policy learned into the rotation vector that robots here are told.

The controllers of SimplerEnv take a rotation vector (axis times angle). Checkpoints trained on Open X-Embodiment data,
the published ones among them, answer roll, pitch and yaw instead: turns about the fixed x, y and z axes, in that order.
"""

import numpy as np

from st4vla.platform.contracts import RotationForm

ROTATION = slice(3, 6)


def euler_to_rotation_vector(angles: np.ndarray) -> np.ndarray:
    """Turn roll, pitch and yaw [...,3] in rad into rotation vectors [...,3] of at most pi, float64."""
    (cx, cy, cz), (sx, sy, sz) = (
        np.moveaxis(part, -1, 0) for part in (np.cos(np.asarray(angles, float) / 2), np.sin(np.asarray(angles) / 2))
    )
    w = cx * cy * cz + sx * sy * sz
    axis = np.stack([sx * cy * cz - cx * sy * sz, cx * sy * cz + sx * cy * sz, cx * cy * sz - sx * sy * cz], axis=-1)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    # A quaternion and its negative are the same turn; the one with w >= 0 is the shorter way.
    shorter = np.where(w < 0, -1.0, 1.0)[..., None]
    angle = 2 * np.arctan2(sine, np.abs(w)[..., None])
    return shorter * axis * np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 1e-12)


def as_rotation_vector(action: np.ndarray, form: RotationForm) -> np.ndarray:
    """Give an action [7] whose rotation is a rotation vector, whatever form it came in."""
    if form == "rotation_vector":
        return action
    turned = np.array(action, np.float64)
    turned[ROTATION] = euler_to_rotation_vector(action[ROTATION])
    return turned
