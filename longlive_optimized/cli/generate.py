"""``generate``: a prompt and prompts to switch to, or a story, become a file of video."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config import PRESETS
from ..story import VERSION, Story, StoryPrompt
from ..text.clean import clean
from ..video import FORMS, form_of
from ..video_time import BLOCK_PIXEL_FRAMES, TRAINED_FPS
from ..weights.locate import native_size
from .files import Force, check_file, same_file, say_written, write_json
from .inputs import (
    ControlScale,
    ControlVideo,
    FirstFrame,
    InputOptions,
    Inputs,
    LastFrame,
    Mask,
    NoiseScale,
    Reference,
    Video,
    open_inputs,
)
from .loading import (
    Device,
    Height,
    KeepTextInt8,
    LowMemory,
    MemoryLimit,
    TextDevice,
    TextPrecision,
    TextResidence,
    VaeDevice,
    Width,
    console,
    load_engine,
    results,
)
from .ranks import Gpus, join_ranks, read_gpus
from .video import Gathered, Mp4Writer, Unwritten

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..engine.engine import LongLiveEngine
    from ..engine.timing import BlockTimes
    from ..weights.user_lora import UserLora

LENGTH = 5.0  # seconds, where nothing says another
LONGEST_SIDE = 16128  # pixels, of square H.264 pictures by x264 and FFmpeg
_MINUTES, _SECONDS = r"(?:(?:(\d+):)?(\d+):(?=[0-5]\d[.:]))?", r"(\d+(?:\.\d*)?|\.\d+)"
_SWITCH = re.compile(rf"\A{_MINUTES}{_SECONDS}:(?!\d+(?:\.\d*)?:)(.*)\Z", re.DOTALL)


class Switch(NamedTuple):
    """From the first block that begins at or after ``second`` of the video, the prompt is ``text``."""

    second: float
    text: str


def parse_switch(text: str) -> Switch:
    """Read ``TIME:TEXT``, where the time is seconds, ``M:SS`` or ``H:MM:SS``. Raises ValueError."""
    try:
        hours, minutes, seconds, prompt = _SWITCH.findall(text)[0]
        clean(prompt)  # raises where there is nothing to show
    except (IndexError, ValueError):
        wanted = "--switch must be SECONDS:TEXT or M:SS:TEXT, such as 2.5:'a red fox' or 0:02:'a red fox'"
        raise ValueError(f"{wanted}, got {text!r}") from None
    return Switch(3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds), prompt)


def parse_steps(text: str | None) -> tuple[int, ...] | None:
    """Read ``1000,750,500,250``. Raises ValueError; what the numbers must be is for the config to say."""
    try:
        return tuple(int(step) for step in text.split(",")) if text is not None else None
    except ValueError:
        raise ValueError(f"--steps must be numbers between commas, such as 1000,500,250, got {text!r}") from None


def parse_lora(text: str) -> tuple[str, float]:
    """Read ``FILE`` or ``FILE:SCALE``: the file's whole path, and 1 where no scale is given. Raises ValueError."""
    path, colon, scale = text.rpartition(":")
    try:
        number = float(scale) if colon else 1.0
    except ValueError:  # the colon is the path's own
        path, number = text, 1.0
    path = path if colon and path else text
    if not math.isfinite(number):
        raise ValueError(f"--lora must be FILE or FILE:SCALE with a finite scale, got {text!r}")
    return os.path.abspath(os.path.expanduser(path)), number


