"""Where a network runs, and how tensors come there without one device waiting for all that another has still to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor


class Place:
    """A device and, on a GPU, the CUDA stream that orders what runs there.

    apart: that stream is the place's own, else it is the caller's current one. What runs apart and what the caller
        enqueues wait for each other only where a tensor is handed over: ``bring``, ``receive``, ``hand_out``.
    urgent: among kernels that wait for the device, those of this place are first.
    """

    def __init__(self, device: torch.device, apart: bool = False, urgent: bool = False):
        self.device, self.apart = device, apart
        self._own = torch.cuda.Stream(device, priority=-1 if urgent else 0) if apart else None

    @property
    def cuda_stream(self) -> torch.cuda.Stream:
        """That of a place on a GPU."""
        return self._own or torch.cuda.current_stream(self.device)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """What is enqueued inside runs here."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.stream(self.cuda_stream):  # makes its device the current one, too
            yield

    def bring(self, x: Tensor, source: Place) -> Tensor:
        """``x``, as ``source`` leaves it with what it has enqueued so far, for what is enqueued here from now on; a
        copy, unless both are in one order.

        Neither place waits for other work of the other's: copies are enqueued on a CUDA stream of their own. Torch's
        ``x.to(device)`` would hold ``source`` until all is done that was enqueued here.
        """
        if not (self.apart or source.apart):
            return x.to(self.device)
        arrivals = self._arrivals
        arrivals.wait_stream(source.cuda_stream)
        with source.here(), torch.cuda.stream(arrivals):
            there = torch.empty_like(x, device=self.device).copy_(x, non_blocking=True)
        source.cuda_stream.wait_stream(arrivals)  # it may write over x next
        self.cuda_stream.wait_stream(arrivals)
        there.record_stream(self.cuda_stream)
        return there

    def receive(self, tensors: Iterable[Tensor]) -> None:
        """Let what is enqueued here read the caller's ``tensors``, wherever they lie, once they are as the caller's
        current stream leaves them."""
        mine = [x for x in tensors if self.apart and x.device == self.device]
        if mine:
            self.cuda_stream.wait_stream(torch.cuda.current_stream(self.device))
        for x in mine:
            x.record_stream(self.cuda_stream)

    def hand_out(self, x: Tensor) -> Tensor:
        """``x``, made here, for the caller's current stream of its device."""
        if self.apart:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.cuda_stream)
            x.record_stream(current)
        return x

    @cached_property
    def _arrivals(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device, priority=-1)
