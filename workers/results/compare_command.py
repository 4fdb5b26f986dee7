"""Run `st4vla compare RUN_A RUN_B`: compare, record, print."""

import json
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.workers.results.compare import CompareResult, compare_runs
from st4vla.workers.results.comparison_table import print_comparison


def main(cfg: Any) -> int:
    """Run `st4vla compare`."""
    from omegaconf import OmegaConf

    from st4vla.platform.tracking import Tracker, TrackingConfig

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    if Path(settings["run_a"]).resolve() == Path(settings["run_b"]).resolve():
        raise ConfigError(f"{settings['run_a']} was given twice; compare it with another run.")
    result = compare_runs(settings["run_a"], settings["run_b"])
    with Tracker.open(TrackingConfig(**settings["tracking"]), "compare", f"{result.a} against {result.b}") as tracker:
        tracker.params({"run_a": settings["run_a"], "run_b": settings["run_b"]})
        tracker.metrics(flat_metrics(result))
        tracker.text(json.dumps(result.plain(), indent=1), "comparison.json")
    if settings["out"]:
        Path(settings["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(settings["out"]).write_text(json.dumps(result.plain(), indent=1))
    print_comparison(result)
    return 0


def flat_metrics(result: CompareResult) -> dict[str, float]:
    """Give the numbers MLflow keeps."""
    whole, mean = result.groups[-1], result.mean
    return {
        "pairs": whole.a.total,
        "difference": whole.difference,
        "difference_low": whole.low,
        "difference_high": whole.high,
        "p_value": whole.p_value,
        "mean_of_tasks": mean.difference,
        "mean_of_tasks_low": mean.low,
        "mean_of_tasks_high": mean.high,
    }
