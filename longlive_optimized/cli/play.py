"""A story's blocks, made one after the other and written while the next one is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .loading import console

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.engine import LongLiveEngine
    from ..story import Story, StoryPrompt
    from .inputs import Inputs
    from .video import Gathered, Mp4Writer, Unwritten


def warm_up(engine: LongLiveEngine) -> float | None:
    """Seconds that it took on a GPU; None on a CPU, where there is nothing to warm up."""
    import torch

    if engine.device.type != "cuda":
        return None
    warmup = engine.warmup()
    for device in engine.devices.gpus:
        torch.cuda.reset_peak_memory_stats(device)
    console.print(f"warmed up in {warmup:.1f} s")
    return warmup


def play(
    engine: LongLiveEngine,
    story: Story,
    frames: int,
    video: Mp4Writer | Gathered | Unwritten,
    overlay: bool,
    given: Inputs,
) -> None:
    """Write the story's frames, so many in all, and show how far it is; says which prompts the video did not reach.

    Where it is interrupted, what is made is written before KeyboardInterrupt goes on.
    """
    from ..engine.host_copy import HostCopy

    count, speed = TextColumn("{task.completed}/{task.total} frames"), TextColumn("{task.fields[speed]}")
    columns = TextColumn("generating"), BarColumn(), count, TimeRemainingColumn(), speed
    seen, copies = [], deque()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=frames, speed="")

        def write() -> None:
            video.write(copies.popleft().frames())
            last = engine.block_times()[-1]
            fps = 1e3 * last.frames / last.interval
            bar.update(task, completed=video.frames, speed=f"{last.interval:.0f} ms/block, {fps:.1f} fps")

        try:
            for block in _blocks(engine, story, seen, frames, overlay, given):
                copies.append(HostCopy(block))
                if len(copies) > 1:  # one block late: this one is made, and decoded, while that one is written
                    write()
        except KeyboardInterrupt:
            while copies:
                write()
            raise
        write()
    for late in story.prompts:
        if late not in seen and late.seconds is not None:
            text = f"the video ended before the switch at {late.seconds:g} s to {late.what!r}"
            console.print(text, style="yellow", soft_wrap=True)


def _blocks(
    engine: LongLiveEngine, story: Story, seen: list[StoryPrompt], frames: int, overlay: bool, given: Inputs
) -> Iterator[Tensor]:
    """A story's blocks, none of which is waited for; notes the prompts that it has come to."""
    from ..demo.scope_integration.overlay import create_latency_overlay
    from ..engine.latency import LatencyMeter

    meter, panel, made = LatencyMeter(engine), create_latency_overlay() if overlay else None, 0
    for moment in story.moments(given.first_frames):
        if moment.prompt not in seen[-1:]:
            seen.append(moment.prompt)
        moment.take_hold(engine, engine.stream)
        fields = given.fields(made, is_last=made + moment.frames >= frames)
        block = engine.generate_block(moment.request(**fields))
        if panel:
            panel.apply(block, meter.stats(frame_count=made))
        made += moment.frames
        yield block[: moment.frames]
