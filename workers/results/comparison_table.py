"""Print what `st4vla compare` found, in words a reader can act on."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from st4vla.workers.results.compare import CompareResult
from st4vla.workers.results.paired import Comparison, MeanOfTasks


def comparison_table(result: CompareResult) -> Table:
    """Give the table: one line a task, all of them last; "only" counts the pairs that only A : only B won."""
    table = Table(
        title="success on the same episodes; A - B in points",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("suite / task", min_width=14)
    for name in ("A %", "B %", "pairs", "only", "A - B", "p", "more"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in result.groups:
        table.add_row(*_cells(group), style="bold" if group.name == "all" else None)
    return table


def _cells(group: Comparison) -> tuple[str, ...]:
    return (
        group.name,
        f"{100 * group.a.value:.1f}",
        f"{100 * group.b.value:.1f}",
        str(group.a.total),
        f"{group.only_a}:{group.only_b}",
        points(group.difference, group.low, group.high),
        f"{group.p_value:.1g}",
        "-" if group.more_pairs is None else str(group.more_pairs),
    )


def points(difference: float, low: float, high: float) -> str:
    """Write "+12 [+3, +21]"."""
    return f"{100 * difference:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


def verdict(result: CompareResult) -> str:
    """Say in a sentence what is decided."""
    whole = result.groups[-1]
    if whole.verdict != "open":
        return (
            f"{whole.verdict} on these episodes (McNemar's exact test, p = {whole.p_value:.3g}; effect, Cohen's g, "
            f"{whole.effect:+.2f})."
        )
    if whole.more_pairs is None:
        return f"Nothing is decided over {whole.a.total} pairs, and nothing points either way."
    return (
        f"Nothing is decided over {whole.a.total} pairs (p = {whole.p_value:.3g}); if what was seen is the truth, "
        f"about {whole.more_pairs} more pairs would decide it (5 %, power 80 %)."
    )


def mean_sentence(mean: MeanOfTasks) -> str:
    """Say the mean over tasks."""
    shown = points(mean.difference, mean.low, mean.high)
    name = "task" if mean.tasks == 1 else "tasks"
    return f"Mean of {mean.tasks} {name}: A {100 * mean.a:.1f} %, B {100 * mean.b:.1f} %, A - B {shown} (bootstrap)."


def print_comparison(result: CompareResult) -> None:
    """Print the comparison."""
    console = Console()
    console.print(f"A: {result.a}\nB: {result.b}", highlight=False, soft_wrap=True)
    console.print(comparison_table(result))
    console.print(verdict(result), highlight=False, soft_wrap=True)
    console.print(mean_sentence(result.mean), highlight=False, soft_wrap=True)
    left = result.leftovers
    if left.only_in_a or left.only_in_b or left.unscored:
        console.print(
            f"In no pair: {left.only_in_a} episodes only in A, {left.only_in_b} only in B, {left.unscored} that "
            "infrastructure ended in either.",
            soft_wrap=True,
        )
    if result.differences:
        console.print(f"The runs differ in more than the policy: {'; '.join(result.differences)}.", soft_wrap=True)
