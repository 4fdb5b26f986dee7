"""Climb the paper's ladder: run every step of every arm and seed, then write what came of it.

`plan.py` says what the steps are, `outcome.py` compares the arms, `page.py` shows it.
"""

from pathlib import Path
from typing import Any

from st4vla.workers.demo import show_and_run
from st4vla.workers.ladder.page import print_ladder, write_ladder
from st4vla.workers.ladder.plan import Ladder, make_ungrounded


def main(cfg: Any) -> int:
    """Run `st4vla ladder`."""
    from omegaconf import OmegaConf
    from rich.console import Console

    from st4vla.platform.tracking import Tracker, TrackingConfig

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    tracking = TrackingConfig(**settings["tracking"])
    console = Console()
    with Tracker.open(tracking, "ladder", Path(settings["run_dir"]).name) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        ladder = Ladder(settings, tracker.run_id if tracking.enabled else None)
        run_all(console, ladder)
        results, page = write_ladder(ladder)
        tracker.metrics(results.metrics())
        tracker.artifact(page)
        tracker.artifact(page.with_suffix(".json"))
    print_ladder(console, results, page)
    return 0


def run_all(console: Any, ladder: Ladder) -> None:
    """Run every step of every seed, each in a process of its own."""
    for step in ladder.data_steps():
        show_and_run(console, step)
    for seed in ladder.seeds:
        make_ungrounded(ladder, seed)
        for step in ladder.seed_steps(seed):
            show_and_run(console, step)
