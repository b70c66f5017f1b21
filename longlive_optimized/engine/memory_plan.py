"""What an engine will take in memory, told before a weight is read, and the leanest choice that is needed to fit.

Nothing is allocated: the code that allocates runs on torch's meta device, and the storages that it makes are counted.
What no storage tells (CUDA's context, the pools of graphs, temporaries of a pass) is measured: ``MEASURED``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import LATENT_SCALE, MAX_WINDOW, PIXELS_PER_TOKEN, OptimizationConfig, StreamSettings
from ..kernels.int8_linear import PACK
from ..model.control import ControlBranch
from ..model.transformer import Transformer
from ..text.footprint import Footprint
from ..text.parked import residence_on
from ..text.prompt_cache import PromptCache
from ..vae.autoencoder import Autoencoder
from ..vae.backends import codec_for
from ..vae.codec import CausalEncoder, Codec
from ..vae.packed.decode import PackedDecoder
from ..vae.packed.encode import PackedEncoder
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES
from ..weights.load import outline
from ..weights.locate import ModelFiles, locate, native_size
from ..weights.text import text_footprint
from .devices import Devices, default_dtype
from .graphs import GraphSwitch
from .live_bytes import AsKernels, passing_bytes, storage_bytes
from .ranks import Ranks
from .stream import Networks, Stream

GIB = 2**30
META = torch.device("meta")


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


class MemoryShort(ValueError):
    """A config that fits the device in no way that it leaves open."""


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
    choice that was not the fastest costs, in words. vae_device, text_device: as the engine's arguments.
    """

    host: Mapping[str, int]
    choices: Choices
    costs: tuple[str, ...] = ()
    others: tuple[DeviceMemory, ...] = ()
    vae_device: torch.device | None = None
    text_device: torch.device | None = None

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


def memory_plan(
    model_path: str | PathLike,
    config: OptimizationConfig | None = None,
    device: str | torch.device | None = None,
    vae_device: str | torch.device | None = None,
    text_device: str | torch.device | None = None,
) -> MemoryPlan:
    """The plan of a LongLiveEngine with these arguments, without loading anything; it may not fit.

    Raises what the engine raises for arguments, and for the files that it looks into (the headers of the VAE's and the
    text encoder's, config.json); never MemoryShort.
    """
    if not isinstance(config, OptimizationConfig | None):
        raise TypeError(f"config must be of the class OptimizationConfig, got {type(config).__name__}")
    config = config or OptimizationConfig()
    files = locate(model_path, config.vae_type, config.control)
    devices = Devices(device, config.text_residence, vae_device, text_device)
    sized = config.sized(native_size(model_path))
    return plan_for(files, sized, devices.model, devices.vae, devices.text_asked)


def plan_for(
    files: ModelFiles,
    config: OptimizationConfig,
    device: torch.device,
    vae_device: torch.device | None = None,
    text_device: torch.device | None = None,
    ranks: Ranks | None = None,
) -> MemoryPlan:
    """The first plan from fast to lean that fits; else the leanest. ``ranks`` share a stream's tokens, and choose as
    the one must that has the least room."""
    for plan in plans_for(files, config, device, vae_device, text_device, ranks):
        if plan.fits:
            break
    return plan


def plans_for(
    files: ModelFiles,
    config: OptimizationConfig,
    device: torch.device,
    vae_device: torch.device | None = None,
    text_device: torch.device | None = None,
    ranks: Ranks | None = None,
) -> Iterator[MemoryPlan]:
    """Plans from fast to lean, each leaner than the one before; what the config fixes is the same in all."""
    ranks = ranks or Ranks()
    outlined = Outline(files, config, device, vae_device, text_device, ranks.count)
    available = {each: available_on(each, config.memory_limit_gib) for each in outlined.devices}
    if ranks.count > 1:
        available = {each: None if room is None else ranks.least(room) for each, room in available.items()}
    plan = outlined.plan(outlined.first(), available)
    yield plan
    for step in outlined.steps:
        if leaner := outlined.leaner(plan, step):
            plan = leaner
            yield plan


