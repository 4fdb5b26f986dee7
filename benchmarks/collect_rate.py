"""Measure expert collection: successful episodes per second, reach and push, two 128 px cameras, two actors.

Counted from the first attempt to the last row on disk, with actors that are ready; writing the dataset is included,
starting Ray and the simulator is not. The second figure is per CPU-second of one actor, which a busy machine
does not change.

    python -m benchmarks.collect_rate
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from st4vla.platform.machine import prepare_process

EPISODES = 20


def main() -> None:
    """Measure and record."""
    prepare_process()
    from benchmarks.results import record

    command = "python -m benchmarks.collect_rate"
    per_cpu_second = one_actor()
    record(
        "expert collection: successful episodes per CPU-second of one actor",
        2,
        round(per_cpu_second, 2),
        "episodes/CPU-s",
        "report",
        command,
    )
    per_second = two_actors()
    record(
        "expert collection: successful reach and push episodes", 2, round(per_second, 2), "episodes/s", ">= 1", command
    )
    print(f"{per_second:.2f} successful episodes per second; {per_cpu_second:.2f} per CPU-second of one actor")


def one_actor() -> float:
    """Give successes per CPU-second of the actor's work alone, in this process."""
    from st4vla.workers.rollout.demonstrate import NoiseConfig, demonstrate
    from st4vla.workers.rollout.worlds import family, warm_up

    worlds = family("tabletop")
    world: Any = worlds.make_world("")
    warm_up(world, worlds.training("reach", 0), pictures=True)
    specs = [worlds.training(task, index) for index in range(EPISODES // 3) for task in ("reach", "push")]
    started = time.process_time()
    tries = [demonstrate(world, worlds.expert(), spec, NoiseConfig(), worlds.control_hz) for spec in specs]
    return sum(attempt.result.success for attempt in tries) / (time.process_time() - started)


def two_actors() -> float:
    """Give successes per second of a whole collection on two CPUs."""
    from st4vla.workers.cluster import EngineConfig, connect
    from st4vla.workers.collect import CollectConfig, collect

    with tempfile.TemporaryDirectory() as folder, connect(EngineConfig(num_cpus=2)):
        return collect(CollectConfig(episodes=EPISODES, workers=2, out=str(Path(folder) / "dataset"))).rate


if __name__ == "__main__":
    main()
