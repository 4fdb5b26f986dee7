"""Record what the demo's policy reached on seen objects, from a demo that was run in this checkout.

st4vla demo && python -m benchmarks.demo_success
"""

import json
from pathlib import Path

from benchmarks.results import ROOT, record

COMMAND = "st4vla demo && python -m benchmarks.demo_success"


def record_success(results: Path, command: str) -> None:
    """Record the success rates of an evaluation's results.json."""
    for group in json.loads(results.read_text())["groups"]:
        if group["suite"] == "seen" and group["task"] in ("reach", "push"):
            goal = ">= 70" if group["task"] == "reach" else "report"
            per_cent = round(100 * group["success"]["value"], 1)
            record(f"tiny after the demo: {group['task']} success", 2, per_cent, "%", goal, command)


if __name__ == "__main__":
    record_success(ROOT / "runs" / "demo" / "eval" / "seen" / "results.json", COMMAND)
