"""Act at random, reproducibly: the floor under every evaluation, and a stand-in where no model is needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec
from st4vla.platform.errors import ConfigError


@dataclass(frozen=True)
class RandomPolicyConfig:
    """How a random policy looks and moves.

    Attributes:
        cameras: cameras it asks to be shown and ignores; none by default, so that nothing is rendered for it.
        image_size: their edge in pixels.
        chunk_length: actions per look.
        control_hz: control rate it claims.
        step_m: standard deviation of one step's translation, per axis.
        step_rad: standard deviation of one step's rotation, per axis.
    """

    cameras: tuple[str, ...] = ()
    image_size: int = 128
    chunk_length: int = 8
    control_hz: float = 5.0
    step_m: float = 0.02
    step_rad: float = 0.05

    def __post_init__(self) -> None:
        if self.chunk_length < 1:
            raise ConfigError(f"chunk_length is {self.chunk_length}; a random policy gives at least one action a look.")


class RandomPolicy:
    """Draw each chunk from its noise key alone, so that a row depends on nothing else."""

    def __init__(self, config: RandomPolicyConfig | None = None):
        self.config = config or RandomPolicyConfig()

    @property
    def spec(self) -> PolicySpec:
        """What it is shown and gives back."""
        config = self.config
        return PolicySpec(
            cameras=config.cameras,
            image_size=config.image_size,
            state_dim=7,
            action_dim=7,
            chunk_length=config.chunk_length,
            control_hz=config.control_hz,
            statistics_key="tabletop_panda",
        )

    def reset(self, session_id: str) -> None:
        """Forget nothing: nothing is held."""

    def act(
        self,
        observations: Sequence[Observation],
        session_ids: Sequence[str],
        noise_keys: Sequence[tuple[int, int]],
    ) -> list[ActionChunk]:
        """Give one random chunk per noise key."""
        return [ActionChunk(self._draw(key)) for key in noise_keys]

    def _draw(self, key: tuple[int, int]) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
        actions = generator.standard_normal((self.config.chunk_length, 7)).astype(np.float32)
        actions[:, :3] *= self.config.step_m
        actions[:, 3:6] *= self.config.step_rad
        actions[:, 6] = generator.integers(0, 2, self.config.chunk_length)
        return actions
