"""Measure what a newcomer meets: clone, `make demo`, the table; minutes, peak memory and what the policy then does.

Downloads count; what pip has cached on this machine counts as it is.

    python -m benchmarks.fresh_clone
"""

import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.demo_success import record_success
from benchmarks.results import ROOT, record

COMMAND = "python -m benchmarks.fresh_clone"
SAMPLE_EVERY_S = 2.0


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "st4vla"
        started = time.monotonic()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        peak_gb = run_watched(["make", "demo"], clone)
        record("fresh clone to demo table", 2, round((time.monotonic() - started) / 60, 1), "min", "<= 20", COMMAND)
        record("demo peak memory", 2, round(peak_gb, 1), "GB", "<= 8", COMMAND)
        record_success(clone / "runs" / "demo" / "eval" / "seen" / "results.json", COMMAND)


def run_watched(command: list[str], folder: Path) -> float:
    """Run a command and give the most memory its processes held together, in GB; shared pages are counted once."""
    process = psutil.Popen(command, cwd=folder)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(held(child) for child in [process, *process.children(recursive=True)]))
        time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}; nothing was recorded")
    return peak / 1e9


def held(process: psutil.Process) -> int:
    """Give the bytes of a process, each shared page divided by its sharers; 0 for one that is gone."""
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


if __name__ == "__main__":
    main()
