"""The base checkpoint in the package is what the demo starts from."""

from pathlib import Path

import pytest

from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.train.job import parent_kinship


@pytest.fixture
def base(checkout: Path) -> Path:
    return checkout / "platform" / "base"


def test_it_is_smaller_than_eight_megabytes(base):
    assert sum(path.stat().st_size for path in base.iterdir()) < 8_000_000


def test_all_of_it_serves_the_tiny_preset(base):
    assert parent_kinship(str(base), PolicyConfig.preset("tiny")) == "all"


def test_it_holds_the_planner_and_the_frame_encoder_and_leaves_the_rest_to_stage_2(base):
    fresh = load_checkpoint(base, parts_ok=True).fresh
    assert "action_expert" in fresh and "planner" not in fresh and "frame_encoder" not in fresh
