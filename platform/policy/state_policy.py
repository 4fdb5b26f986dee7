"""A small policy on the simulator's full state, as reinforcement from state learns it; it looks at no image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from st4vla.platform.contracts import ActionChunk, ActionForm, Observation, PolicySpec
from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.folder import Lineage, fit, read_policy_yaml, read_tensors, save_folder
from st4vla.platform.policy.settings import build_config, plain, require, require_positive


@dataclass(frozen=True)
class StateMlpConfig:
    """A multilayer perceptron from state to action.

    Attributes:
        hidden: width of each hidden layer, tanh between.
        squash: how the output comes into [-1, 1] before it is spread over the action's range: "clip" or "tanh".
    """

    name: str
    state_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    control_hz: float
    statistics_key: str
    squash: Literal["clip", "tanh"] = "clip"
    action_form: ActionForm = "delta_end_effector"
    kind: Literal["state_mlp"] = "state_mlp"

    def __post_init__(self) -> None:
        require_positive(self, "state_dim", "action_dim", "control_hz")
        require(all(width > 0 for width in self.hidden), self, "hidden", "widths must be above 0")

    @property
    def spec(self) -> PolicySpec:
        """No camera, the privileged state, one action at a time."""
        return PolicySpec(
            cameras=(),
            image_size=0,
            state_dim=self.state_dim,
            action_dim=self.action_dim,
            chunk_length=1,
            control_hz=self.control_hz,
            statistics_key=self.statistics_key,
            action_form=self.action_form,
            state_form="privileged",
        )


class StateMlp(nn.Module):
    """The mean of a Gaussian policy: state [B,S] to action [B,A] in physical units.

    Buffers: `mean` and `std` [S] normalise the state; `low` and `high` [A] are the action's physical range.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: StateMlpConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.state_dim, *config.hidden)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.head = nn.Linear(widths[-1], config.action_dim)
        self.register_buffer("mean", torch.zeros(config.state_dim))
        self.register_buffer("std", torch.ones(config.state_dim))
        self.register_buffer("low", -torch.ones(config.action_dim))
        self.register_buffer("high", torch.ones(config.action_dim))

    def forward(self, state: Tensor) -> Tensor:
        x = (state - self.mean) / self.std
        for layer in self.layers:
            x = torch.tanh(layer(x))
        x = self.head(x)
        x = torch.tanh(x) if self.config.squash == "tanh" else x.clamp(-1, 1)
        return self.low + (x + 1) / 2 * (self.high - self.low)


class StatePolicy:
    """Act by a StateMlp, without noise; one row at a time, so that no row depends on its batch."""

    def __init__(self, model: StateMlp) -> None:
        self.model = model.eval()

    @property
    def spec(self) -> PolicySpec:
        return self.model.config.spec

    def reset(self, session_id: str) -> None:
        """Hold nothing, so forget nothing."""

    @torch.inference_mode()
    def act(
        self,
        observations: Sequence[Observation],
        session_ids: Sequence[str],
        noise_keys: Sequence[tuple[int, int]],
    ) -> list[ActionChunk]:
        """Give one action per observation.

        Raises:
            PolicyError: a state is missing or of another width.
        """
        return [ActionChunk(actions=self.model(self._state(o))[None, 0].numpy()) for o in observations]

    def _state(self, observation: Observation) -> Tensor:
        state, width = observation.state, self.model.config.state_dim
        if state is None or state.shape != (width,):
            shape = None if state is None else list(state.shape)
            raise PolicyError(f"The state is {shape}; this policy needs the privileged state [{width}].")
        return torch.from_numpy(np.asarray(state, np.float32))[None]


def save_state_policy(folder: str | Path, model: StateMlp, lineage: Lineage) -> Path:
    """Write the folder of a state policy; raises CheckpointError as `save_checkpoint` does."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return save_folder(folder, yaml.safe_dump(plain(model.config), sort_keys=False), tensors, lineage)


def load_state_policy(folder: str | Path) -> StatePolicy:
    """Read it back; raises CheckpointError where the weights do not fit."""
    config = build_config(StateMlpConfig, read_policy_yaml(Path(folder), "state_mlp"))
    model = StateMlp(config)
    fit(model, read_tensors(Path(folder)), Path(folder))
    return StatePolicy(model)
