"""Make the pictures of the fleet page: what a robot saw last, and what the planner sees in it.

An answer brings where its plan points and no more, since boxes and traces are words that take the planner many times as
long. They are asked for here, for a few pictures at a time, and only while somebody looks.
"""

import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from st4vla.platform.contracts import Spatial
from st4vla.serve.events import Served

log = logging.getLogger(__name__)

# Asks the planner of the model that answers a robot about a picture, uint8 [H,W,3], under an instruction; None if it
# has none that answers.
ReadOut = Callable[[str, np.ndarray, str], Spatial | None]
# The planner is asked about no further picture once this much of a report's second is gone.
READ_OUT_S = 0.5


@dataclass
class Picture:
    """One robot's last picture: JPEG, Unix time of its making, the answer it belongs to, and what is marked in it."""

    jpeg: bytes = b""
    at: float = 0.0
    event: Served | None = None
    spatial: Spatial | None = None
    read_at: float = 0.0


class PictureMaker:
    """Make pictures anew.

    Args:
        longest_px: longest side of a picture.
        read_outs: pictures that the planner is asked about at a time at most, those that waited for longest first.
        clock: Unix time in seconds.
    """

    def __init__(self, longest_px: int, read_outs: int, read_out: ReadOut | None, clock: Callable[[], float]) -> None:
        self._longest_px, self._read_outs, self._clock = longest_px, read_outs, clock
        self._read_out = read_out

    def renew(self, wanted: Sequence[tuple[Picture, Served]]) -> None:
        """Make each picture that of an answer."""
        began = time.monotonic()
        in_turn = sorted(wanted, key=lambda one: one[0].read_at)
        for place, (picture, event) in enumerate(in_turn):
            image = first_image(event)
            spatial = event.spatial
            if place < self._read_outs and time.monotonic() - began < READ_OUT_S:
                spatial, picture.read_at = self._with_read_out(event, image), self._clock()
            picture.jpeg = to_jpeg(image, self._longest_px)
            picture.spatial, picture.event, picture.at = spatial, event, self._clock()

    def _with_read_out(self, event: Served, image: np.ndarray) -> Spatial | None:
        """Add what the planner answers to where the plan pointed; what an answer has brought itself stands."""
        given = event.spatial
        if self._read_out is None or (given is not None and given.box):
            return given
        try:
            seen = self._read_out(event.robot, image, event.observation.instruction)
        except Exception as error:  # a boundary: nobody acts on it, and the page shows the picture all the same
            log.warning("the planner was asked about a picture in vain: %s: %s", type(error).__name__, error)
            return given
        return given if seen is None else replace(seen, points=given.points if given else ())


def to_jpeg(image: np.ndarray, longest_px: int) -> bytes:
    """Make a small picture of uint8 [H,W,3]."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def first_image(event: Served) -> np.ndarray:
    """Give what the first camera saw; a black spot where there is none."""
    images = event.observation.images
    return next(iter(images.values())) if images else np.zeros((2, 2, 3), np.uint8)
