"""Print results as tables; the only place where the rollout commands write to standard output."""

from typing import Any

from rich.console import Console
from rich.table import Table

from st4vla.workers.report import percent
from st4vla.workers.summary import Summary


def evaluation_tables(summary: Summary) -> list[Table]:
    """Give the success table, and the table of disturbances where there are any."""
    tables = [_success_table(summary)]
    return tables + ([_paired_table(summary)] if summary.paired else [])


def _success_table(summary: Summary) -> Table:
    table = Table(title="success, with Wilson 95 % interval", title_justify="left")
    for name in ("suite", "task", ""):
        table.add_column(name)
    for name in ("success", "episodes", "partial credit", "steps", "infrastructure"):
        table.add_column(name, justify="right")
    for group in summary.groups:
        table.add_row(
            group.suite,
            group.task,
            "disturbed" if group.disturbed else "",
            str(group.success),
            str(group.success.total),
            percent(group.partial_credit),
            "-" if group.median_steps is None else f"{group.median_steps:g}",
            str(group.infrastructure),
            style="bold" if group.task == "all" else None,
        )
    return table


def _paired_table(summary: Summary) -> Table:
    table = Table(title="disturbed episodes beside their undisturbed twins", title_justify="left")
    for name in ("suite", "task"):
        table.add_column(name)
    for name in ("twin", "disturbed", "drop (points)", "recovery", "steps to recover"):
        table.add_column(name, justify="right")
    for pair in summary.paired:
        outcome = pair.outcome
        drop = f"{100 * outcome.drop:+.0f} [{100 * outcome.drop_low:+.0f}, {100 * outcome.drop_high:+.0f}]"
        table.add_row(
            pair.suite,
            pair.task,
            str(outcome.twin),
            str(outcome.disturbed),
            drop if outcome.twin.total else "-",
            str(outcome.recovery),
            "-" if outcome.median_recovery_steps is None else f"{outcome.median_recovery_steps:g}",
        )
    return table


def print_evaluation(done: Any) -> None:
    """Print the tables of an evaluation and where its report and films lie."""
    console = Console()
    for table in evaluation_tables(done.summary):
        console.print(table)
    for group in done.summary.groups:
        if len(group.stages) > 1:
            shares = ", ".join(f"{stage} {percent(share)}" for stage, share in group.stages.items())
            console.print(f"{group.name}: {shares}")
    console.print(f"report: {done.report}", soft_wrap=True)
    films = sorted((done.folder / "films").glob("*.mp4"))
    if films:
        console.print(f"films:  {films[0].parent} ({len(films)})", soft_wrap=True)
