"""Stop a run on 1, 2 or 4 workers and go on on 1, 2 or 4, under ZeRO 1, 2 and 3, and follow the loss.

Every run trains the same small policy on the same questions with the same global batch of 8: 6 steps on one number of
workers, then 6 more on each other number. A curve continues where every loss after the change is within 2 % of
that of the run that never changed; the samples are the same where the data cursors at the end are.

    python -m benchmarks.resume_grid
"""

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from st4vla.platform.machine import prepare_process

WORLDS, STAGES, SAVED, STEPS = (1, 2, 4), (1, 2, 3), 6, 12
TOLERANCE = 0.02


def run(world: int, stage: int, data: Path, folder: Path, resume: Path | None = None) -> dict[int, float]:
    """Run all workers of one world and give the loss by step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(world), str(port), str(stage), str(data), str(folder), str(resume or "-")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.resume_worker", str(rank), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [worker.communicate() for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"world {world}, ZeRO {stage}: {said[0][1][-2000:]}")
    rows = [json.loads(line[4:]) for line in said[0][0].splitlines() if line.startswith("row ")]
    return {int(row["step"]): row["loss/total"] for row in rows if "loss/total" in row}


def cursor(folder: Path) -> object:
    """Give where the data stood at the end of a run."""
    import torch

    path = next((folder / f"step_{STEPS}" / "engine" / "state").glob("*model_states.pt"))
    return torch.load(path, map_location="cpu", weights_only=False)["counters"]["cursor"]


def main() -> None:
    """Measure and record."""
    prepare_process()
    from benchmarks.recordings import painted_dataset
    from benchmarks.results import record

    held, same, worst, tried = 0, 0, 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        data = painted_dataset(Path(place) / "data")
        for stage in STAGES:
            for first in WORLDS:
                whole = Path(place) / f"zero{stage}_{first}"
                straight = run(first, stage, data, whole)
                for then in WORLDS:
                    folder = Path(place) / f"zero{stage}_{first}_{then}"
                    losses = run(then, stage, data, folder, whole / f"step_{SAVED}")
                    apart = max(abs(losses[step] / straight[step] - 1) for step in range(SAVED + 1, STEPS + 1))
                    tried, worst = tried + 1, max(worst, apart)
                    held, same = held + (apart <= TOLERANCE), same + (cursor(folder) == cursor(whole))
                    print(f"ZeRO {stage}: {first} -> {then} workers, losses within {100 * apart:.2f} %", flush=True)
    command = "python -m benchmarks.resume_grid"
    goal = f">= {tried}"
    record("resume on other numbers of workers: loss curve continues", 4, held, "of 27 changes", goal, command)
    record("resume on other numbers of workers: the samples are the same", 4, same, "of 27 changes", goal, command)
    record(
        "resume on other numbers of workers: furthest a loss is off", 4, round(100 * worst, 3), "%", "report", command
    )


if __name__ == "__main__":
    main()
