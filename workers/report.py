"""Write one self-contained HTML report of an evaluation, and its plots as PNG."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from st4vla.workers.intervals import Rate
from st4vla.workers.rollout import time_budget
from st4vla.workers.summary import Group, Summary

Row = Mapping[str, Any]

# A report this large still opens quickly and can be sent by mail; films beyond it are linked.
EMBED_LIMIT_BYTES = 16 * 1024 * 1024
BLUE, ORANGE = "#3b6ea5", "#d98032"
PARTS = {"physics": "#7a9e7e", "render": "#3b6ea5", "policy": "#d98032", "wait": "#b9b9b9"}
KINDS = {"task": "#b9b9b9", "crash": "#c0504d", "timeout": "#8064a2", "policy": "#d98032"}


@dataclass(frozen=True)
class Film:
    """One video of the gallery: its file relative to the run folder, and what to say under it."""

    path: str
    title: str
    caption: str
    success: bool


@dataclass(frozen=True)
class ReportInput:
    """What a report is made from.

    Attributes:
        title: its heading, e.g. "tiny on seen, moved_object".
        facts: settings and provenance, shown as a list.
        summary: the numbers.
        rows: the ledger's rows.
        films: the gallery.
    """

    title: str
    facts: Mapping[str, Any]
    summary: Summary
    rows: Sequence[Row]
    films: Sequence[Film] = field(default_factory=tuple)


def write_report(folder: Path, given: ReportInput) -> Path:
    """Write `report.html` and `plots/*.png` into the run folder and give the report's path."""
    plots = {name: draw(given) for name, draw in PLOTS.items()}
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, png in plots.items():
        (folder / "plots" / f"{name}.png").write_bytes(png)
    path = folder / "report.html"
    path.write_text(render(folder, given, plots), encoding="utf-8")
    return path


def render(folder: Path, given: ReportInput, plots: Mapping[str, bytes]) -> str:
    """Fill the page's template; everything is embedded, except films beyond the size limit."""
    import jinja2

    template = (resources.files("st4vla.workers") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["rate"] = str
    environment.filters["percent"] = percent
    return environment.from_string(template).render(
        title=given.title,
        facts=given.facts,
        summary=given.summary,
        infrastructure=sum(group.infrastructure for group in given.summary.groups if group.task != "all"),
        plots={name: as_data_url(png, "image/png") for name, png in plots.items()},
        films=_embedded(folder, given.films),
        stage_groups=[group for group in given.summary.groups if group.stages and group.task != "all"],
    )


def percent(share: float) -> str:
    """Write a share as "73 %", or "-" for nan."""
    return "-" if share != share else f"{100 * share:.0f} %"


def as_data_url(content: bytes, media_type: str) -> str:
    """Embed a file in a page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _embedded(folder: Path, films: Sequence[Film]) -> list[dict[str, Any]]:
    room = EMBED_LIMIT_BYTES
    shown = []
    for film in films:
        content = (folder / film.path).read_bytes()
        room -= len(content)
        source = as_data_url(content, "video/mp4") if room >= 0 else film.path
        shown.append({"film": film, "source": source})
    return shown


def plot_success(given: ReportInput) -> bytes:
    """Plot success by suite and task with 95 % intervals."""
    groups = given.summary.groups
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
    axes.text(min(rate.high + 0.015, 0.93), place, f"{rate.successes}/{rate.total}", va="center", fontsize=8)


def plot_failures(given: ReportInput) -> bytes:
    """Plot how episodes ended, other than by success."""
    groups = _single_groups(given.summary)
    figure, axes = _figure(1.1 + 0.38 * len(groups))
    for place, group in enumerate(reversed(groups)):
        left = 0
        for kind, colour in KINDS.items():
            count = group.failures.get(kind, 0)
            axes.barh(place, count, left=left, color=colour, height=0.6, label=kind if place == 0 else None)
            left += count
    axes.set_yticks(range(len(groups)), [group.name for group in reversed(groups)])
    axes.set(xlabel="episodes that failed")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _single_groups(summary: Summary) -> list[Group]:
    return [group for group in summary.groups if group.task != "all"]


def plot_time(given: ReportInput) -> bytes:
    """Plot where the rollout workers' time went."""
    budget = time_budget(given.rows)
    whole = sum(budget.values()) or 1.0
    figure, axes = _figure(1.3)
    left = 0.0
    for part, seconds in budget.items():
        label = f"{part} {seconds:.1f} s ({100 * seconds / whole:.0f} %)"
        axes.barh(0, seconds, left=left, color=PARTS[part], label=label)
        left += seconds
    axes.set_yticks([])
    axes.set(xlabel="seconds, summed over rollout workers", xlim=(0, left or 1))
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _png(figure)


def plot_steps(given: ReportInput) -> bytes:
    """Plot control steps to success, by task."""
    figure, axes = _figure(2.6)
    by_task: dict[str, list[int]] = {}
    for row in given.rows:
        if row["success"]:
            by_task.setdefault(row["task"], []).append(row["steps"])
    if by_task:
        most = max(max(steps) for steps in by_task.values())
        axes.hist(
            list(by_task.values()), bins=min(30, most + 1), range=(0, most + 1), stacked=True, label=list(by_task)
        )
        axes.legend(fontsize=8, frameon=False)
    axes.set(xlabel="control steps to success", ylabel="episodes")
    return _png(figure)


PLOTS = {"success": plot_success, "failures": plot_failures, "time": plot_time, "steps": plot_steps}


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


def failure_reasons(rows: Sequence[Row], most: int = 5) -> list[tuple[str, int]]:
    """List the commonest reasons of infrastructure failures."""
    return Counter(row["reason"] for row in rows if row["reason"]).most_common(most)
