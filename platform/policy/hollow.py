"""Build a model whose weights take no memory until they are read from a file.

Random weights of four billion parameters cost 15 GB and a minute, only to be overwritten.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BUILDING = threading.Lock()


@contextmanager
def without_weights() -> Iterator[None]:
    """Let modules built inside hold their parameters on torch's meta device; buffers are made as ever.

    torch.device("meta") would take the buffers along, among them the rotary frequencies that no file holds. One
    thread builds at a time, and modules that another thread builds meanwhile are hollow, too.
    """
    register = nn.Module.register_parameter

    def register_hollow(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # A parameter that is hollow already is kept as it is, or tied weights would come apart.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    with BUILDING:
        nn.Module.register_parameter = register_hollow
        try:
            yield
        finally:
            nn.Module.register_parameter = register


def fill(module: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` in the place of hollow parameters, by name; a tied one is put wherever it stands."""
    made = {id(own[name]): nn.Parameter(tensors[name].clone()) for name in own if own[name].is_meta}
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None and id(param) in made:
                part._parameters[name] = made[id(param)]


def cast_weights(module: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Move a module and narrow its parameters; buffers keep their width, since angles and means need it."""
    for param in module.parameters():
        param.data = param.data.to(device, dtype)
    module.to(device)
