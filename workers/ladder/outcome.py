"""Hold the arms of a ladder against each other: success per arm, paired differences, claims; numbers only.

All arms meet the same episodes, so an episode's outcomes are paired across arms and seeds. A difference is the mean
over episodes of the seeds' mean difference, and its interval resamples episodes (percentile bootstrap); the spread over
seeds is shown beside it, since three seeds are too few to resample.

Letters: A arms, S seeds, E episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from st4vla.platform.errors import DataError
from st4vla.workers.results.intervals import Rate, wilson
from st4vla.workers.results.summary import INFRASTRUCTURE

Row = Mapping[str, Any]
RESAMPLES = 10_000


@dataclass(frozen=True)
class ArmResult:
    """How often an arm succeeded: over all seeds, by task and by seed."""

    name: str
    pooled: Rate
    by_task: Mapping[str, Rate]
    by_seed: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """What one arm gains over another, in shares (0.2 is twenty points).

    Attributes:
        difference: mean over episodes of the seeds' mean difference.
        low, high: its 95 % interval over episodes.
        by_seed: the difference of each seed.
        episodes: pairs per seed.
    """

    better: str
    worse: str
    difference: float
    low: float
    high: float
    by_seed: Mapping[str, float]
    episodes: int

    @property
    def verdict(self) -> str:
        """Say in a word whether the gain held: "held", "reversed" or "not shown"."""
        if self.low > 0:
            return "held"
        return "reversed" if self.high < 0 else "not shown"


@dataclass(frozen=True)
class LadderResults:
    """Everything the page says in numbers; `similarity` is by arm, seed and step."""

    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    similarity: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
    chance: float

    def plain(self) -> dict[str, Any]:
        """Give the JSON-ready form."""
        verdicts = [one.verdict for one in self.comparisons]
        plain = asdict(self)
        for one, verdict in zip(plain["comparisons"], verdicts, strict=True):
            one["verdict"] = verdict
        return plain

    def metrics(self) -> dict[str, float]:
        """Give the figures tracking keeps."""
        found = {f"success/{arm.name}": arm.pooled.value for arm in self.arms}
        return found | {f"gain/{one.better}_over_{one.worse}": one.difference for one in self.comparisons}


def outcomes(rows: Sequence[Row]) -> dict[str, bool]:
    """Give success by episode id; episodes the infrastructure failed are left out."""
    return {row["episode_id"]: bool(row["success"]) for row in rows if row["failure"] not in INFRASTRUCTURE}


def arm_result(name: str, ledgers: Mapping[int, Sequence[Row]]) -> ArmResult:
    """Count one arm's successes from its seeds' ledgers."""
    rows = [row for ledger in ledgers.values() for row in ledger if row["failure"] not in INFRASTRUCTURE]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by_seed = {str(seed): fmean(outcomes(ledger).values()) for seed, ledger in ledgers.items()}
    return ArmResult(name, rate(rows), {task: rate([r for r in rows if r["task"] == task]) for task in tasks}, by_seed)


def rate(rows: Sequence[Row]) -> Rate:
    """Give the share of successes with its interval."""
    return wilson(sum(bool(row["success"]) for row in rows), len(rows))


def compare(
    better: str, worse: str, ledgers: Mapping[str, Mapping[int, Sequence[Row]]], resamples: int = RESAMPLES
) -> Comparison:
    """Compare two arms on the episodes that both have in every seed.

    Raises:
        DataError: they share no episode.
    """
    one, other = ({seed: outcomes(rows) for seed, rows in ledgers[name].items()} for name in (better, worse))
    shared = set.intersection(*(set(part) for side in (one, other) for part in side.values()))
    if not shared:
        raise DataError(f"{better} and {worse} share no episode; evaluate both on the same suite, tasks and seed")
    order = sorted(shared)
    gains_SE = np.array([[float(one[seed][e]) - float(other[seed][e]) for e in order] for seed in one])
    low, high = bootstrap_mean(gains_SE.mean(0), resamples)
    by_seed = {str(seed): float(gains) for seed, gains in zip(one, gains_SE.mean(1), strict=True)}
    return Comparison(better, worse, float(gains_SE.mean()), low, high, by_seed, len(order))


def bootstrap_mean(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Give the 95 % percentile interval of a mean (Efron, "Bootstrap methods", 1979), from seeded draws."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def similarity_curve(rows: Sequence[Mapping[str, float]], figure: str = "pss") -> list[tuple[int, float]]:
    """Give (step, value) of the gradient similarity recorded while an arm was trained."""
    key = f"similarity/{figure}"
    return [(int(row["step"]), row[key]) for row in rows if key in row]
