"""Compressed images from outside, decoded only once their header has said that they are small enough."""

import io
from typing import Any

import numpy as np

from st4vla.platform.errors import WireError
from st4vla.platform.wire.limits import WireLimits

FORMATS = ("png", "jpeg")


class PixelBudget:
    """What the compressed images of one message may come to, one image after another."""

    def __init__(self, limits: WireLimits):
        self._limits = limits
        self._taken = 0

    def take(self, height: int, width: int, path: str) -> None:
        """Count an image that is about to be decoded.

        Raises:
            WireError: "too_large": it is by itself, or with those before it.
        """
        check_pixels(height, width, path, self._limits)
        self._taken += height * width
        if self._taken > self._limits.max_total_pixels:
            most = self._limits.max_total_pixels
            raise WireError(
                "too_large", path, f"The message's images have {self._taken} pixels so far; at most {most}."
            )


def decode_image(data: Any, form: Any, path: str, limits: WireLimits, budget: PixelBudget) -> np.ndarray:
    """Decode a PNG or JPEG into uint8 RGB [H,W,3].

    Args:
        budget: the message's own.

    Raises:
        WireError: it is of another form, has too many pixels, alone or with the message's others, or is broken.
    """
    from PIL import Image, UnidentifiedImageError

    if form not in FORMATS:
        raise WireError("invalid", f"{path}.format", f"The image's format is {str(form)[:20]!r}; expected png or jpeg.")
    if not isinstance(data, bytes):
        raise WireError("invalid", f"{path}.data", "The image's data is not bytes.")
    try:
        # Opening reads the header alone, and no decoder but the announced one is tried.
        with Image.open(io.BytesIO(data), formats=[form.upper()]) as image:
            budget.take(image.height, image.width, path)
            return np.asarray(image.convert("RGB"))
    except WireError:
        raise
    except Image.DecompressionBombError as error:
        raise WireError("too_large", path, f"The image has more than {limits.max_pixels} pixels.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise WireError("invalid", f"{path}.data", f"The bytes are not a readable {form} image.") from error


def check_pixels(height: int, width: int, path: str, limits: WireLimits) -> None:
    """Refuse an image that is larger than the limits allow.

    Raises:
        WireError: "too_large".
    """
    if height * width > limits.max_pixels:
        raise WireError("too_large", path, f"The image has {width} x {height} pixels; at most {limits.max_pixels}.")


def encode_image(image: np.ndarray, form: str = "png", quality: int = 95) -> bytes:
    """Encode uint8 RGB [H,W,3] as PNG or JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {"quality": quality} if form == "jpeg" else {}
    Image.fromarray(image).save(buffer, form.upper(), **options)
    return buffer.getvalue()
