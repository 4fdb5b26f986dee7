"""Warn early: keep the batch that broke a loss, and say when losses or gradients jump.

Whether a loss and its gradient are finite is looked at one micro-batch later, so that a GPU need not be waited for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from st4vla.platform.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class AlarmConfig:
    """When a figure counts as a jump.

    Attributes:
        times: a value above this many times its running mean raises an alarm; 0 switches alarms off.
        memory: how many reports the running mean reaches back, about.
        quiet: reports at the start, while losses fall fast, without alarms.
    """

    times: float = 5.0
    memory: int = 20
    quiet: int = 5

    def __post_init__(self) -> None:
        if self.times and self.times <= 1:
            raise ConfigError(f"alarms.times is {self.times}; it must be above 1, or 0 for none")
        if self.memory < 1 or self.quiet < 1:
            raise ConfigError(f"alarms.memory is {self.memory} and alarms.quiet {self.quiet}; both must be >= 1")


class Alarms:
    """Watch figures that should move slowly, and name those that jump."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self._means: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def look(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Give {figure: times its running mean} of those that jumped; a jump moves that mean as little as it can."""
        jumps = {}
        for name, value in figures.items():
            mean, seen = self._means.get(name, value), self._seen.get(name, 0)
            limit = self.config.times * mean
            if self.config.times and seen >= self.config.quiet and mean > 0 and value > limit:
                jumps[name] = value / mean
            share = 1 / min(seen + 1, self.config.memory)
            self._means[name] = mean + share * (min(value, limit or value) - mean)
            self._seen[name] = seen + 1
        return jumps


class LossGuard:
    """Hold the last batches until loss and gradient are known to be finite; dump those that broke them, and stop.

    The dump is one safetensors file, readable without running anything, beside the run's checkpoints.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._held: tuple[int, Mapping[str, Mapping[str, Any]], torch.Tensor, Mapping[str, torch.Tensor]] | None = None
        self._norm: torch.Tensor | float | None = None

    def hold(
        self,
        step: int,
        batches: Mapping[str, Mapping[str, Any]],
        total: torch.Tensor,
        parts: Mapping[str, torch.Tensor],
    ) -> None:
        """Check the micro-batch before, then hold this one.

        Raises:
            TrainingError: the loss or the gradient of the micro-batch before is not finite.
        """
        self.check()
        self._held = (step, batches, total, parts)

    def stepped(self, norm: torch.Tensor | float | None) -> None:
        """Take the norm of the gradient of the micro-batch held last; a finite loss may have one that is not."""
        self._norm = norm

    def check(self) -> None:
        """Raise TrainingError if the micro-batch held last has a loss or a gradient that is not finite."""
        (held, norm), self._held, self._norm = (self._held, self._norm), None, None
        if held is None or (math.isfinite(float(held[2])) and (norm is None or math.isfinite(float(norm)))):
            return
        step, batches, total, parts = held
        what = "gradient" if math.isfinite(float(total)) else "loss"
        broken = {name: float(value) for name, value in parts.items() if not math.isfinite(float(value))}
        kept = self._dump(step, batches)
        raise TrainingError(
            f"the {what} of step {step} is not finite on worker {self.rank}: {broken}; {kept}; lower "
            "optimiser.learning_rates or look for a broken sample in it; checkpoints before it stand"
        )

    def _dump(self, step: int, batches: Mapping[str, Mapping[str, Any]]) -> str:
        if self.folder is None:
            return "its batch was not kept, as the run has no folder"
        tensors = {
            f"{source}.{name}": value.detach().cpu().contiguous()
            for source, batch in batches.items()
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        path = self.folder / f"broken_batch_step_{step}_worker_{self.rank}.safetensors"
        try:
            save_file(tensors, path)
        except OSError as error:
            return f"its batch could not be kept: {error}"
        return f"its batch is {path}"
