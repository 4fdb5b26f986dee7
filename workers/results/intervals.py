"""Say how sure a success rate is: Wilson intervals, and what a disturbance costs over paired episodes.

Letters: n episodes, k successes, z standard normal quantile (1.96 for 95 %).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval; all three are nan when nothing was counted.

    Attributes:
        successes: k.
        total: n.
        value: k / n.
        low, high: Wilson bounds.
    """

    successes: int
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write "73 % [64, 81]", or "-" for no episodes."""
        if not self.total:
            return "-"
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def wilson(successes: int, total: int, z: float = Z95) -> Rate:
    """Give the Wilson score interval, which stays inside [0, 1] and is honest at 0 and n successes.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Raises:
        ValueError: successes are negative or exceed the total.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes is {successes} of {total}; expected 0 <= successes <= total.")
    if total == 0:
        nan = float("nan")
        return Rate(0, 0, nan, nan, nan)
    share = successes / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == total else centre + half
    return Rate(successes, total, share, low, high)


@dataclass(frozen=True)
class Pair:
    """One disturbed episode beside its undisturbed twin of the same seed.

    Attributes:
        twin: the twin succeeded.
        disturbed: the disturbed episode succeeded.
        recovery_steps: control steps from the disturbance to the success, None if it did not recover.
    """

    twin: bool
    disturbed: bool
    recovery_steps: int | None


@dataclass(frozen=True)
class Disturbance:
    """What a disturbance cost over paired episodes.

    Attributes:
        twin, disturbed: success of either arm.
        drop: twin success minus disturbed success, with a 95 % interval for paired shares.
        drop_low, drop_high: its bounds.
        recovery: successes among the disturbed episodes whose twin succeeded.
        median_recovery_steps: median control steps to recover, None if none did.
    """

    twin: Rate
    disturbed: Rate
    drop: float
    drop_low: float
    drop_high: float
    recovery: Rate
    median_recovery_steps: float | None


def disturbance(pairs: Sequence[Pair]) -> Disturbance:
    """Compare the two arms pair by pair.

    The interval of the drop is the Agresti-Min one ("Simple improved confidence intervals for comparing matched
    proportions", 2005): half a pair is added to each of the four cells, then the Wald formula for paired shares.
    """
    able = [pair for pair in pairs if pair.twin]
    steps = [pair.recovery_steps for pair in pairs if pair.disturbed and pair.recovery_steps is not None]
    low, high = paired_drop_bounds(pairs)
    twin = wilson(sum(pair.twin for pair in pairs), len(pairs))
    disturbed = wilson(sum(pair.disturbed for pair in pairs), len(pairs))
    return Disturbance(
        twin=twin,
        disturbed=disturbed,
        drop=twin.value - disturbed.value,
        drop_low=low,
        drop_high=high,
        recovery=wilson(sum(pair.disturbed for pair in able), len(able)),
        median_recovery_steps=float(median(steps)) if steps else None,
    )


def paired_drop_bounds(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Bound the difference of two paired shares (Agresti-Min, 95 %); nan without pairs."""
    if not pairs:
        return float("nan"), float("nan")
    total = len(pairs) + 2
    only_twin = sum(pair.twin and not pair.disturbed for pair in pairs) + 0.5
    only_disturbed = sum(pair.disturbed and not pair.twin for pair in pairs) + 0.5
    drop = (only_twin - only_disturbed) / total
    half = Z95 * sqrt((only_twin + only_disturbed) - (only_twin - only_disturbed) ** 2 / total) / total
    return max(-1.0, drop - half), min(1.0, drop + half)
