"""Which of an engine's choices fit into memory: the fastest, step by step leaner."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from os import PathLike

import torch

from ..config import OptimizationConfig
from ..kernels.int8_linear import PACK
from ..text.parked import residence_on
from ..weights.locate import ModelFiles, locate, native_size
from .devices import Devices
from .memory_outline import Outline
from .memory_shares import GIB, MEASURED, STEPS, Asked, Choices, MemoryPlan, Step, gib
from .ranks import Ranks


class MemoryShort(ValueError):
    """A config that fits the device in no way that it leaves open."""


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
    return plan_for(Asked(files, sized, devices.model, devices.vae, devices.text_asked))


def plan_for(asked: Asked) -> MemoryPlan:
    """The first plan from fast to lean that fits; else the leanest. Ranks choose as the one must that has the least
    room."""
    for plan in plans_for(asked):
        if plan.fits:
            break
    return plan


def plans_for(asked: Asked) -> Iterator[MemoryPlan]:
    """Plans from fast to lean, each leaner than the one before; what the config fixes is the same in all."""
    ladder, ranks = Ladder(asked), asked.ranks
    available = {each: available_on(each, asked.config.memory_limit_gib) for each in ladder.outline.devices}
    if ranks and ranks.count > 1:
        available = {each: None if room is None else ranks.least(room) for each, room in available.items()}
    plan = ladder.outline.plan(ladder.first(), available)
    yield plan
    for step in ladder.steps:
        if leaner := ladder.leaner(plan, step):
            plan = leaner
            yield plan


def with_another_vae(plan: MemoryPlan, vae: ModelFiles) -> MemoryPlan:
    """``plan``, whose engine runs, with the weights of another VAE beside those that it has, not loaded yet.

    Raises MemoryShort where it is too much for its device: by the plan, or for what is free there now, as other
    streams than the plan's one take memory too.
    """
    asked = plan.asked._replace(more_vaes=(*plan.asked.more_vaes, vae))
    ranks = asked.ranks or Ranks()
    grown = Outline(asked).plan(plan.choices, {each.device: each.available for each in plan.devices}, plan.costs)
    for before, after in zip(plan.devices, grown.devices, strict=True):
        more = after.allocated - before.allocated
        room = available_on(after.device, asked.config.memory_limit_gib) if more else None
        if room is None:
            continue
        if short := max(after.short, more - ranks.least(room - MEASURED.context)):
            raise MemoryShort(
                f"memory is {gib(short)} short: vae_type {vae.vae_type!r} takes {gib(more)} of {after.device} beside "
                f"what is there; what would do: an engine that begins with vae_type={vae.vae_type!r}, which is then "
                "its only one"
            )
    return grown


def leaner_plans(plan: MemoryPlan, short: int | None = None) -> Iterator[MemoryPlan]:
    """Plans that a running engine can go over to, one choice leaner each; the text encoder's precision stays, since
    its weights of another would have to find room beside it. short: the GPU that must get something out of it."""
    ladder = Ladder(plan.asked)
    for step in ladder.steps:
        if "text_precision" not in step[0] and (leaner := ladder.leaner(plan, step)):
            pairs = zip(leaner.devices, plan.devices, strict=True)
            if any(after.peak < before.peak for after, before in pairs if short in (None, after.device.index)):
                yield leaner


def gpu_of(error: torch.OutOfMemoryError) -> int | None:
    """The GPU whose memory ran out, as torch's message names it; None if it names none."""
    named = re.search(r"\bGPU (\d+)\b", str(error))
    return int(named[1]) if named else None


def check_fits(plan: MemoryPlan) -> None:
    """Raises MemoryShort, with what is missing and what would do."""
    if plan.fits:
        return
    config = plan.asked.config
    limit = "" if config.memory_limit_gib is None else f" (memory_limit_gib={config.memory_limit_gib:g})"
    height, width = config.size
    worst = max(plan.devices, key=lambda each: each.short)
    assert worst.available is not None
    taken = f"{gib(worst.peak)} of {worst.device} at least, {gib(worst.available)} are there{limit}"
    would = [name for name, other in _smaller(config) if plan_for(plan.asked._replace(config=other, ranks=None)).fits]
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


class Ladder:
    """The plans of what is asked for, from fast to lean: what its config fixes is the same in all."""

    def __init__(self, asked: Asked):
        self.asked, self.outline = asked, Outline(asked)

    @property
    def steps(self) -> tuple[Step, ...]:
        """From fast to lean. On a GPU of its own the VAE takes less by itself before the weights do, for which its
        memory is a little less, too."""
        asked = self.asked
        if (asked.vae_device or asked.device) == asked.device:
            return STEPS
        *before, weights, vae, text = STEPS
        return *before, vae, weights, text

    def first(self) -> Choices:
        """The fastest that the config leaves."""
        config = self.asked.config
        residence = residence_on(self.outline.text_device, config.text_residence)
        return Choices(config.text_precision, residence, bool(config.low_memory), False)

    def allows(self, change: Mapping[str, object], chosen: Choices) -> bool:
        """Whether a step may be taken: the config does not fix it, and the model can do with it."""
        config, on_gpu = self.asked.config, self.asked.device.type == "cuda"
        if "text_precision" in change:
            return on_gpu and config.text_precision == "auto" and self.outline.text_can_be_int8(chosen.text_residence)
        if "text_residence" in change:
            stays = self.asked.text_device is None or change["text_residence"] != "cpu"
            return on_gpu and config.text_residence == "auto" and self.outline.text_device.type == "cuda" and stays
        if "low_memory" in change:
            sizes = self.outline.dimensions
            fits = not any(width % PACK for width in (sizes.dim, sizes.ffn_dim))
            return config.low_memory is None and config.precision == "int8" and fits
        return True

    def leaner(self, plan: MemoryPlan, step: Step) -> MemoryPlan | None:
        """``plan`` with one choice that is leaner; None if it may not be taken, or is not."""
        change, cost = step
        if not self.allows(change, plan.choices):
            return None
        available = {each.device: each.available for each in plan.devices}
        after = self.outline.plan(plan.choices._replace(**change), available, (*_without(plan.costs, change), cost))
        return after if after.relieves(plan) else None


def _without(costs: tuple[str, ...], change: Mapping[str, object]) -> tuple[str, ...]:
    """Without the costs of a choice that ``change`` takes back."""
    [name] = change
    return tuple(cost for cost in costs if not any(name in changed and cost == words for changed, words in STEPS))
