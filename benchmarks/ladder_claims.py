"""Record what the ladder that was finished in this checkout says of the paper's two claims.

make ladder && python -m benchmarks.ladder_claims
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.results import ROOT, record

COMMAND = "make ladder && python -m benchmarks.ladder_claims"
LADDER = ROOT / "runs" / "ladder" / "ladder.json"
# (better, worse) arms by their names in configs/ladder.yaml: what the row is called, and the least gain in points.
CLAIMS = {
    ("full", "vanilla"): ("full over vanilla", 20),
    ("guided", "cotrained"): ("guided over co-trained", 0),
}


def record_claims(comparisons: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Record each claim's gain, and the lower end of its paired 95 % interval, which is to be above 0."""
    for pair, (words, least) in CLAIMS.items():
        found = comparisons[pair]
        name = f"ladder, tiny: {words}"
        record(name, 4, round(100 * found["difference"], 1), "points", f">= {least}", COMMAND)
        lower = round(100 * found["low"], 1)
        record(f"{name}, lower end of the interval", 4, lower, "points", ">= 0", COMMAND)


def main() -> None:
    """Record from the ladder that is there."""
    results = json.loads(LADDER.read_text())
    record_claims({(one["better"], one["worse"]): one for one in results["comparisons"]})


if __name__ == "__main__":
    main()
