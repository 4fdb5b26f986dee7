"""Print results as tables; the only place where the rollout commands write to standard output."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from st4vla.platform.machine import program
from st4vla.workers.results.official import OfficialTable
from st4vla.workers.results.report import percent
from st4vla.workers.results.summary import Summary, read_summary


def evaluation_tables(summary: Summary) -> list[Table]:
    """Give the success table, and the table of disturbances where there are any."""
    tables = [_success_table(summary)]
    return tables + ([_paired_table(summary)] if summary.paired else [])


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    for name in names:
        table.add_column(name)
    for name in numbers:
        # Wide enough for "100 % [100, 100]": names may wrap, numbers may not.
        width = 16 if name in ("success", "drop", "recovery") else None
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    return table


def _success_table(summary: Summary) -> Table:
    table = _table(
        "success, with Wilson 95 % interval", ("suite", "task"), ("success", "of", "credit", "steps", "infra")
    )
    last = ""
    for group in summary.groups:
        table.add_row(
            "" if group.suite == last else group.suite,
            group.task + (", disturbed" if group.disturbed else ""),
            str(group.success),
            str(group.success.total),
            percent(group.partial_credit),
            "-" if group.median_steps is None else f"{group.median_steps:g}",
            str(group.infrastructure),
            style="bold" if group.task == "all" else None,
        )
        last = group.suite
    return table


def _paired_table(summary: Summary) -> Table:
    title = "disturbed episodes beside their twins (drop in points, median steps to recover)"
    table = _table(title, ("suite", "task"), ("drop", "recovery", "steps"))
    for pair in summary.paired:
        outcome = pair.outcome
        drop = f"{100 * outcome.drop:+.0f} [{100 * outcome.drop_low:+.0f}, {100 * outcome.drop_high:+.0f}]"
        table.add_row(
            pair.suite,
            pair.task,
            drop if outcome.twin.total else "-",
            str(outcome.recovery),
            "-" if outcome.median_recovery_steps is None else f"{outcome.median_recovery_steps:g}",
        )
    return table


def official_table(official: OfficialTable, references: int = 4) -> Table:
    """Give our row of a benchmark's table, and under it the last published ones."""
    columns = [column.name for column in official.columns]
    table = _table(f"{official.title}: per variant, then the mean", ("policy",), [*columns, "average"])
    ours = [_number(100 * column.value) for column in official.columns]
    table.add_row("this run", *ours, _number(100 * official.average), style="bold")
    if any(column.missing for column in official.columns):
        table.add_row("  mean of", *(column.missing for column in official.columns), "")
    table.add_row("  pooled", *(str(column.pooled) for column in official.columns), "")
    for row in official.references[-references:]:
        shown = [_number(value) for value in row.success]
        table.add_row(f"{row.name}, published", *shown, _number(row.average), style="dim")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1f}"


def print_evaluation(done: Any) -> None:
    """Print the tables of an evaluation and where its report and films lie."""
    console = Console()
    for table in evaluation_tables(done.summary):
        console.print(table)
    for official in done.official:
        console.print(official_table(official))
    if done.decision is not None:
        console.print(f"sequential test: {done.decision}", highlight=False)
    for group in done.summary.groups:
        if len(group.stages) > 1 and group.task != "all":
            shares = ", ".join(f"{number}: {percent(share)}" for number, share in enumerate(group.stages, start=1))
            console.print(f"stages reached, {group.name}: {shares}", highlight=False)
    console.print(f"report: {done.report}", soft_wrap=True)
    films = sorted((done.folder / "films").glob("*.mp4"))
    if films:
        console.print(f"films:  {films[0].parent} ({len(films)})", soft_wrap=True)


def print_collection(done: Any) -> None:
    """Print what was collected and how to look at it."""
    console = Console()
    table = _table("collected", ("task",), ("success", "attempts"))
    for task, rate in done.experts.items():
        table.add_row(task, str(rate), str(rate.total))
    console.print(table)
    console.print(
        f"{done.kept} episodes, {done.frames} steps; {done.new_episodes} of them new, in {done.seconds:.1f} s "
        f"({done.rate:.2f} episodes/s)"
    )
    for version, folder in done.folders.items():
        console.print(f"{version}: {folder}", soft_wrap=True)
        console.print(f"look at it: {program('st4vla')} show {folder}", soft_wrap=True)


def times_table(titles: Sequence[str], seconds: Sequence[float]) -> Table:
    """Give how long each step of a job took."""
    table = _table("time", ("step",), ("seconds",))
    for title, spent in zip(titles, seconds, strict=True):
        table.add_row(title, f"{spent:.0f}")
    table.add_row("all", f"{sum(seconds):.0f}", style="bold")
    return table


def print_results(path: Path) -> None:
    """Print the tables of an evaluation from the results.json in its folder."""
    for table in evaluation_tables(read_summary(json.loads(path.read_text()))):
        Console().print(table)
