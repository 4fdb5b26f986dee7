"""Measure what a step of SimplerEnv costs: CPU-ms per executed step, replanning every step and every eighth.

One process, one pooled world, software Vulkan; a random policy that is shown the camera's picture whenever it replans.
Each task runs some steps of one episode in either arm, in turns, so that a busy machine slows both. CPU time is the
process's own, all threads, judging included; resets, which a long run hides, are printed apart.

    python -m benchmarks.simplerenv_rate [--record] [--steps N]
"""

import argparse
import time
from typing import Any

from st4vla.platform.machine import prepare_process

CASES = (
    "widowx_spoon_on_towel__ep00",
    "widowx_carrot_on_plate__ep00",
    "widowx_stack_cube__ep00",
    "widowx_put_eggplant_in_basket__ep00",
    "google_robot_pick_horizontal_coke_can__grid00",
    "google_robot_move_near_v0__ep00",
    "google_robot_open_top_drawer__a0",
    "google_robot_place_apple_in_closed_top_drawer__a0",
)
ARMS = {1: "replanning every step", 8: "chunk of 8"}
GOALS = {1: "<= 50", 8: "<= 15"}
IMAGE_SIZE = 224


def main() -> None:
    """Measure, print, and record if asked to."""
    prepare_process()
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args()
    costs = measure(options.steps)
    for chunk, values in costs.items():
        mean = sum(values) / len(values)
        print(f"{ARMS[chunk]}: {mean:.1f} CPU-ms a step, the dearest task {max(values):.1f} ({GOALS[chunk]})")
        if options.record:
            from benchmarks.results import record

            name, command = (
                f"SimplerEnv: CPU-ms per step, {ARMS[chunk]}",
                "python -m benchmarks.simplerenv_rate --record",
            )
            record(name, 5, round(mean, 1), "CPU-ms", GOALS[chunk], command)
            record(f"{name}, dearest task", 5, round(max(values), 1), "CPU-ms", "report", command)


def measure(steps: int) -> dict[int, list[float]]:
    """Give the CPU-ms per step of every task, by how many steps a look serves."""
    from st4vla.envs.simpler.states import case_of_name
    from st4vla.envs.simpler.world import SimplerWorld
    from st4vla.platform.policy.random_policy import RandomPolicy, RandomPolicyConfig

    world = SimplerWorld()
    policy = RandomPolicy(RandomPolicyConfig(cameras=("third_person",), chunk_length=8, image_size=IMAGE_SIZE))
    costs: dict[int, list[float]] = {chunk: [] for chunk in ARMS}
    for name in CASES:
        started = time.process_time()
        world.reset_case(case_of_name(name))
        reset_ms = 1e3 * (time.process_time() - started)
        world.observe(policy.spec)  # the first look at a scene loads its meshes
        spent = dict.fromkeys(ARMS, 0.0)
        for block in range(max(1, steps // 8)):
            for chunk in ARMS:
                spent[chunk] += _block(world, policy, chunk, 10 * block)
        per_step = {chunk: 1e3 * total / (8 * max(1, steps // 8)) for chunk, total in spent.items()}
        for chunk, value in per_step.items():
            costs[chunk].append(value)
        shown = ", ".join(f"{ARMS[chunk]} {value:.1f}" for chunk, value in per_step.items())
        print(f"{name}: {shown}; its first reset {reset_ms:.0f}", flush=True)
    world.close()
    return costs


def _block(world: Any, policy: Any, chunk: int, look: int) -> float:
    """Run eight steps, looking and replanning at every `chunk`-th; give the CPU-seconds they took."""
    started = time.process_time()
    for number in range(8):
        if number % chunk == 0:
            observation = world.observe(policy.spec)
            actions = policy.act([observation], ["measured"], [(0, look + number)])[0].actions
        world.step(actions[number % chunk])
    return time.process_time() - started


if __name__ == "__main__":
    main()
