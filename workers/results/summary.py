"""Turn ledger rows into the numbers a report shows; pure functions of the rows.

Episodes that crashed, timed out or met an unusable answer are counted apart ("infrastructure") and are in no rate.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from st4vla.workers.results.intervals import Disturbance, Pair, Rate, disturbance, wilson

Row = Mapping[str, Any]
INFRASTRUCTURE = ("crash", "timeout", "policy")


@dataclass(frozen=True)
class Group:
    """Episodes of one suite and task, undisturbed or disturbed.

    Attributes:
        suite, task: their names; task "all" pools a suite.
        disturbed: whether a disturbance was planned for these episodes.
        success: share of scored episodes that succeeded.
        partial_credit: its mean over scored episodes, nan without any.
        stages: share of scored episodes that reached at least one stage, at least two, and so on.
        median_steps: median control steps of the successes, None without any.
        failures: episodes by kind of failure: task, crash, timeout, policy.
    """

    suite: str
    task: str
    disturbed: bool
    success: Rate
    partial_credit: float
    stages: tuple[float, ...]
    median_steps: float | None
    failures: dict[str, int]

    @property
    def name(self) -> str:
        """Give suite and task, and which arm of a paired suite it is."""
        return f"{self.suite} / {self.task}" + (" (disturbed)" if self.disturbed else "")

    @property
    def infrastructure(self) -> int:
        """Count the episodes that are in no rate."""
        return sum(self.failures.get(kind, 0) for kind in INFRASTRUCTURE)


@dataclass(frozen=True)
class PairedGroup:
    """What a disturbance cost on one task of a disturbed suite.

    Attributes:
        suite, task: their names; task "all" pools a suite.
        outcome: the comparison of the pairs.
        untouched: disturbed episodes that had succeeded before the disturbance came; they are in no pair.
    """

    suite: str
    task: str
    outcome: Disturbance
    untouched: int


@dataclass(frozen=True)
class Summary:
    """Everything a report says in numbers."""

    groups: tuple[Group, ...]
    paired: tuple[PairedGroup, ...]
    episodes: int
    retries: int

    def plain(self) -> dict[str, Any]:
        """Give the JSON-ready form."""
        return asdict(self)


def read_summary(plain: Mapping[str, Any]) -> Summary:
    """Read back what `Summary.plain` gave."""
    groups = tuple(
        Group(**group | {"success": Rate(**group["success"]), "stages": tuple(group["stages"])})
        for group in plain["groups"]
    )
    paired = tuple(PairedGroup(**pair | {"outcome": _read_outcome(pair["outcome"])}) for pair in plain["paired"])
    return Summary(groups, paired, plain["episodes"], plain["retries"])


def _read_outcome(plain: Mapping[str, Any]) -> Disturbance:
    rates = {name: Rate(**plain[name]) for name in ("twin", "disturbed", "recovery")}
    return Disturbance(**{**plain, **rates})


def summarise(rows: Sequence[Row], retries: int = 0) -> Summary:
    """Group the rows by suite and task, each suite pooled after its tasks, and compare twins."""
    groups: list[Group] = []
    paired: list[PairedGroup] = []
    for suite in _in_order(row["suite"] for row in rows):
        of_suite = [row for row in rows if row["suite"] == suite]
        tasks = _in_order(row["task"] for row in of_suite)
        for task in [*tasks, "all"] if len(tasks) > 1 else tasks:
            of_task = [row for row in of_suite if task in ("all", row["task"])]
            groups += _arms(suite, task, of_task)
            if any(row["perturbations"] for row in of_task):
                paired.append(pair_up(suite, task, of_task))
    return Summary(tuple(groups), tuple(paired), len(rows), retries)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _arms(suite: str, task: str, rows: Sequence[Row]) -> list[Group]:
    calm = [row for row in rows if not row["perturbations"]]
    disturbed = [row for row in rows if row["perturbations"]]
    return [group_of(suite, task, arm is disturbed, arm) for arm in (calm, disturbed) if arm]


def group_of(suite: str, task: str, disturbed: bool, rows: Sequence[Row]) -> Group:
    """Summarise rows of one kind."""
    scored = [row for row in rows if row["failure"] not in INFRASTRUCTURE]
    winners = [row for row in scored if row["success"]]
    most = max((len(row["stages"]) for row in scored), default=0)
    return Group(
        suite=suite,
        task=task,
        disturbed=disturbed,
        success=wilson(len(winners), len(scored)),
        partial_credit=fmean(row["partial_credit"] for row in scored) if scored else float("nan"),
        # By number, as stages are named after the objects of each scene.
        stages=tuple(fmean(len(row["stages"]) >= number for row in scored) for number in range(1, most + 1)),
        median_steps=float(median(row["steps"] for row in winners)) if winners else None,
        failures=dict(sorted(Counter(row["failure"] for row in rows if row["failure"]).items())),
    )


def pair_up(suite: str, task: str, rows: Sequence[Row]) -> PairedGroup:
    """Compare each disturbed episode with its twin of the same task, variant and seed; both must be scored."""
    twins = {_twin_key(row): row for row in rows if not row["perturbations"]}
    pairs, untouched = [], 0
    for row in rows:
        twin = twins.get(_twin_key(row))
        if not row["perturbations"] or twin is None or {row["failure"], twin["failure"]} & set(INFRASTRUCTURE):
            continue
        if row["success"] and row["recovery_steps"] is None:
            untouched += 1
            continue
        pairs.append(Pair(twin["success"], row["success"], row["recovery_steps"]))
    return PairedGroup(suite, task, disturbance(pairs), untouched)


def _twin_key(row: Row) -> tuple[str, str, str, int]:
    return row["suite"], row["task"], row["variant"], row["seed"]


def flat_metrics(summary: Summary) -> dict[str, float]:
    """Give the numbers MLflow keeps, e.g. {"seen/reach/success": 0.82}."""
    metrics: dict[str, float] = {"episodes": summary.episodes, "retries": summary.retries}
    for group in summary.groups:
        name = f"{group.suite}/{group.task}" + ("/disturbed" if group.disturbed else "")
        metrics[f"{name}/infrastructure_failures"] = group.infrastructure
        if group.success.total:
            metrics[f"{name}/success"] = group.success.value
            metrics[f"{name}/success_low"] = group.success.low
            metrics[f"{name}/success_high"] = group.success.high
            metrics[f"{name}/partial_credit"] = group.partial_credit
    for paired in summary.paired:
        name, outcome = f"{paired.suite}/{paired.task}", paired.outcome
        if outcome.twin.total:
            metrics[f"{name}/success_drop"] = outcome.drop
        if outcome.recovery.total:
            metrics[f"{name}/recovery_rate"] = outcome.recovery.value
        if outcome.median_recovery_steps is not None:
            metrics[f"{name}/median_recovery_steps"] = outcome.median_recovery_steps
    return metrics
