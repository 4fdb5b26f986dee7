"""One worker of benchmarks.resume_grid: train a few steps of a small policy from a folder's newest checkpoint on.

python -m benchmarks.resume_worker RANK WORLD PORT ZERO_STAGE DATA FOLDER RESUME_OR_DASH
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from st4vla.platform.machine import prepare_process

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


class SharedFolder:
    """Keep the parts of all workers of one machine in one folder."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank

    def progress(self, row: dict[str, float]) -> None:
        """Print a row."""
        print("row " + json.dumps(row), flush=True)

    def checkpoint(self, step: int, begin: Callable[[Path], Any], row: dict[str, float]) -> None:
        """Write this worker's part at once."""
        import torch.distributed as dist

        place = self.folder / f"step_{step}"
        place.mkdir(parents=True, exist_ok=True)
        begin(place)()
        dist.barrier()


def main() -> None:
    """Train."""
    prepare_process()
    rank, world, port, zero_stage = (int(word) for word in sys.argv[1:5])
    data, folder, resume = sys.argv[5], Path(sys.argv[6]), sys.argv[7]
    os.environ["LOCAL_RANK"] = str(rank)
    import torch.distributed as dist
    from omegaconf import OmegaConf

    from st4vla.platform.cli import compose_command
    from st4vla.platform.train.loop import Worker
    from st4vla.platform.train.stage import run_stage
    from st4vla.workers.training.command import read_job

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    words = [*OVERRIDES, f"deepspeed=zero{zero_stage}", f"data={data}", f"frame_cache.folder={folder.parent}/cache"]
    settings: Any = OmegaConf.to_container(compose_command("train", words), resolve=True)
    run_stage(
        read_job(settings), Worker(rank, world), SharedFolder(folder, rank), None if resume == "-" else Path(resume)
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
