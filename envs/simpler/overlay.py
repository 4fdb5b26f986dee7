"""Lay the real photograph over everything but the foreground, as the original composes what a policy sees."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from st4vla.platform.errors import EnvError


@cache
def photograph(path: Path, width: int, height: int) -> np.ndarray:
    """Read a photograph as float64 [H,W,3] of 0..1, resized bilinearly.

    Raises:
        EnvError: the file cannot be read.
    """
    picture = cv2.imread(str(path))
    if picture is None:
        raise EnvError(f"The overlay photograph {path} cannot be read; fetch the assets again.")
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) / 255.0, (width, height))


def compose(rendered: np.ndarray, foreground: np.ndarray | None, photo: np.ndarray | None, blend: bool) -> np.ndarray:
    """Give uint8 [H,W,3] of a rendering: the foreground kept, the rest the photograph, truncated as the original does.

    Args:
        rendered: float [H,W,3] of about 0..1.
        foreground: bool [H,W], where the rendering is kept; None without a photograph.
        photo: float [H,W,3] of 0..1, or None for the bare rendering.
        blend: half and half everywhere, for checking an alignment.
    """
    if photo is None or foreground is None:
        return truncated(rendered)
    if blend:
        return truncated(rendered * 0.5 + photo * 0.5)
    seen = truncated(photo)
    seen[foreground] = truncated(rendered[foreground])
    return seen


def truncated(values: np.ndarray) -> np.ndarray:
    """Give 0..1 as uint8, cut off rather than rounded."""
    return (np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)
