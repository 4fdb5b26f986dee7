"""Keep an exponential moving average of the weights, to save and to validate instead of the newest ones."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from st4vla.platform.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class AverageConfig:
    """How slowly the average follows; 0 keeps none, as published.

    Attributes:
        decay: share of the average that a step leaves; early on it is lower, (1 + step) / (10 + step), so that random
            initial weights are soon forgotten.
    """

    decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"average.decay is {self.decay}; it lies in [0, 1), 0 for no average, often 0.999")

    def at(self, step: int) -> float:
        """Give the decay of one step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))


class Average:
    """The average of every trained weight, in fp32; workers hold equal copies, as they hold equal weights."""

    def __init__(self, model: torch.nn.Module, config: AverageConfig) -> None:
        self._config = config
        self._weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._means = {name: one.detach().float().clone() for name, one in self._weights.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after one step."""
        share = 1 - self._config.at(step)
        for name, weight in self._weights.items():
            self._means[name].lerp_(weight.detach().float(), share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Lend the averages to the model; its own weights come back bit by bit."""
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._write(self._means)
        try:
            yield
        finally:
            self._write(kept)

    def state(self) -> dict[str, torch.Tensor]:
        """Give the averages, to be copied into a checkpoint."""
        return self._means

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from saved averages.

        Raises:
            CheckpointError: they are of other weights.
        """
        if state.keys() != self._means.keys():
            apart = sorted(state.keys() ^ self._means.keys())[:5]
            raise CheckpointError(f"the saved averages are of other weights: {apart}; go on with the same settings")
        for name, mean in state.items():
            self._means[name].copy_(mean)

    @torch.no_grad()
    def _write(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])
