"""CUDA graphs of operators."""

from collections.abc import Callable
from typing import Any

import torch


def captured(call: Callable, *args: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    """``call(*args)`` as a graph, after it has run once as it is; and the result, which each replay writes anew."""
    call(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*args)
    return graph, out
