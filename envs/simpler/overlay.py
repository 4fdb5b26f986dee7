"""Lay the real photograph over everything but the foreground, as the original composes what a policy sees."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from st4vla.platform.errors import EnvError


@cache
def photograph(path: Path, width: int, height: int) -> np.ndarray:
    """Read a photograph as uint8 [H,W,3], resized bilinearly as floats and cut off, as the original's pixels end up.

    Raises:
        EnvError: the file cannot be read.
    """
    picture: Any = cv2.imread(str(path))
    if picture is None:
        raise EnvError(f"The overlay photograph {path} cannot be read; fetch the assets again.")
    return truncated(cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) / 255.0, (width, height)))


def compose(rendered: np.ndarray, foreground: np.ndarray | None, photo: np.ndarray | None, blend: bool) -> np.ndarray:
    """Give uint8 [H,W,3] of a rendering: the foreground kept, the rest the photograph.

    Args:
        rendered: uint8, or float of about 0..1, [H,W,3] or with a fourth channel, which is left out.
        foreground: uint8 [H,W], not 0 where the rendering is kept; None without a photograph.
        photo: uint8 [H,W,3], or None for the bare rendering.
        blend: half and half everywhere, for checking an alignment.
    """
    seen: Any = rendered if rendered.dtype == np.uint8 else truncated(rendered)
    if seen.shape[-1] == 4:
        seen = cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB)
    if photo is None or foreground is None:
        return np.ascontiguousarray(seen)
    if blend:
        return ((seen.astype(np.uint16) + photo) // 2).astype(np.uint8)
    return cv2.copyTo(seen, foreground, photo.copy())


def truncated(values: np.ndarray) -> np.ndarray:
    """Give 0..1 as uint8, cut off rather than rounded."""
    return (np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)
