"""Kill what carries an evaluation, at random and ten times, and hold its table against that of an unbroken run.

The command runs as anybody would run it, with a Ray of its own, in the world of one dot, each of whose steps sleeps.
After a random number of new rows one victim is killed by SIGKILL: a rollout actor, the driver, or the raylet. Where
that ends the command it is started again. At the end every planned episode must have one row, and the rows, timings
left out, must be those of a run that nobody disturbed.

    python -m benchmarks.eval_faults [--record] [--kills 10] [--seed 0]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

EPISODES = 100
COMMAND = "python -m benchmarks.eval_faults"
VICTIMS = ("actor", "driver", "raylet")
GIVE_UP_S = 1500.0


def main() -> None:
    """Run, kill, compare, and record if asked to."""
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="st4vla-faults-") as scratch:
        unbroken, broken = Path(scratch) / "unbroken", Path(scratch) / "broken"
        finish(start(unbroken))
        killed, starts = torment(broken, random.Random(given.seed), given.kills)
        same, once, retries = judge(unbroken, broken)
    print(f"killed {dict(killed)}, {starts} starts, {retries} retries; each episode once: {once}; same table: {same}")
    if not (same and once):
        raise SystemExit("the table differs from that of the unbroken run")
    if given.record:
        from benchmarks.results import record

        name = "evaluation: episodes lost, doubled or changed by 10 random SIGKILLs of actors, driver and raylet"
        record(name, 5, 0, "episodes", "<= 0", COMMAND)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start(folder: Path) -> subprocess.Popen:
    """Start the evaluation in a session of its own."""
    words = ["eval", "random", "world=sleeping_dot", "suite=[seen,moved_object]", "tasks=[dot]", f"episodes={EPISODES}"]
    words += ["films=0", "workers=2", "tracking=off", "engine.num_cpus=2", f"run_dir={folder.parent}", "seed=7"]
    words += [f"name={folder.name}", "pool.retries=10"]
    return subprocess.Popen(
        [sys.executable, "-m", "st4vla.platform.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> None:
    """Wait for a run that should succeed."""
    if process.wait(GIVE_UP_S) != 0:
        raise SystemExit("the undisturbed evaluation failed; run the command by hand to see why")


def torment(folder: Path, generator: random.Random, kills: int) -> tuple[Counter[str], int]:
    """Run the evaluation and kill until it is through; give who was killed and how often it was started."""
    killed: Counter[str] = Counter()
    # All three are killed at least twice; the order and the moment are drawn.
    order = list(VICTIMS) * 2 + generator.choices(VICTIMS, k=max(0, kills - 6))
    generator.shuffle(order)
    run, total = Supervised(folder), 3 * EPISODES
    for number, victim in enumerate(order[:kills]):
        target = total * (number + generator.random()) / (kills + 1)
        while count_rows(folder) < target or not kill(run.process, victim):
            run.keep_alive()
        killed[victim] += 1
        print(f"killed {victim} at {count_rows(folder)} of {total} rows", flush=True)
    while run.process.poll() != 0:
        run.keep_alive()
    return killed, run.starts


class Supervised:
    """One command that is started again whenever it has ended."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._members: list[psutil.Process] = []
        self._give_up = time.monotonic() + GIVE_UP_S
        self.process, self.starts = start(folder), 1

    def keep_alive(self) -> None:
        """Start the command again if it has failed; wait a moment."""
        if time.monotonic() > self._give_up:
            raise SystemExit("the evaluation does not come to an end")
        if self.process.poll():
            clean_up(self._members)
            self.process, self.starts = start(self._folder), self.starts + 1
        self._members = family_of(self.process.pid) or self._members
        time.sleep(0.2)


def family_of(pid: int) -> list[psutil.Process]:
    """List the processes that a command started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def clean_up(processes: list[psutil.Process]) -> None:
    """End what a killed driver left behind; Ray's own reaper needs a moment for it."""
    _, left = psutil.wait_procs(processes, timeout=10)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def kill(driver: subprocess.Popen, victim: str) -> bool:
    """Kill one victim of a running command; False where it has none now, as between two starts."""
    if victim == "driver":
        alive = driver.poll() is None
        if alive:
            driver.kill()
        return alive
    names = {"actor": "ray::RolloutActor", "raylet": "raylet"}
    for process in family_of(driver.pid):
        try:
            title = " ".join(process.cmdline()) if victim == "actor" else process.name()
            if title.startswith(names[victim]):
                process.kill()
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def count_rows(folder: Path) -> int:
    """Count the rows of a ledger that is being written."""
    path = folder / "ledger.jsonl"
    return path.read_bytes().count(b'{"suite"') if path.exists() else 0


def judge(unbroken: Path, broken: Path) -> tuple[bool, bool, int]:
    """Compare the ledgers: same rows, each episode once, and how many retries there were."""
    from st4vla.workers.evaluation.ledger import read_rows, without_timings

    tables = [[without_timings(row) for row in read_rows(folder / "ledger.jsonl")[1]] for folder in (unbroken, broken)]
    lines = [json.loads(line) for line in (broken / "ledger.jsonl").read_text().splitlines()[1:]]
    ids = [line["episode_id"] for line in lines if "event" not in line]
    once = len(ids) == len(set(ids)) == 3 * EPISODES
    return tables[0] == tables[1], once, sum("event" in line for line in lines)


if __name__ == "__main__":
    main()
