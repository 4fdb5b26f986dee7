"""Say how one robot's environment is driven: a small config, packaged as `configs/execution/NAME.yaml`."""

from collections.abc import Iterable
from dataclasses import dataclass

from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.gripper import GripperForm
from st4vla.platform.policy.settings import build_config, packaged, require, require_positive


@dataclass(frozen=True)
class EmbodimentConfig:
    """How a policy's chunks become the raw actions of a robot's controller.

    Attributes:
        statistics_keys: names under which checkpoints keep this robot's statistics, the likeliest first.
        execute: actions of each chunk that are executed before the next look; None for the whole chunk.
        ensemble_horizon: newest chunks that are merged at every step; 1 takes the newest alone.
        ensemble_alpha: how much less a prediction unlike the newest counts.
        gripper: what the controller's gripper is told, see `gripper.py`.
        sticky_steps: steps for which a change of a relative gripper is repeated.
        action_scale: factor on translation and rotation.
    """

    name: str
    statistics_keys: tuple[str, ...]
    execute: int | None = None
    ensemble_horizon: int = 1
    ensemble_alpha: float = 0.1
    gripper: GripperForm = "opening"
    sticky_steps: int = 1
    action_scale: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.statistics_keys), self, "statistics_keys", "name at least one")
        require(self.execute is None or self.execute > 0, self, "execute", "execute at least 1 action, or null for all")
        require_positive(self, "ensemble_horizon", "sticky_steps", "action_scale")
        require(self.ensemble_alpha >= 0, self, "ensemble_alpha", "it must not be negative")

    @classmethod
    def preset(cls, name: str) -> "EmbodimentConfig":
        """Give a packaged embodiment.

        Raises:
            ConfigError: there is none of that name; those there are are listed.
        """
        return build_config(cls, packaged("execution", name, "embodiment"))

    def statistics_key(self, known: Iterable[str]) -> str:
        """Pick the name under which a checkpoint with statistics of `known` embodiments keeps this robot's.

        Raises:
            PolicyError: it knows this robot by none of the names.
        """
        known = list(known)
        for key in self.statistics_keys:
            if key in known:
                return key
        raise PolicyError(
            f"The checkpoint has statistics of {', '.join(known) or 'no embodiment'}; {self.name} needs one of "
            f"{', '.join(self.statistics_keys)}. Train on its data, or choose: inference.statistics_key=NAME."
        )
