"""Write one self-contained HTML report of an evaluation, and its plots as PNG."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from st4vla.workers.results.official import OfficialTable
from st4vla.workers.results.plots import draw_plots
from st4vla.workers.results.summary import Summary

Row = Mapping[str, Any]

# A report this large still opens quickly and can be sent by mail; films beyond it are linked.
EMBED_LIMIT_BYTES = 16 * 1024 * 1024


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
        official: tables of suites that papers report on.
    """

    title: str
    facts: Mapping[str, Any]
    summary: Summary
    rows: Sequence[Row]
    films: Sequence[Film] = field(default_factory=tuple)
    official: Sequence[OfficialTable] = ()


def write_report(folder: Path, given: ReportInput) -> Path:
    """Write `report.html` and `plots/*.png` into the run folder and give the report's path."""
    plots = draw_plots(given.summary, given.rows)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, png in plots.items():
        (folder / "plots" / f"{name}.png").write_bytes(png)
    path = folder / "report.html"
    path.write_text(render(folder, given, plots), encoding="utf-8")
    return path


def render(folder: Path, given: ReportInput, plots: Mapping[str, bytes]) -> str:
    """Fill the page's template; everything is embedded, except films beyond the size limit."""
    import jinja2

    template = (resources.files("st4vla.workers.results") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["rate"] = str
    environment.filters["percent"] = percent
    environment.filters["points"] = points
    return environment.from_string(template).render(
        title=given.title,
        facts=given.facts,
        summary=given.summary,
        official=given.official,
        infrastructure=sum(group.infrastructure for group in given.summary.groups if group.task != "all"),
        plots={name: as_data_url(png, "image/png") for name, png in plots.items()},
        films=_embedded(folder, given.films),
        stage_groups=[group for group in given.summary.groups if group.stages and group.task != "all"],
    )


def percent(share: float) -> str:
    """Write a share as "73 %", or "-" for nan."""
    return "-" if share != share else f"{100 * share:.0f} %"


def points(percentage: float | None) -> str:
    """Write a percentage as papers do, "73.2", or "-" for none."""
    return "-" if percentage is None or percentage != percentage else f"{percentage:.1f}"


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


def failure_reasons(rows: Sequence[Row], most: int = 5) -> list[tuple[str, int]]:
    """List the commonest reasons of infrastructure failures."""
    return Counter(row["reason"] for row in rows if row["reason"]).most_common(most)
