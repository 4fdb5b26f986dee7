"""The results file keeps its schema, and its page says what it says."""

import json
from pathlib import Path

import pytest

from benchmarks.results import PAGE, check_row, reaches, read_results, record, render_page


def test_every_recorded_row_keeps_the_schema() -> None:
    rows = read_results()
    assert rows and len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        check_row(row)


def test_the_results_page_is_current() -> None:
    assert PAGE.read_text() == render_page(read_results()), "run: python -m benchmarks.results"


def test_a_measured_figure_replaces_the_unmeasured_one(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "results.md"
    record("speed", 2, None, "steps/s", ">= 4", "", results=results, page=page)
    record("speed", 2, 5.0, "steps/s", ">= 4", "python -m benchmarks.speed", results=results, page=page)
    (row,) = json.loads(results.read_text())
    assert row["ok"] and row["value"] == 5.0 and row["hardware"] and row["date"]
    assert "| speed | 5 steps/s | >= 4 steps/s | yes |" in page.read_text()


@pytest.mark.parametrize(
    ("value", "goal", "needs", "reached"),
    [
        (30.0, "<= 30", "", True),
        (30.1, "<= 30", "", False),
        (69.9, ">= 70", "", False),
        (12.0, "report", "", True),
        (None, ">= 70", "", False),
        (None, ">= 70", "gpu", None),
    ],
)
def test_a_goal_is_reached_at_its_bound_and_never_unmeasured(
    value: float | None, goal: str, needs: str, reached: bool | None
) -> None:
    assert reaches(value, goal, needs) is reached


def test_a_goal_in_words_is_refused() -> None:
    with pytest.raises(ValueError, match="goal is 'about 3'"):
        reaches(3.0, "about 3")
