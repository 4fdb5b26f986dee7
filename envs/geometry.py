"""Turn between quaternions (wxyz), rotation vectors and yaws, in NumPy; "..." stands for any leading dimensions."""

import numpy as np

TOOL_DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # the hand's orientation over the table, fingers closing along y


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply quaternions [..., 4]."""
    w, v, other_w, other_v = left[..., :1], left[..., 1:], right[..., :1], right[..., 1:]
    scalar = w * other_w - (v * other_v).sum(-1, keepdims=True)
    return np.concatenate([scalar, w * other_v + other_w * v + np.cross(v, other_v)], axis=-1)


def conjugate(quaternion: np.ndarray) -> np.ndarray:
    """Invert unit quaternions [..., 4]."""
    return quaternion * np.array([1.0, -1.0, -1.0, -1.0])


def about_z(yaw: float) -> np.ndarray:
    """Give the quaternion of a turn about z by `yaw` rad."""
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def from_rotation_vector(vector: np.ndarray) -> np.ndarray:
    """Give the quaternions [..., 4] of rotation vectors [..., 3] in rad."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), vector * (0.5 * np.sinc(angle / (2 * np.pi)))], axis=-1)


def yaws_of(quaternion: np.ndarray) -> np.ndarray:
    """Give the turns about z in rad [...], in -pi..pi, of things [..., 4] that stand upright."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def yaw_of(quaternion: np.ndarray) -> float:
    """Give the turn about z in rad, in -pi..pi, of one thing [4] that stands upright."""
    return float(yaws_of(quaternion))


def rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Give the shortest rotation vectors [..., 3], in rad."""
    return _log(np.where(quaternion[..., :1] >= 0, quaternion, -quaternion))


def tool_rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Give the rotation vectors [..., 3] with x >= 0, angle 0..2 pi, of hands that point down.

    A hand pointing down is turned by pi about x, just where the shortest rotation vector jumps between +pi and -pi;
    this one is continuous there.
    """
    return _log(np.where(quaternion[..., 1:2] >= 0, quaternion, -quaternion))


def _log(quaternion: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(norm, quaternion[..., :1])
    return np.where(norm < 1e-9, 0.0, quaternion[..., 1:] / np.maximum(norm, 1e-9) * angle)


def nearest_grasp_yaw(yaw: float, fold: int) -> float:
    """Give the smallest equally good turn of the hand for an object turned by `yaw`; fold 0 means any turn is."""
    if fold == 0:
        return 0.0
    period = 2 * np.pi / fold
    return float((yaw + period / 2) % period - period / 2)
