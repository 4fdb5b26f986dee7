"""Turn between quaternions (wxyz), rotation vectors and yaws, in NumPy."""

import numpy as np

TOOL_DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # the hand's orientation over the table, fingers closing along y


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply two quaternions."""
    w, v = left[0], left[1:]
    return np.concatenate([[w * right[0] - v @ right[1:]], w * right[1:] + right[0] * v + np.cross(v, right[1:])])


def conjugate(quaternion: np.ndarray) -> np.ndarray:
    """Invert a unit quaternion."""
    return quaternion * np.array([1.0, -1.0, -1.0, -1.0])


def about_z(yaw: float) -> np.ndarray:
    """Give the quaternion of a turn about z by `yaw` rad."""
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def yaw_of(quaternion: np.ndarray) -> float:
    """Give the turn about z in rad, in -pi..pi, of a thing that stands upright."""
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Give the shortest rotation vector, in rad."""
    quaternion = quaternion if quaternion[0] >= 0 else -quaternion
    return _log(quaternion)


def tool_rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Give the rotation vector with x >= 0, angle 0..2 pi, of a hand that points down.

    A hand pointing down is turned by pi about x, just where the shortest rotation vector jumps between +pi and -pi;
    this one is continuous there.
    """
    return _log(quaternion if quaternion[1] >= 0 else -quaternion)


def _log(quaternion: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(quaternion[1:]))
    if norm < 1e-9:
        return np.zeros(3)
    return quaternion[1:] / norm * 2.0 * np.arctan2(norm, quaternion[0])


def nearest_grasp_yaw(yaw: float, fold: int) -> float:
    """Give the smallest equally good turn of the hand for an object turned by `yaw`; fold 0 means any turn is."""
    if fold == 0:
        return 0.0
    period = 2 * np.pi / fold
    return float((yaw + period / 2) % period - period / 2)
