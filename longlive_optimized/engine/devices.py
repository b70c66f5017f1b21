"""Where the parts of a model run, and whose turn it is there."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import torch

from ..text.parked import residence_on
from .places import Place
from .ranks import Ranks

log = logging.getLogger(__name__)


class Devices:
    """The devices of an engine's transformer (``model``), VAE and text encoder: all are one, unless the CPU encodes or
    other GPUs are named. Where each runs there, and in which order, is its ``Place``.

    device: ``cuda``, ``cuda:N`` or ``cpu``; None takes CUDA where there is one. Raises ValueError for any other, and
        for an AMD GPU, which torch calls ``cuda`` too.
    text_residence: where the text encoder's weights are asked to lie; the attribute says where they do. Raises
        ValueError for ``gpu`` and ``parked`` on a CPU.
    vae_device, text_device: as ``device``; None is the transformer's. Raises ValueError naming them, too, where one is
        a CPU and the other a GPU, but for ``text_device="cpu"``, which is ``text_residence="cpu"``.
    ranks: those among which a stream's tokens are divided. Of several each has one device: ValueError beside others.
    embeddings: the device on which the text encoder leaves them.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        text_residence: str = "auto",
        vae_device: str | torch.device | None = None,
        text_device: str | torch.device | None = None,
        ranks: Ranks | None = None,
    ):
        self.ranks = ranks or Ranks()
        if self.ranks.count > 1:
            self._check_alone(vae_device=vae_device, text_device=text_device)
        self.model = checked(device)
        self.vae = self.model if vae_device is None else checked(vae_device, "vae_device")
        self.text_asked = None if text_device is None else checked(text_device, "text_device")
        self._check_kinds(text_residence)
        self.at_model = Place(self.model)
        vae_apart = _apart(self.vae, self.model)
        self.at_decoder = Place(self.vae, apart=True) if vae_apart else self.at_model
        # The transformer waits for what is encoded, and a decoder's work may be long.
        self.at_encoder = Place(self.vae, apart=True, urgent=True) if vae_apart else self.at_model
        self.move_text(text_residence)
        self._lock = threading.RLock()
        self._enqueued = torch.cuda.Event() if self.model.type == "cuda" else None

    @property
    def all(self) -> tuple[torch.device, ...]:
        """Each device once, the transformer's first."""
        return tuple(dict.fromkeys((self.model, self.vae, self.text)))

    @property
    def gpus(self) -> tuple[torch.device, ...]:
        """Those of ``all`` that are GPUs."""
        return tuple(device for device in self.all if device.type == "cuda")

    @property
    def async_vae(self) -> bool:
        """Whether the VAE is on another GPU than the transformer, so that both work at once."""
        return self.model.type == self.vae.type == "cuda" and self.vae != self.model

    def move_text(self, residence: str) -> None:
        """Let the text encoder's weights lie elsewhere, and compute there; as ``text_residence``."""
        home = self.text_asked or self.model
        self.text_residence = residence_on(home, residence)
        on_cpu = self.text_residence == "cpu"
        self.text = torch.device("cpu") if on_cpu else home
        self.embeddings = self.model if on_cpu else home
        self.at_text = self.at_model
        if _apart(self.embeddings, self.model):
            self.at_text = Place(self.embeddings, apart=True, urgent=True)

    def _check_alone(self, **beside: str | torch.device | None) -> None:
        for name, given in beside.items():
            if given is not None:
                raise ValueError(f"{name} must be none on {self.ranks.count} ranks, got {str(given)!r}")

    def _check_kinds(self, text_residence: str) -> None:
        wanted = "a GPU" if self.model.type == "cuda" else "cpu"
        text = self.text_asked
        if self.vae.type != self.model.type:
            raise ValueError(f"vae_device must be {wanted} beside the device {self.model}, got {str(self.vae)!r}")
        if text is None:
            return
        if text.type == "cuda" != self.model.type:
            raise ValueError(f"text_device must be {wanted} beside the device {self.model}, got {str(text)!r}")
        if text.type == "cuda" and text_residence == "cpu":
            raise ValueError(f"text_device must be cpu, or none, with text_residence cpu, got {str(text)!r}")
        if text.type == "cpu" and text_residence in ("gpu", "parked"):
            raise ValueError(f"text_residence must be auto or cpu with text_device cpu, got {text_residence!r}")

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One caller at a time, behind all that the callers before have enqueued on the transformer's device (on others
        a place has an order of its own); without gradients, nor what else the caller has turned on for itself.
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
        for device in self.gpus:
            torch.cuda.synchronize(device)

    def release(self) -> None:
        """Give memory back that the allocator keeps and nobody uses; waits for the devices."""
        if self.gpus:
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


def _apart(device: torch.device, other: torch.device) -> bool:
    """Whether what runs on the one has an order of its own beside what runs on the other."""
    return device.type == other.type == "cuda" and device != other


def checked(device: str | torch.device | None, name: str = "device") -> torch.device:
    """The device, with its index. Raises ValueError naming the argument."""
    foreign = foreign_gpu()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s", device)
        if foreign and device == "cpu":
            log.warning("device: cpu; there is %s, but %s", foreign, SUPPORTED)
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name} must be cuda, cuda:N or cpu, got {device!r}") from None
    if device.type not in ("cuda", "cpu"):
        found = f"here is {foreign}, but " if foreign else ""
        raise ValueError(f"{name} must be cuda, cuda:N or cpu, got {str(device)!r}: {found}{SUPPORTED}")
    if device.type == "cuda" and torch.version.hip:
        raise ValueError(f"{name} must be an NVIDIA GPU or cpu, got {foreign or 'torch for ROCm'}: {SUPPORTED}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} must be one that is here, got {str(device)!r}: torch finds no CUDA")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"{name} must be one of the {count} that are here, got {str(device)!r}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
