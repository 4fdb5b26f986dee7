"""Capture a function of tensors as one CUDA graph per shape, so that a call is one launch instead of thousands.

Not run on a GPU yet; on a processor functions are simply called.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor | None, ...]
WARM_UP_CALLS = 3


@dataclass
class _Captured:
    """A graph, and the memory it reads and writes."""

    graph: Any
    given: Tensors
    made: Tensors


class Graphs:
    """Graphs by key, the least used of more than `most` forgotten.

    A function must be one of tensors to tensors of shapes fixed by the key, ask nothing of the processor, and draw
    nothing at random. What a graph has made stays as it is only until the next call, so it is copied out.
    """

    def __init__(self, device: torch.device, most: int = 48) -> None:
        self.device, self.most = device, most
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._pool: Any = None

    def run(self, key: Hashable, function: Callable[..., Tensors], given: Tensors) -> Tensors:
        """Call `function` on `given`, by its graph where there can be one."""
        if self.device.type != "cuda":
            return function(*given)
        if key not in self._captured:
            self._captured[key] = self._capture(function, given)
            if len(self._captured) > self.most:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        captured = self._captured[key]
        for own, new in zip(captured.given, given, strict=True):
            if own is not None and new is not None:
                own.copy_(new, non_blocking=True)
        captured.graph.replay()
        return tuple(None if part is None else part.clone() for part in captured.made)

    def _capture(self, function: Callable[..., Tensors], given: Tensors) -> _Captured:
        own = tuple(None if part is None else part.clone() for part in given)
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_CALLS):
                function(*own)
        torch.cuda.current_stream(self.device).wait_stream(aside)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = function(*own)
        return _Captured(graph, own, made)
