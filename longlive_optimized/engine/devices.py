"""Where the parts of a model run, and whose turn it is there."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import torch

from ..text.parked import residence_on
from .ranks import Ranks

log = logging.getLogger(__name__)


class Devices:
    """The devices of an engine's transformer (``model``), VAE and text encoder: all are one, unless the CPU encodes.

    device: ``cuda``, ``cuda:N`` or ``cpu``; None takes CUDA where there is one. Raises ValueError for any other, and
        for an AMD GPU, which torch calls ``cuda`` too.
    text_residence: where the text encoder's weights are asked to lie; the attribute says where they do. Raises
        ValueError for ``gpu`` and ``parked`` on a CPU.
    ranks: those among which a stream's tokens are divided.
    """

    def __init__(
        self, device: str | torch.device | None = None, text_residence: str = "auto", ranks: Ranks | None = None
    ):
        self.ranks = ranks or Ranks()
        self.model = self.vae = _checked(device)
        self.move_text(text_residence)
        self._lock = threading.RLock()
        self._enqueued = torch.cuda.Event() if self.model.type == "cuda" else None

    def move_text(self, residence: str) -> None:
        """Let the text encoder's weights lie elsewhere, and compute there; as ``text_residence``."""
        self.text_residence = residence_on(self.model, residence)
        self.text = torch.device("cpu") if self.text_residence == "cpu" else self.model

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One caller at a time, behind all that the callers before have enqueued on the device; without gradients, nor
        what else the caller has turned on for itself.
        """
        with self._lock, self.own_modes():
            if self._enqueued is None:
                yield
                return
            with torch.cuda.device(self.model):
                self._enqueued.wait()
                try:
                    yield
                finally:
                    self._enqueued.record()

    @contextlib.contextmanager
    def own_modes(self) -> Iterator[None]:
        """Neither gradients nor the caller's inference mode, whose tensors nobody else may write, nor its autocast."""
        with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as modes:
            for kind in {self.model.type, self.text.type}:
                modes.enter_context(torch.autocast(kind, enabled=False))
            yield

    def synchronize(self) -> None:
        """Wait for the devices."""
        for device in {self.model, self.vae, self.text}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def release(self) -> None:
        """Give memory back that the allocator keeps and nobody uses; waits for the devices."""
        if any(device.type == "cuda" for device in (self.model, self.vae, self.text)):
            torch.cuda.empty_cache()


def default_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that ``model_dtype`` names; ``auto`` is bfloat16 on CUDA and float32 on the CPU."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
        log.info("model_dtype: %s", name)
    return getattr(torch, name)


SUPPORTED = "supported are NVIDIA GPUs, Ampere or newer, and CPUs (device 'cpu')"


def foreign_gpu() -> str | None:
    """The GPU of another maker than NVIDIA that torch would use here, in words; None where there is none."""
    if torch.version.hip:
        return f"an AMD GPU (torch for ROCm {torch.version.hip})" if torch.cuda.is_available() else None
    if torch.xpu.is_available():
        return "an Intel GPU (xpu)"
    return "an Apple GPU (mps)" if torch.backends.mps.is_available() else None


def _checked(device: str | torch.device | None) -> torch.device:
    foreign = foreign_gpu()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s", device)
        if foreign and device == "cpu":
            log.warning("device: cpu; there is %s, but %s", foreign, SUPPORTED)
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be cuda, cuda:N or cpu, got {device!r}") from None
    if device.type not in ("cuda", "cpu"):
        found = f"here is {foreign}, but " if foreign else ""
        raise ValueError(f"device must be cuda, cuda:N or cpu, got {str(device)!r}: {found}{SUPPORTED}")
    if device.type == "cuda" and torch.version.hip:
        raise ValueError(f"device must be an NVIDIA GPU or cpu, got {foreign or 'torch for ROCm'}: {SUPPORTED}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be one that is here, got {str(device)!r}: torch finds no CUDA")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device must be one of the {count} that are here, got {str(device)!r}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
