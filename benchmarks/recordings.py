"""Paint small LeRobot recordings, for measurements and tests that need a dataset but no simulator."""

from pathlib import Path

import numpy as np

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_writer import LeRobotWriter

PAINTS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 50)}
CAMERAS = ("third_person", "wrist")


def painted_dataset(folder: Path, episodes: int = 12, length: int = 4, size: int = 128, grain: int = 0) -> Path:
    """Write episodes of two painted cubes, and a hand that goes straight to one of them.

    Args:
        length: frames of an episode.
        size: side of a frame in pixels, a multiple of 32.
        grain: strength of the noise over every frame, 0..255; real pictures are harder to decode than flat ones.
    """
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder) as writer:
        for _ in range(episodes):
            writer.add(painted_episode(rng, length, size, grain))
    return folder


def painted_episode(rng: np.random.Generator, length: int = 4, size: int = 128, grain: int = 0) -> Episode:
    """Paint one episode; a cube is an eighth of the frame wide."""
    side, half = size // 8, size // 2
    frame = np.full((size, size, 3), 150, np.uint8)
    mask = np.zeros((size // 4, size // 4), np.int8)
    names, boxes, points = rng.permutation(list(PAINTS))[:2], {}, {}
    for place, colour in enumerate(names):
        x, y = half * place + 4 * int(rng.integers(2, 11)), 4 * int(rng.integers(2, 26))
        frame[y : y + side, x : x + side] = PAINTS[colour]
        mask[y // 4 : (y + side) // 4, x // 4 : (x + side) // 4] = place + 1
        boxes[f"{colour} cube"] = (x, y, x + side, y + side)
        points[f"{colour} cube"] = (x + side // 2, y + side // 2)
    target = f"{names[0]} cube"
    way = np.linspace((half, half), points[target], length + 1)
    traces = [tuple(map(tuple, way[i : i + 8].tolist())) for i in range(length)]
    notes = [FrameAnnotation(boxes, points, target, "", trace, f"reach the {target}", mask) for trace in traces]
    still = np.tile([0.0, 0, 0, 0, 1], (length, 1))
    actions = np.hstack([np.diff(way, axis=0) / 1000, still]).astype(np.float32)
    states = np.hstack([way[:-1] / 1000, still]).astype(np.float32)
    frames = {camera: np.stack([grained(frame, rng, grain) for _ in range(length)]) for camera in CAMERAS}
    return Episode(f"reach the {target}", "reach", actions, states, frames, {"third_person": notes})


def grained(frame: np.ndarray, rng: np.random.Generator, grain: int) -> np.ndarray:
    """Lay noise over a frame."""
    if not grain:
        return frame
    noise = rng.integers(-grain, grain + 1, frame.shape, np.int16)
    return np.clip(frame.astype(np.int16) + noise, 0, 255).astype(np.uint8)