def with_more_vaes(
    files: ModelFiles,
    config: OptimizationConfig,
    plan: MemoryPlan,
    more_vaes: Sequence[ModelFiles],
    ranks: Ranks | None = None,
) -> MemoryPlan:
    """``plan``, whose engine runs, with the weights of other VAEs beside its own. The last of them is not loaded yet.

    Raises MemoryShort where that one is too much for its device: by the plan, or for what is free there now, as other
    streams than the plan's one take memory too.
    """
    ranks = ranks or Ranks()
    outlined = Outline(files, config, plan.device, plan.vae_device, plan.text_device, ranks.count, more_vaes)
    grown = outlined.plan(plan.choices, {each.device: each.available for each in plan.devices}, plan.costs)
    for before, after in zip(plan.devices, grown.devices, strict=True):
        room = None if after.allocated == before.allocated else available_on(after.device, config.memory_limit_gib)
        if room is None:
            continue
        more = after.allocated - before.allocated
        if short := max(after.short, more - ranks.least(room - MEASURED.context)):
            name = more_vaes[-1].vae_type
            raise MemoryShort(
                f"memory is {gib(short)} short: vae_type {name!r} takes {gib(more)} of {after.device} beside what is "
                f"there; what would do: an engine that begins with vae_type={name!r}, which is then its only one"
            )
    return grown


def leaner_plans(
    files: ModelFiles,
    config: OptimizationConfig,
    plan: MemoryPlan,
    short: int | None = None,
    more_vaes: Sequence[ModelFiles] = (),
) -> Iterator[MemoryPlan]:
    """Plans that a running engine can go over to, one choice leaner each; the text encoder's precision stays, since
    its weights of another would have to find room beside it. short: the GPU that must get something out of it.
    more_vaes: which it has loaded beside its config's."""
    outlined = Outline(files, config, plan.device, plan.vae_device, plan.text_device, more_vaes=more_vaes)
    for step in outlined.steps:
        if "text_precision" not in step[0] and (leaner := outlined.leaner(plan, step)):
            pairs = zip(leaner.devices, plan.devices, strict=True)
            if any(after.peak < before.peak for after, before in pairs if short in (None, after.device.index)):
                yield leaner


def gpu_of(error: torch.OutOfMemoryError) -> int | None:
    """The GPU whose memory ran out, as torch's message names it; None if it names none."""
    named = re.search(r"\bGPU (\d+)\b", str(error))
    return int(named[1]) if named else None


def _without(costs: tuple[str, ...], change: Mapping[str, object]) -> tuple[str, ...]:
    """Without the costs of a choice that ``change`` takes back."""
    [name] = change
    return tuple(cost for cost in costs if not any(name in changed and cost == words for changed, words in STEPS))


def check_fits(plan: MemoryPlan, files: ModelFiles, config: OptimizationConfig) -> None:
    """Raises MemoryShort, with what is missing and what would do."""
    if plan.fits:
        return
    limit = "" if config.memory_limit_gib is None else f" (memory_limit_gib={config.memory_limit_gib:g})"
    height, width = config.size
    worst = max(plan.devices, key=lambda each: each.short)
    assert worst.available is not None
    taken = f"{gib(worst.peak)} of {worst.device} at least, {gib(worst.available)} are there{limit}"
    where = plan.device, plan.vae_device, plan.text_device
    would = [name for name, other in _smaller(config) if plan_for(files, other, *where).fits]
    advice = f"what would do: {', or '.join(would)}" if would else "no smaller setting would do"
    raise MemoryShort(f"memory is {gib(worst.short)} short: {height}x{width} takes {taken}; {advice}")


def _smaller(config: OptimizationConfig) -> Iterator[tuple[str, OptimizationConfig]]:
    """Other settings to try, in words and as configs."""
    free = {"text_precision": "auto", "text_residence": "auto", "low_memory": None, "keep_text_int8": False}
    for name in ("text_residence", "text_precision"):
        if getattr(config, name) != "auto":
            yield f"{name}='auto'", dataclasses.replace(config, **{name: "auto", "keep_text_int8": False})
    if not config.low_memory:
        yield "low_memory=True", dataclasses.replace(config, low_memory=True)
    if config.precision == "bf16" or config.local_attn_size > 9:
        changes = OptimizationConfig.preset_fields("turbo") | {"sink_size": min(config.sink_size, 3)}
        yield "preset 'turbo'", dataclasses.replace(config, **changes, **free)
    height, width = config.size
    for h, w in ((384, 640), (320, 576), (240, 416)):
        if h * w < height * width:
            yield f"{h}x{w}", dataclasses.replace(config, height=h, width=w)


