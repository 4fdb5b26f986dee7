"""Train the planner through low-rank adapters (LoRA, arXiv 2106.09685), by the peft library.

A checkpoint holds plain weights with the adapters added in, so that whoever reads it need not know of them; the
engine's own state keeps base and adapters apart, so that a stopped run goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from st4vla.platform.errors import ConfigError

if TYPE_CHECKING:
    from st4vla.platform.policy.model import St4vlaModel

BASE = ".base_layer"


@dataclass(frozen=True)
class AdapterConfig:
    """Size and place of the adapters; rank 0 has none and trains the planner's own weights.

    Attributes:
        rank: r, the inner width of an adapter.
        alpha: its output is scaled by alpha / rank.
        dropout: on its input, while training.
        modules: names of the planner's linear layers that get one.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(self.modules))
        if self.rank < 0:
            raise ConfigError(f"adapters.rank is {self.rank}; it must be >= 0, 0 for none")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapters.dropout is {self.dropout}; it lies in [0, 1)")
        if self.rank and not self.modules:
            raise ConfigError("adapters.modules is empty; name the planner's layers that get an adapter")


def add_adapters(model: "St4vlaModel", config: AdapterConfig) -> None:
    """Freeze the planner's own weights and lay an adapter beside every named layer; at first they change nothing.

    Raises:
        ConfigError: the planner has no layer of any of the names.
    """
    if not config.rank:
        return
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        target_modules=list(config.modules),
    )
    model.planner.requires_grad_(False)
    try:
        inject_adapter_in_model(settings, model.planner.vlm)
    except ValueError as error:
        raise ConfigError(f"adapters.modules is {list(config.modules)}: {error}") from error


def plain_tensors(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a model's tensors under the names it has without adapters, each adapter added to its layer's weight."""
    deltas = {f"{name}.weight": delta for name, delta in adapter_deltas(model).items()}
    plain = {}
    for name, tensor in tensors.items():
        if ".lora_" not in name:
            own = name.replace(BASE, "")
            plain[own] = (tensor.float() + deltas[own].to(tensor.device)).to(tensor.dtype) if own in deltas else tensor
    return plain


def adapter_deltas(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give what every adapter adds to its layer's weight, by the layer's name; nothing where there are no adapters."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            layer: Any = module
            deltas = [layer.get_delta_weight(one).detach().float() for one in layer.active_adapters]
            found[name] = torch.stack(deltas).sum(0)
    return found
