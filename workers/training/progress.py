"""Show a training run on the terminal's last line, and record its rows."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from st4vla.platform.machine import program
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.drawings import DRAWINGS, drawn_at
from st4vla.platform.train.loop import Row

log = logging.getLogger(__name__)
ROWS = "rows.jsonl"
# Where there is no terminal, a line this often.
LINE_EVERY_S = 15.0
ON_THE_LINE = {"loss/total": "loss", "loss/robot/loss": "action", "loss/grounding/loss": "grounding"}


class TrainProgress:
    """A progress bar with losses, samples per second, data wait and the time left; every row also goes to tracking.

    Steps done again after a worker died move the bar back; their rows are not recorded twice. Every row is also a line
    of `rows.jsonl` in the run's folder, and what validation drew is recorded with its row.
    """

    def __init__(self, config: TrainConfig, tracker: Any, folder: Path) -> None:
        self.tracker = tracker
        self._folder, self._rows = folder, folder / ROWS
        drop_torn_line(self._rows)
        self.newest: Row = {}
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(f"train {config.stage}", total=config.steps, said="starting the workers")
        self._recorded = {key_of(row) for row in read_rows(folder)}
        self._line_due = 0.0

    def add(self, row: Row) -> None:
        """Show a row, and record it unless its step was recorded before."""
        step, values = int(row["step"]), {key: value for key, value in row.items() if key != "step"}
        self.newest |= row
        said = describe(values)
        if "step_s" in values:
            self._bar.update(self._task, completed=step, said=said)
        for name in (key.removeprefix("alarm/") for key in values if key.startswith("alarm/")):
            log.warning("step %d: %s jumped to %.3g times its running mean", step, name, values[f"alarm/{name}"])
        if said and not self._console.is_terminal and (time.monotonic() >= self._line_due or "step_s" not in values):
            log.info("step %d: %s", step, said)
            self._line_due = time.monotonic() + LINE_EVERY_S
        if (key := key_of(row)) not in self._recorded:
            self._recorded.add(key)
            with self._rows.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            self.tracker.metrics({key.replace("*", "_"): value for key, value in values.items()}, step)
            if any(key.startswith("validation/") for key in values):
                for picture in drawn_at(self._folder, step):
                    self.tracker.artifact(picture, DRAWINGS)

    def __enter__(self) -> "TrainProgress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()


def key_of(row: Row) -> tuple[float, str]:
    """Tell a row from others: its step, and what kind of figures it holds."""
    return row["step"], next((name.split("/")[0] for name in row if name != "step"), "")


def drop_torn_line(path: Path) -> None:
    """Cut off what a kill left of a line, so that the next one does not continue it."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def read_rows(folder: Path) -> list[Row]:
    """Give the rows of a run so far, none for a new one."""
    path = folder / ROWS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def describe(values: Row) -> str:
    """Say a row in a few words."""
    words = [f"{name} {values[key]:.3f}" for key, name in ON_THE_LINE.items() if key in values]
    if "samples_per_s" in values:
        words.append(
            f"{values['samples_per_s']:.0f} samples/s, waiting for data {100 * values['data_wait_share']:.0f} %"
        )
    words += [
        f"{value:.0f} unreadable in {key.removeprefix('unreadable/')}"
        for key, value in values.items()
        if "unreadable/" in key
    ]
    words += [f"{key.removeprefix('validation/')} {value:.3g}" for key, value in values.items() if "validation/" in key]
    return ", ".join(words)


def print_outcome(newest: Row, policy: Path) -> None:
    """Print the last figures and where the policy lies."""
    table = Table("figure", "last")
    for key, value in sorted(newest.items()):
        if key.startswith(("loss/", "validation/", "unreadable/")) or key in ("samples_per_s", "data_wait_share"):
            table.add_row(key, f"{value:.4g}")
    console = Console()
    console.print(table)
    text = (
        f"The policy is {policy}. Try it: {program('st4vla')} eval policy={policy} suite=seen tasks=[reach] episodes=20"
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
