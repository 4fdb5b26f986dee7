"""Kill a training worker at a random step, again and again, and hold what comes of it against an unbroken run.

Each trial trains the same small stage on two Ray workers from recordings of its own, gets one worker killed (SIGKILL)
at a random moment between its first checkpoint and its last step, and must end at weights equal to the bit to the
unbroken run's, which says that no sample was lost or repeated either. A run that ended before its worker could be
killed proves nothing: it is not counted, and another one is made. A trial whose command ends with an error although
its final checkpoint stands is run once more, and counted.

    python -m benchmarks.train_faults [TRIALS]       fewer than 20 are printed and not recorded
"""

import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from st4vla.platform.machine import prepare_process

TRIALS = 20
OVERRIDES = (
    "tracking=off",
    "stage=action",
    "policy.planner.text.layers=1",
    "policy.planner.vision.layers=1",
    "policy.vision.layers=1",
    "policy.expert.layers=1",
    "batch={robot: 8, grounding: 4, accumulation: 1, prefetch: 2}",
    "held_out_share=0.2",
    "validation={robot_samples: 2, grounding_samples: 2}",
    "steps=60",
    "saving={every: 10, keep: 9}",
    "log_every=10",
    "drawn=0",
    "workers=2",
)


def train(data: Path, folder: Path) -> Path:
    """Run the stage, or the rest of it."""
    from st4vla.platform.cli import compose_command
    from st4vla.workers.training.command import main

    main(compose_command("train", [*OVERRIDES, f"data={data}", f"run_dir={folder}"]))
    return folder / "checkpoint"


def checkpoint_times(folder: Path) -> list[float]:
    """Give when each checkpoint that is still there was written, oldest first."""
    return sorted(one.stat().st_mtime for one in (folder / "checkpoints").glob("step_*/engine/latest"))


def kill_one_worker(folder: Path, wait_s: float, killed: list[int]) -> None:
    """Wait for the first checkpoint and `wait_s` more, then SIGKILL one training worker."""
    import psutil

    while not checkpoint_times(folder):
        time.sleep(0.05)
    time.sleep(wait_s)
    workers = [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]
    if workers:
        random.choice(workers).kill()
        killed.append(workers[0].pid)


def same_weights(one: Path, other: Path) -> bool:
    """Compare two policies bit by bit."""
    from safetensors.torch import load_file

    here, there = (load_file(folder / "model.safetensors") for folder in (one, other))
    return here.keys() == there.keys() and all(here[name].equal(there[name]) for name in here)


def trial(data: Path, folder: Path, unbroken: Path, wait_s: float) -> tuple[bool, bool, bool]:
    """Give (a worker was killed, the weights are equal, the command had to be repeated)."""
    from st4vla.platform.errors import St4vlaError

    killed: list[int] = []
    threading.Thread(target=kill_one_worker, args=(folder, wait_s, killed), daemon=True).start()
    repeated = False
    try:
        done = train(data, folder)
    except St4vlaError as error:
        print(f"repeated after: {error}")
        repeated, done = True, train(data, folder)
    return bool(killed), same_weights(unbroken, done), repeated


def main() -> None:
    """Measure and record."""
    prepare_process()
    from benchmarks.recordings import painted_dataset
    from benchmarks.results import record
    from st4vla.workers.cluster import EngineConfig, connect

    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    chance = random.Random(0)
    finished, killed_in, repeated_in, number = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as place, connect(EngineConfig(num_cpus=2)):
        data = painted_dataset(Path(place) / "data")
        unbroken = train(data, Path(place) / "unbroken")
        first, *_, last = checkpoint_times(Path(place) / "unbroken")
        while killed_in < trials and number < 2 * trials:
            started, number = time.monotonic(), number + 1
            killed, equal, repeated = trial(
                data, Path(place) / f"trial_{number}", unbroken, chance.uniform(0, last - first)
            )
            finished += killed and equal
            killed_in, repeated_in = killed_in + killed, repeated_in + repeated
            said = f"killed {killed}, equal to the bit {equal}, repeated {repeated}"
            print(f"run {number}: {said}, {time.monotonic() - started:.0f} s", flush=True)
    if trials < TRIALS:
        return
    command = f"python -m benchmarks.train_faults {trials}"
    record("training: killed runs that end at the unbroken run's bits", 4, finished, "trials", f">= {trials}", command)
    record("training: trials in which a worker was killed in time", 4, killed_in, "trials", "report", command)
    record("training: trials whose command had to be repeated", 4, repeated_in, "trials", "report", command)


if __name__ == "__main__":
    main()
