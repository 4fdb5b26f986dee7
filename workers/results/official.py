"""Report a benchmark as its authors do: success per variant, then the mean of variants, beside what papers print.

SimplerEnv (its scripts and `calc_metrics_evaluation_videos.py`): a variant is one directory of results; its rate
comes first, the variants of a task are averaged with equal weight, tasks that share a column likewise (open and close
make "drawer"), and the columns' mean is the average. Pooled success counts every episode the same; the two differ
where variants have different numbers of scored episodes. A column of which variants are missing, be it that they were
not run or that infrastructure ended all their episodes, says so and enters no average.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from st4vla.workers.results.intervals import Rate, wilson
from st4vla.workers.results.summary import INFRASTRUCTURE

Row = Mapping[str, Any]


@dataclass(frozen=True)
class VariantRate:
    """Success of one variant of one task; `rate` is of no episodes where infrastructure ended them all."""

    suite: str
    task: str
    variant: str
    rate: Rate


@dataclass(frozen=True)
class Column:
    """One column of an official table.

    Attributes:
        name: as papers call it.
        value: mean over tasks of the mean over those variants that had a scored episode, nan where a task had none.
        pooled: the same episodes, each counting the same, with Wilson's interval.
        variants: how many variants had a scored episode.
        planned: how many the benchmark has.
    """

    name: str
    value: float
    pooled: Rate
    variants: int
    planned: int

    @property
    def whole(self) -> bool:
        """Whether the value is the benchmark's own: every variant had a scored episode."""
        return self.variants == self.planned

    @property
    def missing(self) -> str:
        """Say what the value lacks, e.g. "8 of 9 variants"; "" where it is whole or there is none."""
        return "" if self.whole or self.value != self.value else f"{self.variants} of {self.planned} variants"


@dataclass(frozen=True)
class Reference:
    """A published row: success in percent by column and on average, None where none was printed, and its caveat."""

    name: str
    success: tuple[float | None, ...]
    average: float | None
    note: str = ""


@dataclass(frozen=True)
class OfficialTable:
    """Our row of a benchmark's table, and the published ones.

    Attributes:
        average: mean of the columns; nan unless every column is whole.
        source, notes: where the published rows come from, and what to keep in mind with them.
    """

    suite: str
    title: str
    columns: tuple[Column, ...]
    average: float
    references: tuple[Reference, ...]
    source: str
    notes: tuple[str, ...]


def variant_rates(rows: Sequence[Row]) -> list[VariantRate]:
    """Give success by suite, task and variant, undisturbed episodes only."""
    calm = [row for row in rows if not row["perturbations"]]
    by_variant: dict[tuple[str, str, str], list[Row]] = {}
    for row in calm:
        by_variant.setdefault((row["suite"], row["task"], row["variant"]), []).append(row)
    return [VariantRate(*key, _rate(members)) for key, members in by_variant.items()]


def _rate(rows: Sequence[Row]) -> Rate:
    scored = [row for row in rows if row["failure"] not in INFRASTRUCTURE]
    return wilson(sum(row["success"] for row in scored), len(scored))


def official_tables(rows: Sequence[Row]) -> list[OfficialTable]:
    """Make the table of each suite in the rows that has a published one."""
    suites = dict.fromkeys(row["suite"] for row in rows)
    known = published()
    return [official_table(suite, known[suite], rows, official_variants(suite)) for suite in suites if suite in known]


@cache
def official_variants(suite: str) -> frozenset[tuple[str, str]]:
    """Give every (task, variant) that the benchmark scores."""
    from st4vla.workers.rollout.worlds import family, family_of

    return frozenset((spec.task, spec.variant) for spec in family(family_of([suite])).plan(suite, (), None, 0))


def official_table(
    suite: str, paper: Mapping[str, Any], rows: Sequence[Row], planned: Set[tuple[str, str]] = frozenset()
) -> OfficialTable:
    """Make the table of one suite.

    Args:
        planned: (task, variant) of the whole benchmark, beside those that have rows.
    """
    rates = variant_rates([row for row in rows if row["suite"] == suite])
    columns = tuple(_column(name, tasks, rates, planned) for name, tasks in paper["columns"].items())
    values = [column.value if column.whole else float("nan") for column in columns]
    return OfficialTable(
        suite=suite,
        title=paper["title"],
        columns=columns,
        average=fmean(values),  # nan as soon as one of them is
        references=tuple(
            Reference(row["name"], tuple(row["success"]), row["average"], row.get("note", ""))
            for row in paper["models"]
        ),
        source=paper["source"],
        notes=tuple(paper["notes"]),
    )


def _column(name: str, tasks: Sequence[str], rates: Sequence[VariantRate], planned: Set[tuple[str, str]]) -> Column:
    wanted = {(rate.task, rate.variant) for rate in rates} | planned
    mine = [rate for rate in rates if rate.task in tasks and rate.rate.total]
    by_task = [[rate.rate.value for rate in mine if rate.task == task] for task in tasks]
    done = all(by_task)
    return Column(
        name=name,
        value=fmean(fmean(values) for values in by_task) if done else float("nan"),
        pooled=wilson(sum(rate.rate.successes for rate in mine), sum(rate.rate.total for rate in mine)),
        variants=len(mine),
        planned=sum(task in tasks for task, _ in wanted),
    )


@cache
def published() -> Mapping[str, Any]:
    """Read the published tables, by suite."""
    import yaml

    return yaml.safe_load((resources.files("st4vla.workers.results") / "published.yaml").read_text(encoding="utf-8"))
