"""Compare two policies on the same episodes: McNemar's exact test, a bootstrap over tasks, and what is still missing.

Letters: n pairs; b pairs that only A won, c pairs that only B won; d = (b - c) / n the difference of the success rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, comb, sqrt
from statistics import NormalDist

import numpy as np

from st4vla.workers.results.intervals import Pair, Rate, paired_drop_bounds, wilson

DRAWS = 10_000
ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Comparison:
    """A against B over the pairs of one task, or of all.

    Attributes:
        name: which pairs.
        a, b: success of either.
        only_a, only_b: pairs that one won and the other lost.
        difference: success of A minus that of B, with its Agresti-Min 95 % bounds.
        p_value: McNemar's exact test, two-sided.
        effect: Cohen's g, the share of A among the pairs that differ, minus one half: 0.05 is small, 0.15 medium,
            0.25 large; nan where none differ.
        more_pairs: further pairs that a decision would need (two-sided 5 %, power 80 %) if what was seen is the truth;
            0 where it is decided, None where nothing points either way.
    """

    name: str
    a: Rate
    b: Rate
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p_value: float
    effect: float
    more_pairs: int | None

    @property
    def verdict(self) -> str:
        """Say what the test decides."""
        if self.p_value >= ALPHA:
            return "open"
        return "A is better" if self.difference > 0 else "B is better"


@dataclass(frozen=True)
class MeanOfTasks:
    """The mean over tasks of the difference, each task counting the same, with its bootstrap 95 % bounds."""

    tasks: int
    a: float
    b: float
    difference: float
    low: float
    high: float


def compare_pairs(name: str, won: Sequence[tuple[bool, bool]]) -> Comparison:
    """Compare over pairs (A succeeded, B succeeded)."""
    only_a, only_b = sum(a and not b for a, b in won), sum(b and not a for a, b in won)
    a, b = wilson(sum(a for a, _ in won), len(won)), wilson(sum(b for _, b in won), len(won))
    low, high = paired_drop_bounds([Pair(a, b, None) for a, b in won])
    p_value = mcnemar(only_a, only_b)
    return Comparison(
        name=name,
        a=a,
        b=b,
        only_a=only_a,
        only_b=only_b,
        difference=a.value - b.value,
        low=low,
        high=high,
        p_value=p_value,
        effect=only_a / (only_a + only_b) - 0.5 if only_a + only_b else float("nan"),
        more_pairs=0 if p_value < ALPHA else more_pairs(only_a, only_b, len(won)),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Give the exact two-sided p-value: were A and B equal, each pair that differs would be a fair coin."""
    total = only_a + only_b
    tail = sum(comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


def more_pairs(only_a: int, only_b: int, pairs: int, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Estimate how many further pairs McNemar's test needs to see the difference that was seen.

    R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", 1987:
    n = (z_alpha sqrt(q) + z_power sqrt(q - d^2))^2 / d^2 with q = (b + c) / n.
    """
    if only_a == only_b or not pairs:
        return None
    differing, difference = (only_a + only_b) / pairs, abs(only_a - only_b) / pairs
    normal = NormalDist()
    wanted = normal.inv_cdf(1 - alpha / 2) * sqrt(differing)
    wanted += normal.inv_cdf(power) * sqrt(max(0.0, differing - difference**2))
    # At least one: a test that has not decided needs more, whatever the approximation says.
    return max(1, ceil(wanted**2 / difference**2) - pairs)


def mean_of_tasks(by_task: Mapping[str, Sequence[tuple[bool, bool]]], seed: int = 0) -> MeanOfTasks:
    """Bootstrap the mean of tasks: pairs are drawn anew within each task, 10,000 times."""
    generator = np.random.default_rng(seed)
    cells = {task: _cells(won) for task, won in by_task.items() if won}
    draws = [
        (draw[:, 1] - draw[:, 2]) / counts.sum()
        for counts in cells.values()
        for draw in [generator.multinomial(counts.sum(), counts / counts.sum(), DRAWS)]
    ]
    low, high = np.quantile(np.mean(draws, axis=0), [ALPHA / 2, 1 - ALPHA / 2])
    a = float(np.mean([(counts[0] + counts[1]) / counts.sum() for counts in cells.values()]))
    b = float(np.mean([(counts[0] + counts[2]) / counts.sum() for counts in cells.values()]))
    return MeanOfTasks(len(cells), a, b, a - b, float(low), float(high))


def _cells(won: Sequence[tuple[bool, bool]]) -> np.ndarray:
    """Count pairs that both won, only A won, only B won, neither won: int64 [4]."""
    counts = [0, 0, 0, 0]
    for a, b in won:
        counts[(0 if b else 1) if a else (2 if b else 3)] += 1
    return np.array(counts)
