"""A two-camera recording of 32 px frames, made of arithmetic, for the data tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig


def square_episode(seed: int, length: int = 5, size: int = 32) -> Episode:
    """Make an episode whose red square stands at column `4 + step` of both cameras."""
    frames = np.full((length, size, size, 3), 40 + 10 * (seed % 8), np.uint8)
    for step in range(length):
        frames[step, 8:16, 4 + step : 12 + step] = (200, 40, 40)
    mask = np.zeros((size // 4, size // 4), np.int8)
    mask[2:4, 1:3] = 1
    notes = [
        FrameAnnotation(
            boxes={"red cube": (4.0 + step, 8.0, 12.0 + step, 16.0), "blue bowl": (20.0, 20.0, 28.0, 28.0)},
            points={"red cube": (8.0 + step, 12.0)},
            target="red cube",
            destination="blue bowl",
            trace=((1.0, 2.0), (8.0 + step, 12.0)),
            subgoal="grasp the red cube",
            mask=mask,
        )
        for step in range(length)
    ]
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(length, 7)).astype(np.float32)
    actions[:, 6] = np.arange(length) % 2
    return Episode(
        instruction=f"put the red cube in bowl {seed % 2}",
        task="put_on",
        actions=actions,
        states=rng.normal(size=(length, 7)).astype(np.float32),
        frames={"third_person": frames, "wrist": frames[:, ::-1].copy()},
        annotations={"third_person": notes},
        seed=seed,
        spec_id=f"{seed:016x}",
    )


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """Give the function that makes an episode by its seed."""
    return square_episode


@pytest.fixture(params=["v2.1", "v3.0"])
def version(request: pytest.FixtureRequest) -> str:
    """Run the test for either format."""
    return request.param


@pytest.fixture
def dataset_folder(tmp_path: Path, version: str) -> Path:
    """Write five episodes, two to a v3.0 file."""
    with LeRobotWriter(tmp_path / "set", WriterConfig(formats=(version,), episodes_per_file=2)) as writer:
        for seed in range(5):
            writer.add(square_episode(seed))
    return tmp_path / "set"
