"""Stop an evaluation as soon as its episodes have decided between two success rates: Wald's sequential test.

A. Wald, "Sequential tests of statistical hypotheses", 1945. The likelihood ratio of p = high against p = low is
multiplied up episode by episode; at 1/alpha the test says "high", at beta it says "low". With these bounds (Wald's own
are a little narrower) the errors are held exactly, whatever the number of looks: a policy whose rate is at most `low`
is called "high" with probability at most alpha, one whose rate is at least `high` is called "low" with at most beta,
by Ville's inequality. In between either answer may come. A plan that ends first leaves the question open.

Episodes count in an order drawn from their ids, not in the order in which they finish, which favours successes as they
end sooner. So the verdict, and the episode at which it falls, are the same with any number of actors. The success
rate of a stopped run is biased away from the middle; the verdict is what holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.results.summary import INFRASTRUCTURE

Verdict = Literal["high", "low", "open"]


@dataclass(frozen=True)
class StopConfig:
    """The question: is the success rate at most `low`, or at least `high`?

    Attributes:
        low, high: the two rates, between 0 and 1.
        alpha: how often a rate of at most `low` may be called high.
        beta: how often a rate of at least `high` may be called low.
    """

    low: float
    high: float
    alpha: float = 0.05
    beta: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise ConfigError(
                f"stop.low is {self.low} and stop.high {self.high}; expected 0 < low < high < 1, e.g. 0.5 and 0.7."
            )
        if not (0 < self.alpha < 0.5 and 0 < self.beta < 0.5):
            raise ConfigError(f"stop.alpha is {self.alpha}, stop.beta {self.beta}; expected values between 0 and 0.5.")


@dataclass(frozen=True)
class Decision:
    """What the test says.

    Attributes:
        verdict: "high", "low", or "open" while it says nothing.
        episodes: scored episodes that it took.
        log_ratio: where the likelihood ratio stood then, natural logarithm.
        ids: the episodes it rests on, those that infrastructure ended included.
    """

    verdict: Verdict
    episodes: int
    log_ratio: float
    ids: tuple[str, ...]

    def __str__(self) -> str:
        """Write "high after 31 episodes"."""
        return f"{self.verdict} after {self.episodes} episodes"


def in_test_order(plan: Iterable[EpisodeSpec]) -> list[EpisodeSpec]:
    """Put a plan into the order in which its episodes count: by id, which is a digest, hence as good as drawn."""
    return sorted(plan, key=lambda spec: spec.episode_id)


def decide(order: Sequence[EpisodeSpec], rows: Mapping[str, Mapping[str, Any]], config: StopConfig) -> Decision:
    """Apply the test to the episodes that are done without a gap from the first on."""
    gain, loss = log(config.high / config.low), log((1 - config.high) / (1 - config.low))
    ratio, scored, ids = 0.0, 0, []
    for spec in order:
        row = rows.get(spec.episode_id)
        if row is None:
            break
        ids.append(spec.episode_id)
        if row["failure"] in INFRASTRUCTURE:
            continue
        scored += 1
        ratio += gain if row["success"] else loss
        if (verdict := _verdict(ratio, config)) != "open":
            return Decision(verdict, scored, ratio, tuple(ids))
    return Decision("open", scored, ratio, tuple(ids))


def _verdict(log_ratio: float, config: StopConfig) -> Verdict:
    if log_ratio >= -log(config.alpha):
        return "high"
    return "low" if log_ratio <= log(config.beta) else "open"
