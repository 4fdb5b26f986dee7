"""A run goes on with another number of workers as if nothing had happened."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from st4vla.platform.errors import CheckpointError
from st4vla.platform.train.universal import fits

WORKER = Path(__file__).parent / "one_worker.py"


def losses(world: int, zero_stage: int, folder: Path, way: str) -> dict[int, float]:
    """Run `world` workers and give the loss by step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [str(world), str(port), str(zero_stage), str(folder), way]
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    said = [worker.communicate(timeout=300) for worker in workers]
    assert not any(worker.returncode for worker in workers), said
    lines = [line.split() for line in said[0][0].splitlines() if line.startswith("loss ")]
    return {int(step): float(loss) for _, step, loss in lines}


@pytest.mark.slow
def test_two_workers_go_on_where_one_stopped_under_zero_3(tmp_path: Path):
    whole = losses(1, 3, tmp_path, "start")
    rest = losses(2, 3, tmp_path, "resume")
    assert sorted(rest) == [5, 6, 7, 8]
    assert rest == pytest.approx({step: whole[step] for step in rest}, abs=2e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(("workers", "stage", "as_it_is"), [(2, 2, True), (1, 2, False), (4, 0, True)])
def test_only_shards_of_another_number_of_workers_are_converted(
    tmp_path: Path, workers: int, stage: int, as_it_is: bool
):
    (tmp_path / "world.json").write_text(json.dumps({"workers": 2, "zero_stage": stage}))
    assert fits(tmp_path, workers) is as_it_is


def test_a_state_that_does_not_say_who_wrote_it_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="incomplete"):
        fits(tmp_path, 1)
