"""Record what the main job's policy reached, from a run of it at either size that was finished in this checkout.

st4vla demo && python -m benchmarks.demo_success
make reproduce && python -m benchmarks.demo_success --size full
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, record

COMMAND = "st4vla demo && python -m benchmarks.demo_success"
FULL_COMMAND = "make reproduce && python -m benchmarks.demo_success --size full"
LEAST = {"reach": 85, "push": 85, "pick_up": 60, "put_on": 60}
LEAST_LOWER_BOUND = {"reach": 77, "push": 77}

Rates = Mapping[tuple[str, str], Mapping[str, Any]]


def read_rates(results: Path) -> Rates:
    """Give {(suite, task): {"value", "low", "high", ...}} of an evaluation's undisturbed groups."""
    groups = json.loads(results.read_text())["groups"]
    return {(group["suite"], group["task"]): group["success"] for group in groups if not group["disturbed"]}


def per_cent(share: float) -> float:
    """Give a share in per cent, to a tenth."""
    return round(100 * share, 1)


def record_success(results: Path, command: str) -> None:
    """Record the demo's success rates."""
    rates = read_rates(results)
    for task, goal in (("reach", ">= 70"), ("push", "report")):
        value = per_cent(rates["seen", task]["value"])
        record(f"tiny after the demo: {task} success", 2, value, "%", goal, command)


def record_full(results: Path, command: str) -> None:
    """Record the success rates at full size, and what other wordings cost as a mean over the tasks."""
    rates = read_rates(results)
    for task, least in LEAST.items():
        name = f"tiny after reproduce: {task.replace('_', ' ')}"
        record(f"{name} success", 2, per_cent(rates["seen", task]["value"]), "%", f">= {least}", command)
        if bound := LEAST_LOWER_BOUND.get(task):
            lower = per_cent(rates["seen", task]["low"])
            record(f"{name} lower Wilson bound", 2, lower, "%", f">= {bound}", command)
    for suite, goal in (("unseen_wording", "<= 10"), ("new_words", "report")):
        lost = [rates["seen", task]["value"] - rates[suite, task]["value"] for task in LEAST]
        name = f"tiny after reproduce: seen minus {suite.replace('_', ' ')}"
        record(name, 2, per_cent(sum(lost) / len(lost)), "points", goal, command)


def main() -> None:
    """Record from the run that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("demo", "full"), default="demo")
    if parser.parse_args().size == "demo":
        record_success(ROOT / "runs" / "demo" / "eval" / "seen" / "results.json", COMMAND)
    else:
        record_full(ROOT / "runs" / "reproduce" / "eval" / "seen" / "results.json", FULL_COMMAND)


if __name__ == "__main__":
    main()
