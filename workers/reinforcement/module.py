"""The actor and critic that RLlib trains: the actor is the `StateMlp` that eval, collect and serve read back.

Letters: B batch, S state width, D learned action dimensions.
"""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from st4vla.envs import states
from st4vla.envs.control import EMBODIMENT
from st4vla.envs.tabletop import CONTROL_HZ
from st4vla.envs.vector import ActionRange
from st4vla.platform.policy.state_policy import StateMlp, StateMlpConfig

HEAD_GAIN = 0.01  # the first policy hardly moves on average, so that exploration is centred


def make_actor(task: str, hidden: tuple[int, ...], name: str) -> StateMlp:
    """Make an untrained actor for a task: fixed state scales, the task's action range, orthogonal weights."""
    span = ActionRange.of_task(task)
    actor = StateMlp(StateMlpConfig(name, states.PRIVILEGED_DIM, len(span.low), hidden, CONTROL_HZ, EMBODIMENT))
    buffers = {"mean": states.MEAN, "std": states.SCALE, "low": span.low, "high": span.high}
    for buffer, values in buffers.items():
        getattr(actor, buffer).copy_(torch.from_numpy(values))
    for layer in actor.layers:
        _start(layer, 2**0.5)
    _start(actor.head, HEAD_GAIN)
    return actor


def _start(layer: nn.Module, gain: float) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


class ActorCritic(TorchRLModule, ValueFunctionAPI):
    """A Gaussian over the learned action dimensions around the actor's mean, and a critic of its own.

    `model_config` holds task, hidden, name and log_std, the logarithm of the first standard deviation in units of
    half the action range; it is learned, one number per dimension, whatever the state.
    """

    def setup(self) -> None:
        settings: dict[str, Any] = dict(self.model_config)
        task, hidden = settings["task"], tuple(settings["hidden"])
        self.learned = list(ActionRange.of_task(task).learned)
        self.actor = make_actor(task, hidden, settings["name"])
        self.log_std = nn.Parameter(torch.full((len(self.learned),), float(settings["log_std"])))
        widths = (states.PRIVILEGED_DIM, *hidden)
        layers = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        bent = (part for layer in layers for part in (layer, nn.Tanh()))
        self.critic = nn.Sequential(*bent, nn.Linear(widths[-1], 1))
        for layer in layers:
            _start(layer, 2**0.5)
        _start(self.critic[-1], 1.0)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Give the Gaussian's mean and log standard deviation, [B, 2 D]; RLlib clips its samples to -1..1."""
        x = self._scaled(batch)
        for layer in self.actor.layers:
            x = torch.tanh(layer(x))
        mean = self.actor.head(x)[:, self.learned]
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)}

    def _scaled(self, batch: dict[str, Any]) -> Tensor:
        return (batch[Columns.OBS] - self.actor.mean) / self.actor.std

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Give the values [B]."""
        return self.critic(self._scaled(batch)).squeeze(-1)
