"""Measure how fast PPO learns a task from state: `python -m benchmarks.rl_state [reach|push]`.

Learns with the task's settings of configs/rl.yaml for the issue's minutes at most, or until the share of solved
training episodes, exploration included, is high enough, then evaluates over fresh scenes without exploration. Other
work on the machine stretches the wall time; the CPU time beside it says what an idle machine needs.
"""

import argparse
import shutil
from typing import Any

from omegaconf import OmegaConf

from benchmarks.results import record
from st4vla.platform.cli import compose_command, configure_logging
from st4vla.platform.machine import prepare_process

ISSUE = 2
SUCCESS_GOAL = {"reach": ">= 95", "push": ">= 80"}
MINUTES = {"reach": 15, "push": 40}
STOP_AT = {"reach": 0.99, "push": 0.92}
FOLDER = "runs/benchmarks/rl"


def main() -> None:
    """Measure one task and record its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("task", nargs="?", default="reach", choices=sorted(SUCCESS_GOAL))
    parser.add_argument("--minutes", type=float, help="learn so long at most instead of what the issue allows")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    arguments = parser.parse_args()
    prepare_process()
    configure_logging()
    measure(arguments.task, arguments.minutes or MINUTES[arguments.task], arguments.resume)


def measure(task: str, minutes: float, resume: bool) -> None:
    """Learn, evaluate and write the rows."""
    from st4vla.platform.tracking import Tracker, TrackingConfig
    from st4vla.workers.cluster import EngineConfig, connect
    from st4vla.workers.reinforcement.learn import print_learned, read_config, reinforce

    if not resume:
        shutil.rmtree(f"{FOLDER}/{task}-seed0", ignore_errors=True)
    overrides = [f"task={task}", f"run_dir={FOLDER}", f"stop_at={STOP_AT[task]}", f"minutes={minutes}", "tracking=off"]
    settings: Any = OmegaConf.to_container(compose_command("rl", overrides), resolve=True)
    config = read_config(settings)
    with Tracker.open(TrackingConfig(**settings["tracking"]), "rl", task) as tracker:
        with connect(EngineConfig(**settings["engine"])):
            learned = reinforce(config, tracker)
    print_learned(config, learned)
    command = f"python -m benchmarks.rl_state {task}"
    rate, standing = learned.evaluated, learned.standing
    what = f"PPO from state: {task}"
    within = minutes <= MINUTES[task]
    if within:
        name = f"{what} success within {MINUTES[task]} min"
        record(name, ISSUE, round(100 * rate.value, 1), "%", SUCCESS_GOAL[task], command)
    else:
        record(f"{what} success", ISSUE, round(100 * rate.value, 1), "%", "report", command)
    record(f"{what} learning, wall time", ISSUE, round(standing.wall_s / 60, 1), "min", "report", command)
    record(f"{what} learning, CPU time", ISSUE, round(standing.cpu_s / 60, 1), "min", "report", command)


if __name__ == "__main__":
    main()
