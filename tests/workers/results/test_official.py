"""Facts about reporting as a benchmark does."""

import math
from statistics import fmean

import pytest
from rich.console import Console

from st4vla.workers.results.official import official_table, official_tables, published, variant_rates
from st4vla.workers.results.tables import official_table as printed

PAPER = {
    "title": "a benchmark",
    "source": "a paper",
    "columns": {"Drawer": ["open_drawer", "close_drawer"], "Can": ["can"]},
    "notes": ["mind the gap"],
    "models": [{"name": "A", "success": [50.0, None], "average": 50.0}],
}


def rows(task, variant, marks, suite="bench", perturbations=()):
    failures = {"w": "", "l": "task", "x": "timeout"}
    return [
        {"suite": suite, "task": task, "variant": variant, "perturbations": perturbations}
        | {"success": mark == "w", "failure": failures[mark]}
        for mark in marks
    ]


def test_variants_count_the_same_whatever_their_number_of_scored_episodes():
    given = rows("can", "day", "wwww") + rows("can", "night", "wlxx")
    table = official_table("bench", PAPER, given)
    can = table.columns[1]
    assert can.value == pytest.approx(0.75)
    assert (can.pooled.successes, can.pooled.total, can.variants) == (5, 6, 2)


def test_a_variant_that_infrastructure_ended_is_missing_from_its_column_and_forbids_the_average():
    drawers = rows("open_drawer", "a", "w") + rows("close_drawer", "a", "w")
    lost = official_table("bench", PAPER, drawers + rows("can", "day", "wl") + rows("can", "night", "xx"))
    can = lost.columns[1]
    assert (can.value, can.variants, can.planned, can.missing) == (0.5, 1, 2, "1 of 2 variants")
    assert lost.columns[0].whole and math.isnan(lost.average)
    whole = official_table("bench", PAPER, drawers + rows("can", "day", "wl") + rows("can", "night", "ww"))
    assert whole.average == pytest.approx(0.875) and whole.columns[1].missing == ""


def test_variants_of_the_benchmark_that_were_not_run_are_missing_too():
    (table,) = official_tables(rows("move_near", "base", "w", suite="simplerenv_google_va"))
    assert [column.planned for column in table.columns] == [27, 8, 42, 7]
    assert table.columns[1].missing == "1 of 8 variants" and table.columns[0].missing == ""
    console = Console(width=200)
    with console.capture() as shown:
        console.print(printed(table))
    assert "1 of 8 variants" in shown.get()


def test_opening_and_closing_count_half_each_in_drawer():
    given = rows("open_drawer", "a", "wwww") + rows("open_drawer", "b", "llll") + rows("close_drawer", "a", "llll")
    assert official_table("bench", PAPER, given).columns[0].value == pytest.approx(0.25)


def test_an_average_over_fewer_columns_is_not_given():
    table = official_table("bench", PAPER, rows("can", "day", "w"))
    assert table.columns[1].value == 1.0
    assert math.isnan(table.columns[0].value) and math.isnan(table.average)


def test_a_column_needs_all_its_tasks():
    assert math.isnan(official_table("bench", PAPER, rows("open_drawer", "a", "w")).columns[0].value)


def test_disturbed_episodes_are_not_official():
    assert variant_rates(rows("can", "day", "w", perturbations=("object_moved",))) == []


def test_only_suites_that_papers_report_on_have_a_table():
    assert official_tables(rows("reach", "default", "w", suite="seen")) == []


def test_published_rows_are_whole_and_their_averages_are_their_cells_or_say_why_not():
    for suite, paper in published().items():
        for model in paper["models"]:
            assert len(model["success"]) == len(paper["columns"]), (suite, model)
            cells = [cell for cell in model["success"] if cell is not None]
            off = abs(fmean(cells) - model["average"])
            assert off <= 0.11 or "note" in model, (suite, model)
            assert len(cells) == len(model["success"]) or "note" in model, (suite, model)


def test_the_published_row_of_the_method_stands_as_printed():
    table = published()["simplerenv_google_vm"]
    assert table["models"][-1] == {"name": "ST4VLA", "success": [97.3, 98.0, 65.3, 77.8], "average": 84.6}
