"""Layers whose weights lie in host memory and are on the GPU only while they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

Pairs = list[tuple[Tensor, Tensor]]  # (destination on the GPU, source in host memory)


def residence_on(device: torch.device, asked: str = "auto") -> str:
    """Where an encoder's weights lie in an engine on ``device``: ``gpu``, ``parked`` or ``cpu``.

    ``auto`` is the engine's device. Raises ValueError naming ``text_residence``, for the first two on a CPU, too.
    """
    if asked not in ("auto", "gpu", "parked", "cpu"):
        raise ValueError(f"text_residence must be auto, gpu, parked or cpu, got {asked!r}")
    if device.type != "cuda" and asked in ("gpu", "parked"):
        raise ValueError(f"text_residence must be auto or cpu on the device {device}, got {asked!r}: there is no GPU")
    return asked if asked != "auto" else "gpu" if device.type == "cuda" else "cpu"


class Link(Protocol):
    """How weights come to a device, beside what it computes. A mark is a point in the order of either."""

    def mark(self) -> Any:
        """The point that the computation has been enqueued up to."""
        ...

    def copy(self, pairs: Pairs, after: Any) -> Any:
        """Begin to copy once the mark ``after`` is passed; the mark at which all is there."""
        ...

    def wait(self, mark: Any) -> None:
        """What is computed from here on comes after ``mark``."""
        ...


class CudaLink:
    """A stream of its own for copies from pinned memory to a GPU; events order it and the current stream."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        return _recorded(torch.cuda.current_stream(self._device))

    def copy(self, pairs: Pairs, after: torch.cuda.Event) -> torch.cuda.Event:
        self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            for there, here in pairs:
                there.copy_(here, non_blocking=True)
        return _recorded(self._stream)

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event


class Parked:
    """Layers that are visited in their order. Two buffers on ``device`` hold the weights of the layer that computes and
    of the next one, which is copied meanwhile.

    Outside of ``visit`` nothing of them is on the device. Within it the layers' modules that ``modules`` returns may be
    called, each once, in order.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, link: Link):
        self._layers, self._device, self._link = list(layers), device, link
        self._hosts = [dict([*layer.named_parameters(), *layer.named_buffers()]) for layer in layers]
        self._buffers: list[dict[str, Tensor]] = []
        self._marks: list[Any] = []

    @property
    def buffer_bytes(self) -> int:
        """What one of the two buffers takes on the device."""
        return sum(self._sizes().values())

    def modules(self) -> list[nn.Module]:
        """The layers, to be called within ``visit``."""
        return [_Visited(self, i, layer) for i, layer in enumerate(self._layers)]

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """Hold the buffers, and begin to fill them."""
        sizes = self._sizes()
        try:
            for i in range(min(2, len(self._layers))):
                empty = {name: torch.empty(n, dtype=torch.uint8, device=self._device) for name, n in sizes.items()}
                self._buffers.append(empty)
                self._begin(i)
            yield
        finally:
            # Memory that is given back may be handed out at once: no copy may still write to it.
            for mark in self._marks:
                self._link.wait(mark)
            self._buffers, self._marks = [], []

    @contextlib.contextmanager
    def layer(self, i: int) -> Iterator[dict[str, Tensor]]:
        """The tensors of layer i on the device, by name."""
        self._link.wait(self._marks[i])
        yield self._views(i)
        if i + 2 < len(self._layers):
            self._begin(i + 2)

    def _begin(self, i: int) -> None:
        """Enqueue the copy of layer i, behind all that has been computed with what its buffer holds."""
        views, hosts = self._views(i), self._hosts[i]
        self._marks.append(self._link.copy([(views[name], hosts[name]) for name in hosts], self._link.mark()))

    def _views(self, i: int) -> dict[str, Tensor]:
        buffer = self._buffers[i % 2]
        return {name: buffer[name][: t.nbytes].view(t.dtype).view(t.shape) for name, t in self._hosts[i].items()}

    def _sizes(self) -> dict[str, int]:
        """Bytes of each tensor of a layer, the largest of all layers."""
        names = {name for host in self._hosts for name in host}
        return {name: max(host[name].nbytes for host in self._hosts if name in host) for name in sorted(names)}


class _Visited(nn.Module):
    """A layer that computes with the weights that were brought for it."""

    def __init__(self, parked: Parked, index: int, layer: nn.Module):
        super().__init__()
        self._parked, self._index, self.layer = parked, index, layer

    def forward(self, *args, **kwargs):
        with self._parked.layer(self._index) as tensors:
            return functional_call(self.layer, tensors, args, kwargs)