def generate(
    out: Annotated[Path, typer.Option(help="The file to write: .mp4, .gif or .webp.")],
    prompt: Annotated[str | None, typer.Option(help="What to show.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder, ORG/NAME of the hub, or 'tiny', the built-in one; tiny, or the story's.",
            show_default=False,
        ),
    ] = None,
    story: Annotated[
        Path | None,
        typer.Option(help="Play this story, from the server or by hand, in place of --prompt.", show_default=False),
    ] = None,
    switch: Annotated[
        list[str] | None, typer.Option(metavar="SECONDS:TEXT", help="Also M:SS:TEXT; as often as wanted.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help=f"Length of the video at {TRAINED_FPS} frames a second; that of --video, --control, or {LENGTH:g}.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same video on one device; 42, or the story's.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(PRESETS)}: 'longlive-optimized presets' says what each does; balanced.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Denoising steps in place of the preset's, such as 1000,500,250.", show_default=False),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Latent frames in the window, in place of the preset's.", show_default=False)
    ] = None,
    vae: Annotated[
        Literal["wan", "lightvae", "tae", "lighttae"] | None,
        typer.Option(
            help="Which VAE; wan, the model's own. The others are faster, and lose detail.", show_default=False
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:SCALE]", help="A LoRA to merge; as often as wanted.")
    ] = None,
    height: Height = None,
    width: Width = None,
    video: Video = None,
    noise_scale: NoiseScale = None,
    control: ControlVideo = None,
    mask: Mask = None,
    reference: Reference = None,
    first_frame: FirstFrame = None,
    last_frame: LastFrame = None,
    control_scale: ControlScale = None,
    low_memory: LowMemory = None,
    memory_limit: MemoryLimit = None,
    text_precision: TextPrecision = "auto",
    text_residence: TextResidence = "auto",
    keep_text_int8: KeepTextInt8 = False,
    scale: Annotated[
        int, typer.Option("--scale", "--enlarge", help="Write pictures so many times as large.", min=1)
    ] = 1,
    fps: Annotated[
        int,
        typer.Option(
            help="Frames a second of the file; the model's are 16: others are faster or slower.", min=1, max=60
        ),
    ] = TRAINED_FPS,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the latency panel into the video.")] = False,
    device: Device = None,
    vae_device: VaeDevice = None,
    text_device: TextDevice = None,
    gpus: Gpus = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write statistics here.")] = None,
    force: Force = False,
) -> None:
    """Make a video."""
    numbers = read_gpus(gpus, device)
    switches = {at.second: at.text for at in sorted(map(parse_switch, switch or ()))}
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"--seconds must be positive, got {seconds}")
    options = InputOptions(
        video=video,
        noise_scale=noise_scale,
        control=control,
        mask=mask,
        reference=tuple(reference or ()),
        first_frame=first_frame,
        last_frame=last_frame,
        control_scale=control_scale,
    )
    own = {"model": model, "seed": seed, "height": height, "width": width}
    own = {name: value for name, value in own.items() if value is not None}
    if story is not None:
        beside = {"--prompt": prompt, "--switch": switch, "--seconds": seconds, "--preset": preset, "--steps": steps}
        _refuse(beside | {"--window": window, "--vae": vae, "--lora": lora} | dict(options.files))
        told = _read_story(story, own)
    else:
        settings = {"denoising_steps": parse_steps(steps), "local_attn_size": window, "vae_type": vae}
        told = _as_story(prompt, preset, settings, dict(map(parse_lora, lora or ())), own)
    engine_fields = {
        "low_memory": low_memory,
        "memory_limit_gib": memory_limit,
        "text_precision": None if text_precision == "auto" else text_precision,
        "text_residence": text_residence,
        "keep_text_int8": keep_text_int8,
        "control": options.steers,
    }
    config = told.config(**{name: value for name, value in engine_fields.items() if value is not None})
    loras = _loras(told, "--lora" if story is None else "--story")
    height, width = config.sized(native_size(told.model)).size
    if scale * max(height, width) > LONGEST_SIDE:
        if scale == 1:
            raise ValueError(f"--height, --width: at most {LONGEST_SIDE} pixels fit into a video, got {height}x{width}")
        raise ValueError(f"--scale must leave pictures of at most {LONGEST_SIDE} pixels a side, got {scale}")
    for option, path in options.files:
        for name, target in (("--out", out), ("--json", json_path)):
            if target and same_file(path, target):
                raise ValueError(f"{name} must be another file than {option}, got {str(target)!r} for both")
    given = open_inputs(options, (height, width))
    if story is None:
        told = _with_length(told, seconds or given.length or LENGTH, switches, given)
    frames = told.frames or sum(moment.frames for moment in told.moments(given.first_frames))
    check_file("--out", out, force, *(f".{form}" for form in FORMS))
    if gathered := out.suffix.lower() != ".mp4":
        _check_gathered(out, height, width, frames, scale, fps)
    if json_path and same_file(json_path, out):
        raise ValueError(f"--json must be another file than --out, got {str(json_path)!r} for both")
    check_file("--json", json_path, force)
    ranks = join_ranks(numbers, device)
    engine = load_engine(told.model, config, device, vae_device, text_device, ranks, loras)
    warmup = _warm_up(engine)
    started, stopped, first = time.perf_counter(), False, ranks.rank == 0
    written: Mp4Writer | Gathered | Unwritten = Unwritten()
    if first:
        written = Gathered(out, scale, fps) if gathered else Mp4Writer(out, height, width, scale, fps)
    try:
        with written, ranks:
            try:
                _write(engine, told, frames, written, overlay, given)
            except KeyboardInterrupt:
                stopped = True
    except ConnectionError:  # of ranks
        raise
    except OSError as error:  # a file that was not finished cannot be played
        written.frames = 0
        raise OSError(f"--out: {out} cannot be written: {error.strerror or error}") from error
    finally:
        if first and not written.frames:
            Path(os.path.realpath(out)).unlink(missing_ok=True)
    wall = time.perf_counter() - started
    if first and written.frames:
        report = _report(engine, told.preset, warmup, wall) | {"inputs": options.as_json()}
        moments = told.moments(given.first_frames)
        switched = {new.block for old, new in itertools.pairwise(moments) if new.prompt is not old.prompt}
        _print(report, out, switched)
        shown = f"{written.frames / fps:.3g} s of {scale * width}x{scale * height}"
        say_written(out, f", {shown}, {'stopped' if stopped else 'made'} after {wall:.1f} s")
        write_json(json_path, report)
    if stopped:
        raise typer.Exit(130)


