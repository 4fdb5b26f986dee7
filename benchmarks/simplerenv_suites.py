"""Run whole SimplerEnv suites with a random policy by one command, and say where the wall time went.

The command is `st4vla eval random suite=[...]`, as anybody would type it; the policy is shown the robot's camera at
each look, so that the pictures are in the time. Stopped at any moment, the same line goes on; the wall time of
all its starts is added up beside the run. The whole, 96 WidowX and 864 visual matching episodes, takes long.

    python -m benchmarks.simplerenv_suites [--record] [--suites simplerenv_widowx,simplerenv_google_vm]
        [--episodes N] [--workers 2] [--run-dir runs/simplerenv_suites]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

COMMAND = "python -m benchmarks.simplerenv_suites"
SUITES = "simplerenv_widowx,simplerenv_google_vm"


def main() -> None:
    """Run, add up, and record if asked to."""
    given = arguments()
    folder = Path(given.run_dir) / "all"
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "st4vla.platform.cli", *words(given)]).returncode
    wall_s = add_up(folder / "wall.json", time.monotonic() - started)
    if code != 0:
        raise SystemExit(code)
    episodes, budget = breakdown(folder / "ledger.jsonl")
    whole = sum(budget.values()) or 1.0
    shares = ", ".join(f"{part} {100 * seconds / whole:.0f} %" for part, seconds in budget.items())
    print(f"{episodes} episodes in {wall_s:.0f} s of wall time by {given.workers} rollout actors; {shares}")
    if given.record:
        record(given, episodes, wall_s, budget)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--suites", default=SUITES)
    parser.add_argument("--episodes", type=int, default=None, help="episodes a task, the whole protocol unless given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run-dir", default="runs/simplerenv_suites")
    return parser.parse_args()


def words(given: argparse.Namespace) -> list[str]:
    """Give the words of the command."""
    episodes = "null" if given.episodes is None else str(given.episodes)
    chosen = [f"suite=[{given.suites}]", f"episodes={episodes}", f"workers={given.workers}"]
    placed = [f"run_dir={given.run_dir}", "name=all", "films=0"]
    looks = ["random.cameras=[camera]", "random.chunk_length=8", "execute=8"]
    return ["eval", "random", *chosen, *placed, *looks]


def add_up(path: Path, elapsed_s: float) -> float:
    """Add this start's wall time to that of those before it."""
    before = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*before, elapsed_s]))
    return sum(before) + elapsed_s


def breakdown(ledger: Path) -> tuple[int, dict[str, float]]:
    """Count the episodes, and sum the rollout actors' seconds by what they went to."""
    from st4vla.workers.evaluation.ledger import read_rows
    from st4vla.workers.rollout.episode import time_budget

    rows = read_rows(ledger)[1]
    return len(rows), time_budget(rows)


def record(given: argparse.Namespace, episodes: int, wall_s: float, budget: dict[str, float]) -> None:
    """Write the figures of a whole run.

    Raises:
        SystemExit: it was not the whole protocol.
    """
    from benchmarks import results

    if given.episodes is not None or given.suites != SUITES:
        raise SystemExit("only the whole protocol is recorded; leave --episodes and --suites out")
    name = f"SimplerEnv: {episodes} episodes (WidowX and visual matching), {given.workers} rollout actors"
    results.record(f"{name}: wall time", 5, round(wall_s / 60, 1), "minutes", "report", COMMAND)
    for part, seconds in budget.items():
        results.record(f"{name}: {part}", 5, round(seconds / 60, 1), "worker-minutes", "report", COMMAND)


if __name__ == "__main__":
    main()
