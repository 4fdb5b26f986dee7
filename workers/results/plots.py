"""Draw the plots of a report as PNG; pure functions of its numbers and rows."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from st4vla.workers.results.intervals import Rate
from st4vla.workers.results.official import VariantRate, variant_rates
from st4vla.workers.results.summary import Group, Summary
from st4vla.workers.rollout.episode import time_budget

Row = Mapping[str, Any]

BLUE, ORANGE = "#3b6ea5", "#d98032"
PARTS = {"physics": "#7a9e7e", "render": "#3b6ea5", "policy": "#d98032", "wait": "#b9b9b9"}
KINDS = {"task": "#b9b9b9", "crash": "#c0504d", "timeout": "#8064a2", "policy": "#d98032"}
MOST_TASKS = 14


def draw_plots(summary: Summary, rows: Sequence[Row]) -> dict[str, bytes]:
    """Draw every plot that has something to show."""
    drawn = {name: draw(summary, rows) for name, draw in PLOTS.items()}
    return {name: png for name, png in drawn.items() if png is not None}


def plot_success(summary: Summary, rows: Sequence[Row]) -> bytes:
    """Plot success by suite and task with 95 % intervals."""
    groups = summary.groups
    figure, axes = _figure(0.9 + 0.38 * len(groups))
    for place, group in enumerate(reversed(groups)):
        _bar_with_interval(axes, place, group.success, ORANGE if group.disturbed else BLUE)
    axes.set_yticks(range(len(groups)), [group.name for group in reversed(groups)])
    axes.set(xlim=(0, 1), xlabel="success (bar: share, line: Wilson 95 %)")
    return _png(figure)


def _bar_with_interval(axes: Any, place: int, rate: Rate, colour: str) -> None:
    if not rate.total:
        return
    axes.barh(place, rate.value, color=colour, height=0.6)
    axes.plot([rate.low, rate.high], [place, place], color="#222222", linewidth=1.5)
    inside = rate.high > 0.9
    axes.text(
        rate.low - 0.015 if inside else rate.high + 0.015,
        place,
        f"{rate.successes}/{rate.total}",
        va="center",
        ha="right" if inside else "left",
        color="white" if inside else "black",
        fontsize=8,
    )


def plot_variants(summary: Summary, rows: Sequence[Row]) -> bytes | None:
    """Plot success by variant and task as a heat map, one for each suite that has variants; None without any."""
    by_suite: dict[str, list[VariantRate]] = {}
    for rate in variant_rates(rows):
        by_suite.setdefault(rate.suite, []).append(rate)
    shown = {suite: rates for suite, rates in by_suite.items() if len({rate.variant for rate in rates}) > 1}
    if not shown:
        return None
    heights = [1.7 + 0.26 * len({_cell(rate)[0] for rate in rates}) for rates in shown.values()]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, sum(heights)), dpi=110, layout="constrained")
    grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
    for (suite, rates), (axes,) in zip(shown.items(), grid, strict=True):
        _heat_map(axes, suite, rates)
    figure.colorbar(grid[0][0].images[0], ax=list(grid[:, 0]), label="success", shrink=0.6, fraction=0.04)
    return _png(figure)


def _cell(rate: VariantRate) -> tuple[str, str]:
    """Give row and column of a variant; one called "standing/plain" lies in row plain, in a column of its own."""
    group, _, name = rate.variant.rpartition("/")
    return name, " ".join(part.replace("_", " ") for part in (rate.task, group) if part)


def _heat_map(axes: Any, suite: str, rates: Sequence[VariantRate]) -> None:
    import numpy as np

    cells = {_cell(rate): rate.rate for rate in rates}
    names, columns = list(dict.fromkeys(row for row, _ in cells)), list(dict.fromkeys(column for _, column in cells))
    values = np.full((len(names), len(columns)), np.nan)
    for (row, column), rate in cells.items():
        place = names.index(row), columns.index(column)
        values[place] = rate.value
        colour = "white" if rate.total and rate.value > 0.6 else "black"
        text = f"{rate.successes}/{rate.total}" if rate.total else "-"
        axes.text(place[1], place[0], text, ha="center", va="center", fontsize=7, color=colour)
    axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(suite, fontsize=9, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def plot_failures(summary: Summary, rows: Sequence[Row]) -> bytes:
    """Plot how episodes ended, other than by success."""
    groups = _single_groups(summary)
    figure, axes = _figure(1.1 + 0.38 * len(groups))
    for place, group in enumerate(reversed(groups)):
        left = 0
        for kind, colour in KINDS.items():
            count = group.failures.get(kind, 0)
            axes.barh(place, count, left=left, color=colour, height=0.6, label=kind if place == 0 else None)
            left += count
    axes.set_yticks(range(len(groups)), [group.name for group in reversed(groups)])
    axes.set(xlabel="episodes that failed (task: the policy's; the others: infrastructure)")
    axes.set_xlim(0, max(1, axes.get_xlim()[1]))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _single_groups(summary: Summary) -> list[Group]:
    return [group for group in summary.groups if group.task != "all"]


def plot_time(summary: Summary, rows: Sequence[Row]) -> bytes:
    """Plot where the rollout workers' time went: seconds an episode by task, and in all."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    bars = dict(list(by_task.items())[:MOST_TASKS]) | {"all": list(rows)}
    whole = time_budget(rows)
    figure, axes = _figure(1.3 + 0.3 * len(bars))
    for place, members in enumerate(reversed(bars.values())):
        left = 0.0
        for part, seconds in time_budget(members).items():
            share = seconds / max(1, len(members))
            label = f"{part} {whole[part]:.1f} s ({100 * whole[part] / (sum(whole.values()) or 1):.0f} %)"
            axes.barh(place, share, left=left, color=PARTS[part], height=0.6, label=label if place == 0 else None)
            left += share
    axes.set_yticks(range(len(bars)), [name.replace("_", " ") for name in reversed(bars)])
    axes.set(xlabel="seconds of a rollout worker, an episode (in the legend: in all)")
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _png(figure)


def plot_steps(summary: Summary, rows: Sequence[Row]) -> bytes | None:
    """Plot control steps to success, by task; None where nothing succeeded, or everything takes its full time."""
    by_task: dict[str, list[int]] = {}
    for row in rows:
        if row["success"]:
            by_task.setdefault(row["task"], []).append(row["steps"])
    if len({step for steps in by_task.values() for step in steps}) < 2:
        return None
    figure, axes = _figure(2.6)
    most = max(max(steps) for steps in by_task.values())
    axes.hist(list(by_task.values()), bins=min(30, most + 1), range=(0, most + 1), stacked=True, label=list(by_task))
    axes.legend(fontsize=8, frameon=False)
    axes.set(xlabel="control steps to success", ylabel="episodes")
    return _png(figure)


PLOTS: dict[str, Callable[[Summary, Sequence[Row]], bytes | None]] = {
    "success": plot_success,
    "variants": plot_variants,
    "failures": plot_failures,
    "time": plot_time,
    "steps": plot_steps,
}


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    return figure, axes


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
