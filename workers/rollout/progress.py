"""Show how far a set of episodes has come, on the terminal's last line."""

from collections.abc import Mapping, Sequence
from typing import Any


def counting_bar() -> Any:
    """Make a bar on the error stream that counts, and shows what a task's field `rate` says."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class EpisodeProgress:
    """A progress bar that also says episodes per second and the success rate so far."""

    def __init__(self, title: str, total: int, done: Sequence[Mapping[str, Any]] = ()):
        self._bar = counting_bar()
        self._finished = len(done)
        self._won = sum(bool(row["success"]) for row in done)
        self._task = self._bar.add_task(title, total=total, completed=len(done), rate=self._rate(0.0))

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one finished episode."""
        self._finished += 1
        self._won += bool(row["success"])
        self._bar.advance(self._task)
        self._bar.update(self._task, rate=self._rate(self._bar.tasks[0].speed or 0.0))

    def _rate(self, speed: float) -> str:
        share = f"{100 * self._won / self._finished:.0f} % success" if self._finished else ""
        return f"{share}, {speed:.1f} episodes/s" if speed else share

    def __enter__(self) -> "EpisodeProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
