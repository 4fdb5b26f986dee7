"""Measure what more rollout actors cost: the same episodes by 1 and 2 of them, and by 1 and 32 over a sleeping world.

Rendered: the tabletop with a random policy that is shown one 128 px camera at each look; LP_NUM_THREADS is 1 in every
worker, as always. Sleeping: the world of one dot, each of whose steps sleeps 20 ms. Rows, timings left out, must be
equal. Processor time is that of the actors, from the moment all are ready, and of the driver.

    python -m benchmarks.eval_scaling [--record] [--rendered 48] [--sleeping 192] [--many 32]
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st4vla.platform.machine import prepare_process

COMMAND = "python -m benchmarks.eval_scaling"


@dataclass(frozen=True)
class Run:
    """One way of running a plan: its rows, its processor seconds, its wall seconds."""

    rows: list[dict[str, Any]]
    cpu_s: float
    wall_s: float

    @property
    def rows_per_cpu_s(self) -> float:
        """Rows for each processor second."""
        return len(self.rows) / self.cpu_s


def main() -> None:
    """Measure, and record if asked to."""
    prepare_process()
    given = arguments()
    from st4vla.workers.cluster import EngineConfig, connect

    figures = []
    with connect(EngineConfig(num_cpus=given.many)):
        for world, episodes, many in (("tabletop", given.rendered, 2), ("sleeping_dot", given.sleeping, given.many)):
            one, more = run(world, episodes, 1), run(world, episodes, many)
            differing = sum(a != b for a, b in zip(one.rows, more.rows, strict=True))
            share = more.rows_per_cpu_s / one.rows_per_cpu_s
            print(
                f"{world}: {episodes} rows in {one.wall_s:.1f} s by 1 actor, {more.wall_s:.1f} s by {many}; "
                f"{one.rows_per_cpu_s:.2f} and {more.rows_per_cpu_s:.2f} rows a CPU-second ({share:.2f}); "
                f"{differing} rows differ"
            )
            figures.append((f"{many} rollout actors against 1, {world}", share, differing))
    if given.record:
        record(figures)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--rendered", type=int, default=48)
    parser.add_argument("--sleeping", type=int, default=192)
    parser.add_argument("--many", type=int, default=32)
    return parser.parse_args()


def run(world: str, episodes: int, num_actors: int) -> Run:
    """Run a plan by so many actors; their start is not counted."""
    import ray

    from st4vla.platform.contracts import EpisodeSpec
    from st4vla.platform.policy.random_policy import RandomPolicyConfig
    from st4vla.workers.rollout.actors import WorkerSetup, rollout_actor_factory
    from st4vla.workers.rollout.episode import RolloutOptions
    from st4vla.workers.rollout.policies import PolicySource
    from st4vla.workers.rollout.pool import Pool, PoolConfig
    from st4vla.workers.rollout.schedule import Lanes
    from st4vla.workers.rollout.worlds import family

    cameras = ("third_person",) if world == "tabletop" else ()
    plan = family(world).plan("seen", (), episodes, 0)[:episodes]
    source = PolicySource("random", RandomPolicyConfig(cameras=cameras, chunk_length=8))
    setup = WorkerSetup(source, RolloutOptions(), world, plan[0], looks=bool(cameras))
    pool: Pool[EpisodeSpec] = Pool(rollout_actor_factory(setup, num_actors), num_actors, PoolConfig())
    try:
        ray.get([actor.ready.remote() for actor in pool.actors])
        before, started = seconds(pool), time.perf_counter()
        work = Lanes(plan, lambda spec: spec.task)
        outcomes = list(pool.run(work.take, lambda actor, spec: actor.run.remote(spec)))
        wall_s, cpu_s = time.perf_counter() - started, seconds(pool) - before
    finally:
        pool.close()
    return Run(table(outcomes), cpu_s, wall_s)


def seconds(pool: Any) -> float:
    """Give the processor time so far of the actors and of this process."""
    import ray

    return sum(ray.get([actor.cpu_seconds.remote() for actor in pool.actors])) + time.process_time()


def table(outcomes: Sequence[Any]) -> list[dict[str, Any]]:
    """Give the rows without timings, in canonical order."""
    from st4vla.workers.evaluation.ledger import canonical_order, make_row, without_timings

    rows = [make_row(outcome.item, outcome.value.result) for outcome in outcomes]
    return [without_timings(row) for row in sorted(rows, key=canonical_order)]


def record(figures: Sequence[tuple[str, float, int]]) -> None:
    """Write the figures."""
    from benchmarks import results

    for name, share, differing in figures:
        results.record(f"evaluation: rows per CPU-second, {name}", 5, round(share, 3), "times", ">= 0.9", COMMAND)
        results.record(f"evaluation: rows that differ, {name}", 5, differing, "rows", "<= 0", COMMAND)


if __name__ == "__main__":
    main()