def _refuse(beside: Mapping[str, object]) -> None:
    """Raises ValueError naming an option that is given beside a story."""
    for option, given in beside.items():
        if given is not None:
            raise ValueError(f"{option} cannot be given beside --story, which says what the video is made from")


def _read_story(path: Path, own: Mapping[str, Any]) -> Story:
    """The story in a file, with what was chosen in its place."""
    try:
        story = Story.load(path)
        story.check_recorded()
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--story: {error}") from None
    return Story.read({**story.as_dict(), **own})


def _as_story(
    prompt: str | None,
    preset: str | None,
    settings: Mapping[str, Any],
    loras: Mapping[str, float],
    own: Mapping[str, Any],
) -> Story:
    """A story of one prompt, whose length is not known yet."""
    if prompt is None:
        raise ValueError("--prompt, or in its place --story, must be given")
    clean(prompt)  # raises where there is nothing to show
    given = {name: value for name, value in settings.items() if value is not None}
    begins = {"block": 0, "prompt": prompt}
    fields = {"preset": preset or "balanced", "settings": given, "loras": loras, "blocks": 1, "prompts": [begins]}
    return Story.read({"version": VERSION, **fields, **own})


def _with_length(story: Story, seconds: float, switches: Mapping[float, str], given: Inputs) -> Story:
    """The story of so many seconds, with later prompts; of whole blocks where the last one ends with a picture."""
    later = (StoryPrompt(seconds=second, prompt=text) for second, text in switches.items())
    frames = round(seconds * TRAINED_FPS) or 1
    if given.last is not None:
        more = math.ceil(max(0, frames - given.first_frames) / BLOCK_PIXEL_FRAMES)
        frames = given.first_frames + more * BLOCK_PIXEL_FRAMES
    told = {"blocks": None, "seconds": frames / TRAINED_FPS, "prompts": (*story.prompts, *later)}
    return story.model_copy(update=told)


