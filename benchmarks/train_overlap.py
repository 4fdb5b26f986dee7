"""Measure what a training step waits for: its data, and its checkpoints.

`tiny` is trained with two workers on recordings with two 128 px cameras, a checkpoint every 20 steps; the shares come
from the rows the run itself records, after the first 20 steps.

    python -m benchmarks.train_overlap
"""

import tempfile
from pathlib import Path
from statistics import fmean

from st4vla.platform.machine import prepare_process

WARM_UP, STEPS = 20, 120


def main() -> None:
    """Measure and record."""
    prepare_process()
    from benchmarks.recordings import painted_dataset
    from benchmarks.results import record
    from st4vla.platform.cli import compose_command
    from st4vla.workers.training.command import main as train
    from st4vla.workers.training.progress import read_rows

    with tempfile.TemporaryDirectory() as place:
        data = painted_dataset(Path(place) / "data", episodes=20, length=40, grain=12)
        words = [f"data={data}", f"run_dir={place}/run", f"steps={STEPS}", f"frame_cache.folder={place}/cache"]
        train(compose_command("train", ["stage=action", "tracking=off", "saving.every=20", "workers=2", *words]))
        rows = read_rows(Path(place) / "run")
    waits = [row["data_wait_share"] for row in rows if row["step"] > WARM_UP and "data_wait_share" in row]
    saves = [row for row in rows if row["step"] > WARM_UP and "checkpoint/whole_s" in row]
    whole_s = sum(row["checkpoint/whole_s"] for row in saves)
    hidden = 1 - sum(row["checkpoint/blocked_s"] for row in saves) / whole_s
    command = "python -m benchmarks.train_overlap"
    wait = round(100 * fmean(waits), 2)
    record("training: step time spent waiting for data, tiny, 2 workers", 4, wait, "%", "<= 5", command)
    record("training: checkpoint time hidden behind the steps", 4, round(100 * hidden, 1), "%", ">= 90", command)
    record(
        "training: a checkpoint from its copy until it is stored",
        4,
        round(whole_s / len(saves), 2),
        "s",
        "report",
        command,
    )
    print(f"waiting {wait} %, hidden {100 * hidden:.1f} % of {whole_s / len(saves):.2f} s")


if __name__ == "__main__":
    main()