def available_on(device: torch.device, limit_gib: float | None = None) -> int | None:
    """Bytes of a GPU that a process may take for an engine, CUDA's own included: what is free, and what the context has
    taken by then; less where ``limit_gib`` or torch's ``set_per_process_memory_fraction`` says so. What torch keeps for
    this process is not free: ``torch.cuda.empty_cache`` gives back what nobody uses. None for a CPU.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)  # makes the context, if there is none yet
    kept = torch.cuda.memory_reserved(device)
    of_fraction = int(torch.cuda.get_per_process_memory_fraction(device) * total) - kept
    room = min(free, of_fraction) + MEASURED.context
    if limit_gib is not None:
        room = int(min(room, limit_gib * GIB - kept))  # a limit may be beyond all numbers, in bytes
    return max(0, room)


class Outline:
    """An engine's networks and stream as shapes, for any choices.

    devices: those that it takes memory of, the transformer's first. more_vaes: of other VAEs beside the config's, of
    which a stream runs one at a time.
    """

    def __init__(
        self,
        files: ModelFiles,
        config: OptimizationConfig,
        device: torch.device,
        vae_device: torch.device | None = None,
        text_device: torch.device | None = None,
        ranks: int = 1,
        more_vaes: Sequence[ModelFiles] = (),
    ):
        self._files, self._config, self._device, self._ranks = files, config, device, ranks
        self._vae_asked, self._text_asked = vae_device, text_device
        self._vae_device, self._text_device = vae_device or device, text_device or device
        beside = (each for each in (self._vae_device, self._text_device) if each.type == device.type)
        self.devices = tuple(dict.fromkeys((device, *beside)))
        self._dtype = default_dtype(config.model_dtype, device)
        self._dimensions, vae = outline(files)
        self._vae = vae.to(self._dtype)
        self._more_vaes = {each.vae_type: outline(each)[1].to(self._dtype) for each in more_vaes}
        self._of_transformer = functools.cache(self._transformer)
        self._of_videos, self._of_text = functools.cache(self._videos), functools.cache(self._text)

    @property
    def steps(self) -> tuple[Step, ...]:
        """From fast to lean. On a GPU of its own the VAE takes less by itself before the weights do, for which its
        memory is a little less, too."""
        if self._vae_device == self._device:
            return STEPS
        *before, weights, vae, text = STEPS
        return *before, vae, weights, text

    def first(self) -> Choices:
        """The fastest that the config leaves."""
        config = self._config
        residence = residence_on(self._text_device, config.text_residence)
        return Choices(config.text_precision, residence, bool(config.low_memory), False)

    def allows(self, change: Mapping[str, object], chosen: Choices) -> bool:
        """Whether a step may be taken: the config does not fix it, and the model can do with it."""
        config, on_gpu = self._config, self._device.type == "cuda"
        if "text_precision" in change:
            return on_gpu and config.text_precision == "auto" and self._text_can_be_int8(chosen.text_residence)
        if "text_residence" in change:
            stays = self._text_asked is None or change["text_residence"] != "cpu"
            return on_gpu and config.text_residence == "auto" and self._text_device.type == "cuda" and stays
        if "low_memory" in change:
            fits = not any(width % PACK for width in (self._dimensions.dim, self._dimensions.ffn_dim))
            return config.low_memory is None and config.precision == "int8" and fits
        return True

    def leaner(self, plan: MemoryPlan, step: Step) -> MemoryPlan | None:
        """``plan`` with one choice that is leaner; None if it may not be taken, or is not."""
        change, cost = step
        if not self.allows(change, plan.choices):
            return None
        available = {each.device: each.available for each in plan.devices}
        after = self.plan(plan.choices._replace(**change), available, (*_without(plan.costs, change), cost))
        return after if after.relieves(plan) else None

    def plan(
        self, chosen: Choices, available: Mapping[torch.device, int | None], costs: tuple[str, ...] = ()
    ) -> MemoryPlan:
        """What an engine with these choices takes."""
        videos = self._of_videos(chosen.low_memory, chosen.vae_in_parts)
        text = self._of_text(chosen.text_precision, chosen.text_residence)
        host = {name: video.on_host for name, video in videos.items()} | {"text encoder": text.host}
        on_gpu = self._device.type == "cuda"
        first, *others = (self._share(device, chosen, available.get(device)) for device in self.devices)
        own: dict[str, Any] = {field.name: getattr(first, field.name) for field in dataclasses.fields(first)}
        return MemoryPlan(
            **own,
            host={name: nbytes for name, nbytes in host.items() if nbytes and on_gpu},
            choices=chosen,
            costs=costs,
            others=tuple(others),
            vae_device=self._vae_asked,
            text_device=self._text_asked,
        )

    def _share(self, device: torch.device, chosen: Choices, available: int | None) -> DeviceMemory:
        """What lies on one of the devices, and what comes and goes there."""
        on_gpu = device.type == "cuda"
        parts, working, longest, video_input = {}, [0], 0, 0
        if device == self._device:
            longest = self._pass_bytes()
            parts |= self._of_transformer(chosen.low_memory)
            working.append(longest)
        if device == self._vae_device:
            videos = self._of_videos(chosen.low_memory, chosen.vae_in_parts)
            parts |= {name: each.weights + (0 if on_gpu else each.on_host) for name, each in videos.items()}
            video = _Video(*map(max, zip(*videos.values(), strict=True)))  # of each, that of the VAE which takes most
            parts["VAE's stream"] = video.stream
            parts |= {"control's encoder": video.control} if self._config.control else {}
            working.append(video.passing)
            video_input = video.encoder
        text = self._of_text(chosen.text_precision, chosen.text_residence)
        if device == self._text_device:
            parts["text encoder"] = text.gpu if on_gpu else text.host
            working.append(text.gpu_encoding)
        parts |= self._small(device)
        # What has an order of its own has memory of its own to work in.
        at_a_time = max(working) if device == self._device else sum(working)
        if not on_gpu:
            return DeviceMemory(device, parts, at_a_time, 0, 0, video_input, None)
        parts["workspaces"] = self._workspaces(chosen.low_memory)
        graphs = self._config.use_cuda_graphs and not self._config.use_torch_compile
        pool = int(MEASURED.pool_by_pass * longest) if graphs else 0
        kept = min(MEASURED.kept_most, int(MEASURED.kept_share * (sum(parts.values()) + at_a_time)))
        return DeviceMemory(device, parts, at_a_time, pool + kept, MEASURED.context, video_input, available)

    def _workspaces(self, low_memory: bool) -> int:
        if low_memory:
            return MEASURED.workspaces_low_memory
        return MEASURED.workspaces if self._config.precision == "bf16" else MEASURED.workspaces_int8

    def _small(self, device: torch.device) -> dict[str, int]:
        """What a stream and the engine keep beside networks and their state."""
        config, sizes = self._config, self._dimensions
        (height, width), item = config.size, self._dtype.itemsize
        latent = sizes.in_dim * (height // LATENT_SCALE) * (width // LATENT_SCALE) * item
        prompts = config.prompt_cache_size if config.use_prompt_cache else 1
        small = {}
        if device == self._device:
            small["prompts"] = prompts * sizes.text_len * sizes.text_dim * item
            small["history"] = (MAX_WINDOW + config.sink_size) * latent
        if device == self._vae_device:
            small["pictures"] = BLOCK_PIXEL_FRAMES * height * width * 3
        return small

    def _pass_bytes(self) -> int:
        """What comes and goes in the longest pass, a recache of a whole window.

        In the midst of a layer's FFN: the residual stream, two norms, queries, attention's and the product's results,
        and the FFN's inside; of several ranks a share. Or as the ring is written: all ranks' queries, keys and values,
        and queries, beside a share of that.
        """
        config, sizes = self._config, self._dimensions
        height, width = config.size
        tokens = config.local_attn_size * (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)
        in_ffn, shares = 6 * sizes.dim + sizes.ffn_dim, self._ranks
        widest = in_ffn if shares == 1 else max(in_ffn // shares, 4 * sizes.dim + 5 * sizes.dim // shares)
        return tokens * widest * self._dtype.itemsize

    def _codec(self, vae: Autoencoder, low_memory: bool, in_parts: bool) -> Codec:
        in_8_bits = self._config.precision != "bf16"
        return codec_for(vae, low_memory, self._config.vae_precision, in_8_bits, in_parts, self._vae_device)

    def _transformer(self, low_memory: bool) -> dict[str, int]:
        """Its weights, and what a stream has for it."""
        config, sizes = self._config, self._dimensions
        devices = Devices("cpu")  # whatever is on the meta device,
        devices.model = self._device  # the stream may ask where it will run
        with _on_meta():
            model = Transformer(sizes, META, self._dtype, low_memory)
            control = ControlBranch(sizes, META, self._dtype, low_memory) if config.control else None
            networks = Networks(model, self._codec(self._vae, low_memory, False), PromptCache(_no_text, 0), control)
            stream = Stream(networks, StreamSettings.of(config), devices, GraphSwitch(META))
            stream.passes.set_prompt(torch.empty(sizes.text_len, sizes.text_dim, dtype=self._dtype, device=META))
            stream.passes.inputs(BLOCK_FRAMES, len(config.denoising_steps))
            for frames in range(BLOCK_FRAMES, config.local_attn_size + 1, BLOCK_FRAMES):
                stream.passes.buffer(frames)
        seen: set[int] = set()
        owners = {
            "transformer": [*model.parameters()],
            "transformer in int8": [*model.buffers()],
            "control": [*control.parameters()] if control else [],
            "control in int8": [*control.buffers()] if control else [],
            "ring": [stream.ring],
            "passes": [stream.passes],
        }
        counted = {name: storage_bytes(each, META, seen) for name, each in owners.items()}
        return {name: nbytes for name, nbytes in counted.items() if nbytes}

    def _videos(self, low_memory: bool, in_parts: bool) -> dict[str, _Video]:
        """By the name of its weights, the config's VAE first."""
        named = {"VAE": self._vae} | {f"VAE {name}": vae for name, vae in self._more_vaes.items()}
        return {name: self._video(vae, low_memory, in_parts) for name, vae in named.items()}

    def _video(self, vae: Autoencoder, low_memory: bool, in_parts: bool) -> _Video:
        """A VAE's weights, and what its two sides have and take for a block."""
        height, width = self._config.size
        rows, columns = height // LATENT_SCALE, width // LATENT_SCALE
        seen: set[int] = set()
        with _on_meta():
            codec, passing = self._codec(vae, low_memory, in_parts), 0
            decoder, encoder = codec.new_decoder((rows, columns), None), codec.new_encoder((height, width), None)
            if isinstance(decoder, PackedDecoder):
                decoder.out(torch.uint8)
                weights = [decoder.weights]
            else:  # their state is made as it is needed
                z = torch.empty(BLOCK_FRAMES, rows, columns, self._dimensions.in_dim, dtype=self._dtype, device=META)
                decoder.decode(z[:1], torch.uint8)
                passing = passing_bytes(lambda: decoder.decode(z, torch.uint8))
                encoder.encode(torch.empty(BLOCK_FRAMES + 2, height, width, 3, dtype=self._dtype, device=META))
                weights = []
            steered = [codec, self._control_encoder(codec)] if self._config.control else []
            unpacked = storage_bytes([vae], META, seen)
            each = (storage_bytes([owner], META, seen) for owner in (weights, decoder, steered, [codec, encoder]))
            packed, stream, control, both = each
        stream += 2 * self._dimensions.in_dim * self._dtype.itemsize  # the latents' means and deviations
        on_host = unpacked if codec.copies else 0
        return _Video(unpacked + packed - on_host, on_host, stream, passing, both, control)

    def _control_encoder(self, codec: Codec) -> CausalEncoder:
        """As for control video of which nothing is kept."""
        height, width = self._config.size
        encoder = codec.new_encoder((height, width), None, in_parts=True)
        if not isinstance(encoder, PackedEncoder):
            encoder.encode(torch.empty(BLOCK_FRAMES + 2, height, width, 3, dtype=self._dtype, device=META))
        return encoder

    def _text(self, precision: str, residence: str) -> Footprint:
        return text_footprint(self._files, self._text_device, self._dtype, precision, residence)

    def _text_can_be_int8(self, residence: str) -> bool:
        try:
            return self._of_text("int8", residence) is not None
        except ValueError:  # the file is in 8 bits already, or of odd widths
            return False


class _Video(NamedTuple):
    """Bytes of a VAE: weights on the device and in host memory; a stream's decoder; what comes and goes while a block
    is decoded; a stream's encoder with its weights; and that of its control, likewise."""

    weights: int
    on_host: int
    stream: int
    passing: int
    encoder: int
    control: int


@contextlib.contextmanager
def _on_meta() -> Iterator[None]:
    """Without gradients and modes of the caller's."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), AsKernels():
        yield


def _no_text(prompts: list[str]) -> Tensor:
    raise NotImplementedError
