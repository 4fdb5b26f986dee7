"""Stop a run on 1, 2 or 4 workers and go on on 1, 2 or 4, under ZeRO 1, 2 and 3, and follow the loss.

Every run trains the same small policy on the same questions with the same global batch of 8: 6 steps on one number of
workers, then 6 more on each number. A curve continues where every loss after the change is within 2 % of that of a run
that had as many workers from the start, since the loss that is told is a mean over workers of means over what each of
them saw; the samples are the same where the data cursors at the end are. All workers are forked from one process that
has made the imports.

    python -m benchmarks.resume_grid
    python -m benchmarks.resume_grid --stages 1 --worlds 1 2     a part of it, printed and not recorded
"""

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path

from benchmarks.resume_worker import ROWS, Run, work
from st4vla.platform.machine import prepare_process

WORLDS, STAGES, SAVED, STEPS = (1, 2, 4), (1, 2, 3), 6, 12
TOLERANCE = 0.02
IMPORTS = ["deepspeed", "st4vla.platform.train.stage", "st4vla.workers.training.command", "benchmarks.resume_worker"]


def run(world: int, stage: int, data: Path, folder: Path, resume: Path | None = None) -> dict[int, float]:
    """Run all workers of one world and give the loss by step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("forkserver")
    one = Run(world, port, stage, data, folder, resume)
    workers = [fork.Process(target=work, args=(rank, one)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if codes := [worker.exitcode for worker in workers if worker.exitcode]:
        raise RuntimeError(f"world {world}, ZeRO {stage}: workers ended with {codes}; what they said stands above")
    rows = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    return {int(row["step"]): row["loss/total"] for row in rows if "loss/total" in row}


def cursor(folder: Path) -> object:
    """Give where the data stood at the end of a run."""
    import torch

    path = next((folder / f"step_{STEPS}" / "engine" / "state").glob("*model_states.pt"))
    return torch.load(path, map_location="cpu", weights_only=False)["counters"]["cursor"]


def main() -> None:
    """Measure, and record a whole grid."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=int, nargs="+", default=list(STAGES))
    parser.add_argument("--worlds", type=int, nargs="+", default=list(WORLDS))
    words = parser.parse_args()
    prepare_process()
    from benchmarks.recordings import painted_dataset

    os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported, which here is before any worker says so
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTS)
    held, same, worst, tried, began = 0, 0, 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        data = painted_dataset(Path(place) / "data")
        for stage in words.stages:
            whole = {world: Path(place) / f"zero{stage}_{world}" for world in words.worlds}
            straight = {world: run(world, stage, data, folder) for world, folder in whole.items()}
            for first, then in itertools.product(words.worlds, words.worlds):
                folder = Path(place) / f"zero{stage}_{first}_{then}"
                losses = run(then, stage, data, folder, whole[first] / f"step_{SAVED}")
                apart = max(abs(losses[step] / straight[then][step] - 1) for step in range(SAVED + 1, STEPS + 1))
                tried, worst = tried + 1, max(worst, apart)
                held, same = held + (apart <= TOLERANCE), same + (cursor(folder) == cursor(whole[then]))
                said = f"losses within {100 * apart:.3f} %, {held} and {same} of {tried} hold"
                print(f"{time.monotonic() - began:.0f} s, ZeRO {stage}: {first} -> {then}: {said}", flush=True)
    if (words.stages, words.worlds) == (list(STAGES), list(WORLDS)):
        record_grid(held, same, worst, tried)


def record_grid(held: int, same: int, worst: float, tried: int) -> None:
    """Record a whole grid."""
    from benchmarks.results import record

    name, command, goal = "resume on other numbers of workers", "python -m benchmarks.resume_grid", f">= {tried}"
    record(f"{name}: loss curve continues", 4, held, "of 27 changes", goal, command)
    record(f"{name}: the samples are the same", 4, same, "of 27 changes", goal, command)
    record(f"{name}: furthest a loss is off", 4, round(100 * worst, 3), "%", "report", command)


if __name__ == "__main__":
    main()
