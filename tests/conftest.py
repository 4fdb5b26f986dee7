"""What every test stands on: a prepared process, and a working directory of its own."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.data.episode import Episode
from st4vla.platform.machine import prepare_process
from st4vla.platform.ray_token import ray_token_environment

CHECKOUT = Path(__file__).resolve().parent.parent
os.environ.setdefault("ST4VLA_VULKAN", str(CHECKOUT / ".vulkan"))
os.environ.setdefault("MPLBACKEND", "Agg")
prepare_process()
# Ray's core reads its token once and keeps it, so every Ray that this process starts or joins has the same one.
HOME = tempfile.TemporaryDirectory(prefix="st4vla-tests-")
os.environ["ST4VLA_HOME"] = HOME.name
os.environ.update(ray_token_environment())

PAINTS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 50)}


@pytest.fixture
def checkout() -> Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture
def ray_token() -> Path:
    """The token that every Ray of this test session asks for."""
    return Path(HOME.name) / "ray_token"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory while the test runs, so that runs/ lands in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def st4vla_environment() -> dict[str, str]:
    """The environment in which a child process finds st4vla the way this one does."""
    linked = CHECKOUT / "typings"
    path = os.pathsep.join(part for part in (str(linked), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path if linked.is_dir() else os.environ.get("PYTHONPATH", "")}


@pytest.fixture(scope="session")
def painted_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot dataset of 12 episodes of 4 frames: two painted cubes, and a hand that goes straight to one of them."""
    from st4vla.platform.data.lerobot_writer import LeRobotWriter

    folder = tmp_path_factory.mktemp("data") / "painted"
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder) as writer:
        for _ in range(12):
            writer.add(_painted_episode(rng))
    return folder


def _painted_episode(rng: np.random.Generator, length: int = 4, size: int = 128) -> Episode:
    frame = np.full((size, size, 3), 150, np.uint8)
    mask = np.zeros((size // 4, size // 4), np.int8)
    names, boxes, points = rng.permutation(list(PAINTS))[:2], {}, {}
    for place, colour in enumerate(names):
        x, y = 64 * place + 4 * int(rng.integers(2, 11)), 4 * int(rng.integers(2, 26))
        frame[y : y + 16, x : x + 16] = PAINTS[colour]
        mask[y // 4 : y // 4 + 4, x // 4 : x // 4 + 4] = place + 1
        boxes[f"{colour} cube"] = (x, y, x + 16, y + 16)
        points[f"{colour} cube"] = (x + 8, y + 8)
    target = f"{names[0]} cube"
    way = np.linspace((64.0, 64.0), points[target], length + 1)
    notes = [
        FrameAnnotation(boxes, points, target, "", tuple(map(tuple, way[i:].tolist())), f"reach the {target}", mask)
        for i in range(length)
    ]
    still = np.tile([0.0, 0, 0, 0, 1], (length, 1))
    actions = np.hstack([np.diff(way, axis=0) / 1000, still]).astype(np.float32)
    states = np.hstack([way[:-1] / 1000, still]).astype(np.float32)
    frames = {camera: np.stack([frame] * length) for camera in ("third_person", "wrist")}
    return Episode(f"reach the {target}", "reach", actions, states, frames, {"third_person": notes})
