"""`st4vla train` with `min_workers`: a lost node costs its workers, not the run."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch

from st4vla.platform.cli import compose_command
from st4vla.workers.training.command import main
from st4vla.workers.training.progress import read_rows

SMALL = (
    "tracking=off",
    "stage=grounding",
    "deepspeed=zero1",
    "policy.planner.text.layers=1",
    "policy.planner.vision.layers=1",
    "policy.vision.layers=1",
    "policy.expert.layers=1",
    "batch.grounding=4",
    "validation={robot_samples: 0, grounding_samples: 0}",
    "drawn=0",
    "log_every=1",
    "steps=8",
    "saving={every: 2, keep: 9}",
)


def train(data: Path, folder: Path, *words: str) -> dict[int, float]:
    """Run the stage and give the loss by step."""
    assert main(compose_command("train", [*SMALL, *words, f"data={data}", f"run_dir={folder}"])) == 0
    return {int(row["step"]): row["loss/total"] for row in read_rows(folder) if "loss/total" in row}


def engine_of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:07d}" / "engine"


def workers_at(folder: Path, step: int) -> int:
    return json.loads((engine_of(folder, step) / "world.json").read_text())["workers"]


def cursor_at(folder: Path, step: int) -> object:
    states = next((engine_of(folder, step) / "state").glob("*model_states.pt"))
    return torch.load(states, map_location="cpu", weights_only=False)["counters"]["cursor"]


def take_away(cluster, node, checkpoints: Path) -> None:
    """Kill a node once the second checkpoint stands, so that the first is known to Ray."""
    while len(list(checkpoints.glob("step_*/engine/latest"))) < 2:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_node_leaves_the_run_with_the_workers_that_are_left(
    painted_dataset: Path, workplace: Path, st4vla_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    from ray.cluster_utils import Cluster

    from st4vla.workers.cluster import EngineConfig, connect

    monkeypatch.setenv("PYTHONPATH", st4vla_environment["PYTHONPATH"])
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"_system_config": {"worker_niceness": 0}})
    try:
        second = cluster.add_node(**node)
        folder = workplace / "broken"
        with connect(EngineConfig(address=cluster.address)):
            taker = threading.Thread(target=take_away, args=(cluster, second, folder / "checkpoints"), daemon=True)
            taker.start()
            losses = train(painted_dataset, folder, "workers=2", "min_workers=1")
    finally:
        cluster.shutdown()
    whole = train(painted_dataset, workplace / "whole", "workers=0")
    assert (workers_at(folder, 2), workers_at(folder, 8)) == (2, 1)
    assert cursor_at(folder, 8) == cursor_at(workplace / "whole", 8)
    assert losses == pytest.approx(whole, rel=0.02)
