"""Measure what rendering only at looks saves: executed steps per CPU-second, chunk of 8, against a frame every step.

One process, one pooled tabletop world, two 128 px cameras, a random policy that is shown both; the same episodes in
both arms, which take turns so that a busy machine slows both. CPU time is the process's own, all threads.

    python -m benchmarks.eval_rate
"""

import time

from st4vla.platform.machine import prepare_process

EPISODES = 4
CAMERAS = ("third_person", "wrist")


def main() -> None:
    """Measure and record."""
    prepare_process()
    from benchmarks.results import record
    from st4vla.platform.policy.random_policy import RandomPolicy, RandomPolicyConfig
    from st4vla.workers.rollout.episode import RolloutOptions, run_episode
    from st4vla.workers.rollout.inference import LocalClient
    from st4vla.workers.rollout.worlds import family, warm_up

    worlds = family("tabletop")
    world = worlds.make_world("")
    warm_up(world, worlds.training("reach", 0), pictures=True)
    client = LocalClient(RandomPolicy(RandomPolicyConfig(cameras=CAMERAS, chunk_length=8)))
    specs = [spec for task in ("reach", "push") for spec in worlds.plan("seen", [task], EPISODES, 0)]
    steps, seconds = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for spec in specs:
        for every_step in (False, True):
            started = time.process_time()
            rollout = run_episode(world, client, spec, RolloutOptions(execute=8, idle_renders=every_step))
            seconds[every_step] += time.process_time() - started
            steps[every_step] += rollout.result.steps
    rates = {arm: steps[arm] / seconds[arm] for arm in steps}
    command = "python -m benchmarks.eval_rate"
    record(
        "evaluation: env steps per CPU-second, chunk of 8", 2, round(rates[False], 1), "steps/CPU-s", "report", command
    )
    record(
        "evaluation: env steps per CPU-second, a frame every step",
        2,
        round(rates[True], 1),
        "steps/CPU-s",
        "report",
        command,
    )
    record(
        "evaluation: env steps per CPU-second over a frame every step",
        2,
        round(rates[False] / rates[True], 2),
        "times",
        ">= 4",
        command,
    )
    print(f"{rates[False]:.1f} steps per CPU-second, {rates[True]:.1f} with a frame every step")


if __name__ == "__main__":
    main()
