"""Run the main job from end to end: collect, ground, act, evaluate; each step is a command anybody can repeat.

Every step is its own process, so that its memory is gone when it ends, and goes on where a stopped demo left it.
"""

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError, WorkerLost
from st4vla.platform.machine import program

log = logging.getLogger(__name__)

PACKAGED = "packaged"


@dataclass(frozen=True)
class Step:
    """One command of the demo: what it does in words, and its command line without `st4vla`."""

    title: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """Give the command line as a user would type it."""
        return shlex.join((program("st4vla"), *self.words))


def plan_steps(settings: Mapping[str, Any], run_id: str | None) -> list[Step]:
    """Turn the demo's settings into its steps.

    Raises:
        ConfigError: a step of the settings is unknown, or the packaged base checkpoint is not there.
    """
    run, common = Path(settings["run_dir"]), _common(settings, run_id)
    steps = []
    for name in settings["steps"]:
        if name not in settings["step"]:
            raise ConfigError(f"steps names {name!r}; expected some of {', '.join(settings['step'])}.")
        step = settings["step"][name]
        words = [step["command"], *(f"{key}={hydra_value(value)}" for key, value in step["settings"].items())]
        if step["settings"].get("parent") == PACKAGED:
            words = [word for word in words if not word.startswith("parent=")] + [f"parent={packaged_base()}"]
        steps.append(Step(step["title"], (*words, *common)))
    run.mkdir(parents=True, exist_ok=True)
    return steps


def _common(settings: Mapping[str, Any], run_id: str | None) -> list[str]:
    groups = [f"engine={settings['engine_group']}", f"tracking={settings['tracking_group']}"]
    return groups + ([f"parent_run={run_id}"] if run_id else [])


def hydra_value(value: Any) -> str:
    """Write a setting as Hydra reads it from a command line."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(hydra_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def packaged_base() -> Path:
    """Give the folder of the base checkpoint that ships with the package.

    Raises:
        ConfigError: this copy has none.
    """
    import st4vla.platform.policy as policy

    folder = Path(policy.__path__[0]).parent / "base"
    if not (folder / "policy.yaml").is_file():
        raise ConfigError(
            f"there is no base checkpoint in {folder}; make it with `make base`, or start from random weights with "
            "step.ground.settings.parent=null."
        )
    return folder


def run_step(step: Step) -> float:
    """Run one step in a process of its own, on this terminal, and give its seconds.

    Raises:
        WorkerLost: it failed; its own message has been printed.
    """
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "st4vla.platform.cli", *step.words], check=False).returncode
    if code:
        raise WorkerLost(
            f"the step {step.title!r} ended with exit code {code}; mend it and go on by the same command; "
            f"the step was: {step.command}"
        )
    return time.monotonic() - started


def show_and_run(console: Any, step: Step, place: str = "") -> float:
    """Show a step's title, behind its `place` among the others, and its command; then run it and give its seconds."""
    console.rule(f"{place} {step.title}".strip(), align="left")
    console.print(f"$ {step.command}", style="dim", soft_wrap=True, highlight=False, markup=False)
    return run_step(step)


def main(cfg: Any) -> int:
    """Run `st4vla demo`."""
    from omegaconf import OmegaConf
    from rich.console import Console

    from st4vla.platform.tracking import Tracker, TrackingConfig

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    console = Console()
    tracking = TrackingConfig(**settings["tracking"])
    with Tracker.open(tracking, "demo", Path(settings["run_dir"]).name) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        steps = plan_steps(settings, tracker.run_id if tracking.enabled else None)
        seconds = []
        for number, step in enumerate(steps, start=1):
            seconds.append(show_and_run(console, step, f"{number}/{len(steps)}"))
            tracker.metrics({f"seconds/{number}_{step.words[0]}": seconds[-1]}, step=number)
    print_ending(console, steps, seconds, Path(settings["run_dir"]))
    return 0


def print_ending(console: Any, steps: Sequence[Step], seconds: Sequence[float], run: Path) -> None:
    """Print the times, the tables, where the reports lie, and what to try next."""
    from st4vla.workers.results.tables import print_results, times_table

    console.rule("done", align="left")
    console.print(times_table([step.title for step in steps], seconds))
    reports = sorted(run.glob("eval/*/report.html"))
    for report in reports:
        print_results(report.with_name("results.json"))
    for report in reports:
        console.print(f"report: {report}", soft_wrap=True)
    films = sorted(run.glob("eval/*/films/*success.mp4")) or sorted(run.glob("eval/*/films/*.mp4"))
    console.print("try next:")
    if films:
        _print_command(console, f"xdg-open {shlex.quote(str(films[0]))}", "watch a film of an episode")
    _print_command(console, f"{program('st4vla')} track ui", "how to open every record in a browser")


def _print_command(console: Any, command: str, what: str) -> None:
    console.print(f"  {command}  # {what}", soft_wrap=True, highlight=False, markup=False)