def _loras(story: Story, option: str) -> list[UserLora]:
    if not story.loras:
        return []
    try:
        return story.user_loras()
    except (ValueError, FileNotFoundError) as error:
        beside = "; a story's LoRAs are looked for beside it" if option == "--story" else ""
        raise type(error)(f"{option}: {error}{beside}") from None


def _check_gathered(out: Path, height: int, width: int, frames: int, scale: int, fps: int) -> None:
    """Raises ValueError for a GIF or WebP that would be too large."""
    from ..clip import Clip

    try:
        Clip(tuple, height, width, frames, form_of("--out", out), scale, fps)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _warm_up(engine: LongLiveEngine) -> float | None:
    """Seconds that it took, on a GPU."""
    import torch

    if engine.device.type != "cuda":
        return None
    warmup = engine.warmup()
    for device in _gpus(engine):
        torch.cuda.reset_peak_memory_stats(device)
    console.print(f"warmed up in {warmup:.1f} s")
    return warmup


def _gpus(engine: LongLiveEngine) -> list[torch.device]:
    return [device for device in engine.devices.all if device.type == "cuda"]


def _write(
    engine: LongLiveEngine,
    story: Story,
    frames: int,
    video: Mp4Writer | Gathered | Unwritten,
    overlay: bool,
    given: Inputs,
) -> None:
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


def _report(engine: LongLiveEngine, preset: str, warmup: float | None, wall: float) -> dict:
    import torch

    blocks = engine.block_times()
    cuda = engine.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(engine.device) if cuda else "cpu",
        "torch": torch.__version__,
        "ranks": engine.devices.ranks.count,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "precision": engine.stream.precision,
        "fallback_blocks": engine.stream.fallback_blocks,
        "vae_precision": engine.codec.precision,
        "vae_saturated": engine.codec.saturated,
        "text_precision": engine.text.precision,
        "text_residence": engine.text.residence,
        "preset": preset,
        "config": dataclasses.asdict(engine.config),
        "load_seconds": engine.load_seconds,
        "warmup_seconds": warmup,
        "wall_seconds": wall,
        "peak_gpu_bytes": sum(map(torch.cuda.max_memory_allocated, _gpus(engine))) if cuda else None,
        "async_vae_active": engine.devices.async_vae,
        "prompt_cache": {"hits": engine.prompts.hits, "misses": engine.prompts.misses},
        "summary": summarise(blocks),
        "blocks": [dataclasses.asdict(block) for block in blocks],
    }


def summarise(blocks: list[BlockTimes]) -> dict:
    """Medians in milliseconds of blocks without a prompt switch; the first block, which is shorter, is left out."""
    steady = [b for b in blocks[1:] if "text" not in b.stages] or blocks
    block_ms = statistics.median(b.interval for b in steady)
    frames = statistics.median(b.frames for b in steady)
    stages = sorted({name for b in steady for name in b.stages})
    return {
        "blocks": len(steady),
        "block_ms": block_ms,
        "frame_ms": block_ms / frames,
        "fps": 1e3 * frames / block_ms,
        "stages_ms": {name: statistics.median(b.stages.get(name, 0.0) for b in steady) for name in stages},
    }


def _print(report: dict, out: Path, switched: Set[int]) -> None:
    """switched: the blocks that begin a prompt; others compute the window anew for LoRAs, or as a transition ends."""
    summary = report["summary"]
    table = Table(title=f"{out}: {report['device']}, {report['precision']}, {report['preset']}", title_justify="left")
    table.add_column("median of steady blocks")
    table.add_column("ms", justify="right")
    for name, ms in summary["stages_ms"].items():
        table.add_row(name, f"{ms:.1f}")
    table.add_row("block", f"{summary['block_ms']:.1f}")
    table.add_row("pixel frame", f"{summary['frame_ms']:.1f}  ({summary['fps']:.1f} fps)")
    for block in report["blocks"]:
        if block["index"] and "recache" in block["stages"]:
            why = "prompt switch" if block["index"] in switched else "recache"
            table.add_row(f"block {block['index']}, {why}", f"{block['total']:.1f}")
    results.print(table)
