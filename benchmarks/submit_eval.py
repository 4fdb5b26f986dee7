"""Measure `submit`: a small evaluation on a warm local cluster, from the command to its first episode.

The cluster is started here and has run one job before; the rows are compared with those of the same evaluation run
in the ordinary way, timings aside.

    python -m benchmarks.submit_eval
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import record
from st4vla.workers.evaluation.ledger import without_timings

COMMAND = "python -m benchmarks.submit_eval"
ST4VLA = (sys.executable, "-m", "st4vla.platform.cli")
EVALUATION = ("eval", "policy=random", "suite=seen", "tasks=[reach,push]", "episodes=4", "tracking=off", "name=rows")
POLL_S = 0.1
TIMEOUT_S = 300.0


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as folder:
        run(*ST4VLA, "cluster", "start")
        try:
            run(*ST4VLA, "submit", "track", "show")
            seconds = first_row_after(Path(folder) / "job")
        finally:
            run(*ST4VLA, "cluster", "stop")
        run(*ST4VLA, *EVALUATION, f"run_dir={folder}/here")
        differing = count_differing(rows(Path(folder) / "job"), rows(Path(folder) / "here"))
    record("submit: warm, command to first episode", 2, round(seconds, 1), "s", "<= 30", COMMAND)
    record("submit: rows differing from the local run", 2, differing, "rows", "<= 0", COMMAND)


def run(*words: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True)


def first_row_after(folder: Path) -> float:
    """Submit the evaluation, wait for it to end, and give the seconds until its ledger held a row."""
    started = time.monotonic()
    job = subprocess.Popen([*ST4VLA, "submit", *EVALUATION, f"run_dir={folder}"])
    while not rows(folder):
        if job.poll() or time.monotonic() - started > TIMEOUT_S:
            job.kill()
            raise SystemExit(f"the submitted evaluation wrote no row within {TIMEOUT_S:.0f} s; see its log above")
        time.sleep(POLL_S)
    seconds = time.monotonic() - started
    if code := job.wait():
        raise SystemExit(f"the submitted evaluation ended with exit code {code}; see its log above")
    return seconds


def rows(folder: Path) -> list[dict]:
    """Read the rows of the evaluation's ledger without their timings; none where there is no ledger yet."""
    ledger = folder / "rows" / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [without_timings(row) for row in found if "episode_id" in row]


def count_differing(one: list[dict], other: list[dict]) -> int:
    """Count the episodes whose rows are not the same on both sides."""
    left, right = ({row["episode_id"]: row for row in side} for side in (one, other))
    return sum(left.get(name) != right.get(name) for name in left.keys() | right.keys())


if __name__ == "__main__":
    main()
