"""Compare two evaluations episode by episode; `compare_command.py` is this behind Hydra.

Episodes are paired by id, so both runs must have been planned alike; what only one of them has, or what
infrastructure ended in either, is counted and left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.errors import DataError
from st4vla.workers.evaluation.ledger import Row, read_rows
from st4vla.workers.results.paired import Comparison, MeanOfTasks, compare_pairs, mean_of_tasks
from st4vla.workers.results.summary import INFRASTRUCTURE


@dataclass(frozen=True)
class Leftovers:
    """Episodes in no pair: those only one run has, and those that infrastructure ended in A or in B."""

    only_in_a: int
    only_in_b: int
    unscored: int


@dataclass(frozen=True)
class CompareResult:
    """Everything the command says.

    Attributes:
        a, b: what to call the runs.
        groups: by suite and task, and "all" last.
        mean: over tasks, each counting the same.
        leftovers: what was left out.
        differences: settings, other than the policy, in which the runs differ.
    """

    a: str
    b: str
    groups: tuple[Comparison, ...]
    mean: MeanOfTasks
    leftovers: Leftovers
    differences: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Give the JSON-ready form."""
        return asdict(self) | {"verdict": self.groups[-1].verdict}


def compare_runs(run_a: str | Path, run_b: str | Path) -> CompareResult:
    """Compare two run folders.

    Raises:
        DataError: a folder holds no ledger, or the runs share no scored episode.
    """
    header_a, rows_a = read_rows(ledger_path(run_a))
    header_b, rows_b = read_rows(ledger_path(run_b))
    pairs, leftovers = pair_rows(rows_a, rows_b)
    if not pairs:
        raise DataError(
            f"{run_a} and {run_b} share no scored episode ({leftovers.only_in_a} only in the first, "
            f"{leftovers.only_in_b} only in the second, {leftovers.unscored} ended by infrastructure); evaluate both "
            "with the same suite, tasks, episodes and seed."
        )
    by_task: dict[str, list[tuple[bool, bool]]] = {}
    for one, other in pairs:
        arm = " (disturbed)" if one["perturbations"] else ""
        by_task.setdefault(f"{one['suite']} / {one['task']}{arm}", []).append((one["success"], other["success"]))
    everything = compare_pairs("all", [pair for won in by_task.values() for pair in won])
    groups = [compare_pairs(name, won) for name, won in by_task.items()]
    return CompareResult(
        a=name_of(run_a, header_a),
        b=name_of(run_b, header_b),
        groups=(*groups, everything),
        mean=mean_of_tasks(by_task),
        leftovers=leftovers,
        differences=setting_differences(header_a, header_b),
    )


def ledger_path(run: str | Path) -> Path:
    """Find the ledger of a run folder; its path itself will do."""
    path = Path(run)
    return path / "ledger.jsonl" if path.is_dir() else path


def pair_rows(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> tuple[list[tuple[Row, Row]], Leftovers]:
    """Pair rows by episode id, in canonical order."""
    of_b = {row["episode_id"]: row for row in rows_b}
    both = [(row, of_b[row["episode_id"]]) for row in rows_a if row["episode_id"] in of_b]
    scored = [(a, b) for a, b in both if not {a["failure"], b["failure"]} & set(INFRASTRUCTURE)]
    return scored, Leftovers(len(rows_a) - len(both), len(rows_b) - len(both), len(both) - len(scored))


def name_of(run: str | Path, header: Mapping[str, Any]) -> str:
    """Call a run by its folder and its policy."""
    path = ledger_path(run)
    return f"{path.parent.name} ({header['settings'].get('policy', 'unknown policy')})"


def setting_differences(header_a: Mapping[str, Any], header_b: Mapping[str, Any]) -> tuple[str, ...]:
    """List how the runs differ in other ways than by their policy."""
    a, b = header_a["settings"], header_b["settings"]
    return tuple(
        f"{key}: {a.get(key)!r} against {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if key != "policy" and a.get(key) != b.get(key)
    )
