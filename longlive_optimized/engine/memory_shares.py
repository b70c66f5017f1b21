"""What an engine takes in memory, device by device, and which choices of a config that leaves open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from ..config import OptimizationConfig
    from ..weights.locate import ModelFiles
    from .ranks import Ranks

GIB = 2**30


class Measured(NamedTuple):
    """What was measured on a GPU, and of what; everything else in a plan is counted."""

    # By nvidia-smi, beside what torch has reserved: CUDA's context, cuBLAS, cuDNN, loaded kernels: 0.79 GiB. H200,
    # torch 2.11, as all that follows; docs/measurements/memory-plan-2026-11-30-2.json.
    context: int = GIB * 8 // 10
    # Allocated at the end less the tensors that are known (docs/measurements/memory-2026-11-30-1.json): 0.10 GiB in
    # bf16, 0.17 in int8, 0.27 with low_memory. Workspaces of cuBLAS, for each CUDA stream, and scratch of kernels.
    workspaces: int = GIB * 12 // 100
    workspaces_int8: int = GIB * 20 // 100
    workspaces_low_memory: int = GIB * 30 // 100
    # The graphs' pool by the temporaries of the longest pass, 0.63 GiB: 0.75 and in int8 0.82 where the longest is
    # captured first, as a warm-up does (``graphs_gib`` there); 0.96 and 1.22 as a stream without one comes to them.
    pool_by_pass: float = 1.95
    # What torch keeps between tensors, beside the pool: 0.87 to 1.13 GiB of 7 to 21 that are allocated.
    kept_share: float = 0.12
    kept_most: int = GIB


MEASURED = Measured()


class Choices(NamedTuple):
    """What of a config a plan may choose, in words of OptimizationConfig.

    vae_in_parts: the VAE takes one latent frame at a time, to the same pixels: bit for bit where its convolutions are
    ours, up to rounding where they are torch's.
    """

    text_precision: str
    text_residence: str
    low_memory: bool
    vae_in_parts: bool


Step = tuple[Mapping[str, object], str]  # what is chosen instead, and what that costs

STEPS: tuple[Step, ...] = (  # from fast to lean
    ({"text_precision": "int8"}, "the text encoder's weights in int8: embeddings differ a little"),
    ({"text_residence": "parked"}, "the text encoder parked in host memory: a new prompt waits for its weights"),
    ({"low_memory": True}, "int8 weights alone: what runs in bf16 multiplies with them, too"),
    (
        {"vae_in_parts": True},
        "the VAE takes one latent frame at a time: the same pixels but for rounding, a little later",
    ),
    ({"text_residence": "cpu"}, "prompts encoded by the CPU: a new one takes seconds"),
)


class Asked(NamedTuple):
    """What an engine is asked for: a model's files, a config that has a size, devices as the engine's arguments, and
    the ranks that share a stream's tokens. more_vaes: of other VAEs beside the config's, of which a stream runs one at
    a time."""

    files: ModelFiles
    config: OptimizationConfig
    device: torch.device
    vae_device: torch.device | None = None
    text_device: torch.device | None = None
    ranks: Ranks | None = None
    more_vaes: Sequence[ModelFiles] = ()


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """What an engine with one stream takes of one device, in bytes.

    parts: what stays there, by name. working: what comes and goes there, at most at a time. reserved: pools of CUDA
    graphs, and what torch keeps between tensors. context: what CUDA takes for itself. available: what there is for all
    of this, None where nobody counts (a CPU). video_input: what is added once video is given; it is not in the other
    figures. With ``control`` they have what a control video takes; where its masks keep something, about "control's
    encoder" comes on top.
    """

    device: torch.device
    parts: Mapping[str, int]
    working: int
    reserved: int
    context: int
    video_input: int
    available: int | None

    @property
    def allocated(self) -> int:
        """The most that tensors take at a time (``torch.cuda.max_memory_allocated``)."""
        return sum(self.parts.values()) + self.working

    @property
    def peak(self) -> int:
        """The most that the process takes of the device."""
        return self.allocated + self.reserved + self.context

    @property
    def short(self) -> int:
        """Bytes that are missing; 0 if it fits."""
        return 0 if self.available is None else max(0, self.peak - self.available)

    def rows(self) -> Iterator[tuple[str, int]]:
        """Every part of ``peak`` by name."""
        yield from self.parts.items()
        yield from {"working": self.working, "graphs' pools, gaps": self.reserved, "CUDA": self.context}.items()

    def in_words(self) -> str:
        have = "" if self.available is None else f" of {gib(self.available)} that there are"
        return f"{gib(self.peak)}{have} on {self.device}"

    def in_gib(self) -> dict:
        """For statistics: GiB with two digits."""
        there = None if self.available is None else _rounded(self.available)
        parts = {name: _rounded(n) for name, n in self.rows()}
        return {"peak_gib": _rounded(self.peak), "available_gib": there, "parts_gib": parts}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan(DeviceMemory):
    """What an engine with one stream takes, in bytes, and what was chosen so that it fits.

    What is a DeviceMemory's is that of the transformer's device. others: the VAE's and the text encoder's, where these
    are on other GPUs. host: what lies in host memory beside a GPU. choices, costs: what was chosen, and what each
    choice that was not the fastest costs, in words. asked: what it is the plan of.
    """

    host: Mapping[str, int]
    choices: Choices
    costs: tuple[str, ...] = ()
    others: tuple[DeviceMemory, ...] = ()
    asked: Asked = dataclasses.field(repr=False, compare=False)

    @property
    def devices(self) -> tuple[DeviceMemory, ...]:
        """Each device's share, the transformer's first."""
        return self, *self.others

    @property
    def fits(self) -> bool:
        return not any(each.short for each in self.devices)

    def __str__(self) -> str:
        said = ", ".join(each.in_words() for each in self.devices)
        return said + "".join(f"; {cost}" for cost in self.costs)

    def as_json(self) -> dict:
        """For statistics: GiB with two digits."""
        others = {"others": {str(each.device): each.in_gib() for each in self.others}} if self.others else {}
        host = {"host_gib": _rounded(sum(self.host.values()))}
        return self.in_gib() | host | others | self.choices._asdict() | {"costs": list(self.costs)}

    def relieves(self, before: MemoryPlan) -> bool:
        """Whether a device takes less than in ``before``; of those that are short there, if any are."""
        short = any(each.short for each in before.devices)
        pairs = zip(self.devices, before.devices, strict=True)
        return any(after.peak < each.peak for after, each in pairs if each.short or not short)


def _rounded(nbytes: int) -> float:
    return round(nbytes / GIB, 2)


def gib(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / GIB:.1f} GiB"
