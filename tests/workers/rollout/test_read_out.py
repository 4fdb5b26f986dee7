"""What the planner that ships with the package sees in rendered scenes."""

from pathlib import Path

import pytest

import st4vla.envs as envs
from st4vla.envs.suites import plan
from st4vla.envs.world import TabletopWorld
from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.policy.read_out import read_out

SCENES = 4


@pytest.fixture(scope="module")
def read():
    """Read-outs of the first pictures of four scenes, and what is true of these."""
    world, pictures, truths = TabletopWorld(), [], []
    specs = plan("seen", ["push"], SCENES, 7)
    try:
        for spec in specs:
            world.reset(spec)
            frames = world.render_snapshot(world.snapshot(), ("third_person",))
            pictures.append(frames["third_person"].rgb)
            truths.append(world.annotate_all([world.snapshot()], [frames])[0]["third_person"])
    finally:
        world.close()
    base = load_checkpoint(Path(envs.__path__[0]).parent / "platform" / "base", parts_ok=True)
    return read_out(base.model.eval(), base.processor, pictures, [spec.instruction for spec in specs]), truths


def overlap(one, other):
    """Intersection over union of two boxes."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return both / (sum(areas) - both)


def test_the_object_of_the_instruction_is_named_and_boxed(read):
    seen, truths = read
    assert [one.label for one in seen] == [truth.target for truth in truths]
    overlaps = [overlap(one.box, truth.boxes[truth.target]) for one, truth in zip(seen, truths, strict=True)]
    assert min(overlaps) > 0.6
