"""One worker of benchmarks.resume_grid: train a few steps of a small policy from a folder's newest checkpoint on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.machine import prepare_process

ROWS = "rows.jsonl"
OVERRIDES = (
    "stage=grounding",
    "policy.planner.text.layers=1",
    "policy.planner.vision.layers=1",
    "policy.vision.layers=1",
    "policy.expert.layers=1",
    "batch={robot: 0, grounding: 8, accumulation: 1, prefetch: 2}",
    "validation={robot_samples: 0, grounding_samples: 0}",
    "steps=12",
    "saving={every: 6, keep: 9}",
    "log_every=1",
    "workers=1",
)


@dataclass(frozen=True)
class Run:
    """One run of all its workers: how many, where they meet, their ZeRO stage, and where they read and write."""

    world: int
    port: int
    zero_stage: int
    data: Path
    folder: Path
    resume: Path | None = None


class SharedFolder:
    """Keep the parts of all workers of one machine in one folder, and the rows of the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def progress(self, row: dict[str, float]) -> None:
        """Append a row."""
        with (self.folder / ROWS).open("a") as lines:
            lines.write(json.dumps(row) + "\n")

    def checkpoint(
        self, step: int, begin: Callable[[Path], Any], row: dict[str, float], stands: Callable[[], object]
    ) -> None:
        """Write this worker's part at once."""
        import torch.distributed as dist

        place = self.folder / f"step_{step}"
        place.mkdir(parents=True, exist_ok=True)
        begin(place)()
        dist.barrier()
        stands()


def work(rank: int, run: Run) -> None:
    """Train; the first process's imports are made before it is forked."""
    prepare_process()
    os.environ["LOCAL_RANK"] = str(rank)
    import torch.distributed as dist
    from omegaconf import OmegaConf

    from st4vla.platform.cli import compose_command
    from st4vla.platform.train.loop import Worker
    from st4vla.platform.train.stage import run_stage
    from st4vla.workers.training.command import read_job

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{run.port}", rank=rank, world_size=run.world)
    cache = f"frame_cache.folder={run.folder.parent}/cache"
    words = [*OVERRIDES, f"deepspeed=zero{run.zero_stage}", f"data={run.data}", cache]
    settings: Any = OmegaConf.to_container(compose_command("train", words), resolve=True)
    run_stage(read_job(settings), Worker(rank, run.world), SharedFolder(run.folder), run.resume)
    dist.barrier()
    # gloo's threads may abort a process that ends in the usual way just after its last collective; the work is done.
    os._exit(0)
