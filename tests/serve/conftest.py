"""What the tests of serving share: answered requests made of arithmetic."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.contracts import Observation, Spatial
from st4vla.serve.events import Served
from st4vla.serve.recorder.settings import RecorderConfig

MakeServed = Callable[..., Served]


def served(sequence: int, robot: str = "arm-1", session: str = "s", size: int = 16, **changes) -> Served:
    """Answer request `sequence` with a chunk of 4 rows of that value; the frames are as bright as that."""
    frame = np.full((size, size, 3), (7 * sequence) % 256, np.uint8)
    seen = Observation(
        {"front": frame, "wrist": frame[:, ::-1].copy()}, np.full(7, sequence, np.float32), changes.pop("say", "lift")
    )
    facts = {
        "actions": np.full((4, 7), sequence, np.float32),
        "embodiment": "panda",
        "model": "st4vla",
        "model_version": "7",
        "plan_age_ms": 10.0 * sequence,
        "timing_ms": {"total": 20.0, "queue": 2.0},
        "spatial": Spatial("cube", (2, 3, 8, 9), ((5, 5),), ((1, 1), (4, 6), (9, 9))),
        "executed_steps": 2 if sequence else None,
        "at": 1000.0 + 0.4 * sequence,
    }
    return Served(robot, session, sequence, seen, **{**facts, **changes})


@pytest.fixture
def make_served() -> MakeServed:
    """Give the function that makes an answered request by its number."""
    return served


@pytest.fixture
def recorder_config(tmp_path: Path) -> RecorderConfig:
    """Record into an empty folder on whatever disk there is."""
    return RecorderConfig(folder=str(tmp_path / "recordings"), min_free_mb=1, sync_s=0.05)
