"""Keep every figure the project quotes in one file, and make docs/results.md from it.

A row of benchmarks/results.json:

    name      what was measured; the key, unique
    issue     number of the issue that set the goal
    value     the number, or null where nobody has measured it
    unit      its unit
    goal      "<= X" or ">= X" in the same unit, or "report" where only a number is asked for
    ok        whether the value reaches the goal; false where value is null, null if that is for want of `needs`
    command   the command that measured it, run from the repository's root
    hardware  the machine it ran on
    date      the day, as YYYY-MM-DD
    needs     optional: what the measurement needs that not every machine has, e.g. "gpu"

A benchmark script calls `record`; `python -m benchmarks.results` writes docs/results.md anew.
"""

import datetime
import json
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "results.md"
FIELDS = ("name", "issue", "value", "unit", "goal", "ok", "command", "hardware", "date")
COMPARISONS = {"<=": operator.le, ">=": operator.ge}


def record(
    name: str,
    issue: int,
    value: float | None,
    unit: str,
    goal: str,
    command: str,
    needs: str = "",
    results: Path = RESULTS,
    page: Path = PAGE,
) -> dict[str, Any]:
    """Write one measured figure, in place of an earlier one of the same name, and make the page anew."""
    measured = value is not None
    row: dict[str, Any] = {
        "name": name,
        "issue": issue,
        "value": value,
        "unit": unit,
        "goal": goal,
        "ok": reaches(value, goal, needs),
        "command": command,
        "hardware": describe_hardware() if measured else "",
        "date": datetime.date.today().isoformat() if measured else "",
    }
    if needs:
        row["needs"] = needs
    check_row(row)
    rows = {kept["name"]: kept for kept in read_results(results)} | {name: row}
    ordered = sorted(rows.values(), key=lambda row: (row["issue"], row["name"]))
    results.write_text(json.dumps(ordered, indent=2) + "\n")
    page.write_text(render_page(ordered))
    return row


def read_results(results: Path = RESULTS) -> list[dict[str, Any]]:
    """Read all rows; none where the file is not there yet."""
    return json.loads(results.read_text()) if results.exists() else []


def reaches(value: float | None, goal: str, needs: str = "") -> bool | None:
    """Say whether a value reaches a goal such as "<= 30"."""
    if value is None:
        return None if needs else False
    if goal == "report":
        return True
    sign, bound = parse_goal(goal)
    return bool(COMPARISONS[sign](value, bound))


def parse_goal(goal: str) -> tuple[str, float]:
    """Split ">= 70" into its sign and its number.

    Raises:
        ValueError: the goal is of another form.
    """
    match = re.fullmatch(r"(<=|>=) (-?\d+(?:\.\d+)?)", goal)
    if match is None:
        raise ValueError(f'goal is {goal!r}; expected "<= NUMBER", ">= NUMBER" or "report"')
    return match[1], float(match[2])


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row that breaks the module's schema.

    Raises:
        ValueError: a field is missing, unknown, or contradicts another.
    """
    name = row.get("name", "a row without a name")
    if set(row) - {"needs"} != set(FIELDS):
        raise ValueError(f"{name} has the fields {sorted(row)}; expected {sorted(FIELDS)} and at most needs")
    if row["goal"] != "report":
        parse_goal(row["goal"])
    if row["ok"] != reaches(row["value"], row["goal"], row.get("needs", "")):
        raise ValueError(f"{name} says ok {row['ok']}, but {row['value']} against {row['goal']!r} is not")
    if row["value"] is not None and not (row["command"] and row["hardware"] and row["date"]):
        raise ValueError(f"{name} has a value; expected command, hardware and date with it")


def describe_hardware() -> str:
    """Name this machine: processors, memory, GPU."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {_gpu_name()}"


def _gpu_name() -> str:
    if not Path("/proc/driver/nvidia/version").exists():
        return "no GPU"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no usable GPU"


def render_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Give docs/results.md: one table for each issue."""
    lines = [
        "# Results",
        "",
        "Made by `python -m benchmarks.results` from `benchmarks/results.json`; each figure was written by the command",
        "beside it. A figure nobody has measured yet says so and counts as not reached.",
    ]
    for issue in sorted({row["issue"] for row in rows}):
        lines += ["", f"## Issue {issue}", "", "| figure | value | goal | reached | command | hardware | date |"]
        lines.append("|---|---|---|---|---|---|---|")
        lines += [_table_row(row) for row in rows if row["issue"] == issue]
    return "\n".join(lines) + "\n"


def _table_row(row: Mapping[str, Any]) -> str:
    unit = row["unit"]
    value = "not measured" if row["value"] is None else f"{row['value']:.4g} {unit}"
    goal = "to report" if row["goal"] == "report" else f"{row['goal']} {unit}"
    reached = {True: "yes", False: "no", None: f"needs {row.get('needs', '')}"}[row["ok"]]
    command = f"`{row['command']}`" if row["command"] else ""
    return f"| {row['name']} | {value} | {goal} | {reached} | {command} | {row['hardware']} | {row['date']} |"


def main() -> None:
    """Check every row and write the page."""
    rows = read_results()
    for row in rows:
        check_row(row)
    PAGE.write_text(render_page(rows))


if __name__ == "__main__":
    main()
