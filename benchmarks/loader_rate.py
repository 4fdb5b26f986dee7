"""Measure the loader against a naive loop that decodes every sample's frames from the MP4 when it is asked for.

Both read the same random samples, two 224 px cameras and a chunk of 16 actions; they take turns in rounds. The loader
decodes every frame once, into memory-mapped files, and reads from these; what that first pass costs is told apart.

    python -m benchmarks.loader_rate
"""

import tempfile
import time
from pathlib import Path

from st4vla.platform.machine import prepare_process

EPISODES, LENGTH, SIZE, GRAIN = 12, 100, 224, 12
ROUNDS, SAMPLES, CHUNK = 5, 64, 16


def main() -> None:
    """Measure and record."""
    prepare_process()
    import numpy as np

    from benchmarks.recordings import painted_dataset
    from benchmarks.results import record
    from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
    from st4vla.platform.data.lerobot_reader import open_dataset
    from st4vla.platform.data.mixture import Loader, LoaderConfig, Mixture
    from st4vla.platform.data.sources import ActionSource

    with tempfile.TemporaryDirectory() as place:
        data = painted_dataset(Path(place) / "data", EPISODES, LENGTH, SIZE, GRAIN)
        naive = ActionSource(open_dataset(data), CHUNK)
        cached = ActionSource(open_dataset(data, FrameCache(FrameCacheConfig(f"{place}/cache"))), CHUNK)
        order, rng = np.random.default_rng(0), np.random.default_rng(1)
        started = time.perf_counter()
        for item in range(0, len(cached), LENGTH):
            cached.load(item, rng)
        first_s = time.perf_counter() - started
        batches = iter(Loader(Mixture([cached], None), LoaderConfig(8, prefetch=2)))
        spent = {"naive": 0.0, "loader": 0.0}
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for item in order.integers(0, len(naive), SAMPLES):
                naive.load(int(item), rng)
            spent["naive"] += time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(SAMPLES // 8):
                next(batches)
            spent["loader"] += time.perf_counter() - started
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    rates = {name: ROUNDS * SAMPLES / seconds for name, seconds in spent.items()}
    command = "python -m benchmarks.loader_rate"
    ratio = round(rates["loader"] / rates["naive"], 1)
    record("loader: samples per second over a naive loop, two 224 px cameras", 4, ratio, "times", ">= 4", command)
    record("loader: samples per second, two 224 px cameras", 4, round(rates["loader"]), "samples/s", "report", command)
    frames = 2 * EPISODES * LENGTH
    record("loader: frames decoded per second in the first pass", 4, round(frames / first_s), "1/s", "report", command)
    print(f"loader {rates['loader']:.0f}, naive {rates['naive']:.0f} samples/s")


if __name__ == "__main__":
    main()
