"""``generate``: a prompt and prompts to switch to, or a story, become a file of video."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config import PRESETS
from ..video import FORMS, form_of
from ..video_time import TRAINED_FPS
from ..weights.locate import native_size
from .files import Force, check_file, same_file, say_written, write_json
from .inputs import (
    ControlScale,
    ControlVideo,
    FirstFrame,
    InputOptions,
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
    load_engine,
)
from .play import play, warm_up
from .ranks import Gpus, join_ranks, read_gpus
from .report import print_report, report_of
from .story import loras_of, parse_loras, parse_steps, parse_switch, read_story, story_of, switches_of, with_length
from .video import Gathered, Mp4Writer, Unwritten

LENGTH = 5.0  # seconds, where nothing says another
LONGEST_SIDE = 16128  # pixels, of square H.264 pictures by x264 and FFmpeg


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
    own = _given(model=model, seed=seed, height=height, width=width)
    if story is not None:
        beside = {"--prompt": prompt, "--switch": switch, "--seconds": seconds, "--preset": preset, "--steps": steps}
        beside |= {"--window": window, "--vae": vae, "--lora": lora} | dict(options.files)
        told = read_story(story, own, beside)
    else:
        settings = _given(denoising_steps=parse_steps(steps), local_attn_size=window, vae_type=vae)
        told = story_of(prompt, preset, settings, parse_loras(lora or ()), own)
    engine_fields = _given(
        low_memory=low_memory,
        memory_limit_gib=memory_limit,
        text_precision=None if text_precision == "auto" else text_precision,
        text_residence=text_residence,
        keep_text_int8=keep_text_int8,
        control=options.steers,
    )
    config = told.config(**engine_fields)
    loras = loras_of(told, "--lora" if story is None else "--story")
    size = config.sized(native_size(told.model)).size
    _check_size(size, scale)
    _check_apart(options, out, json_path)
    given = open_inputs(options, size)
    if story is None:
        told = with_length(told, seconds or given.length or LENGTH, switches, given)
    frames = told.frames or sum(moment.frames for moment in told.moments(given.first_frames))
    check_file("--out", out, force, *(f".{form}" for form in FORMS))
    if gathered := out.suffix.lower() != ".mp4":
        _check_gathered(out, size, frames, scale, fps)
    if json_path and same_file(json_path, out):
        raise ValueError(f"--json must be another file than --out, got {str(json_path)!r} for both")
    check_file("--json", json_path, force)
    ranks = join_ranks(numbers, device)
    engine = load_engine(told.model, config, device, vae_device, text_device, ranks, loras)
    warmup = warm_up(engine)
    started, stopped = time.perf_counter(), False
    written: Mp4Writer | Gathered | Unwritten = Unwritten()
    if ranks.rank == 0:
        written = Gathered(out, scale, fps) if gathered else Mp4Writer(out, *size, scale, fps)
    with _played_or_gone(out, written), written, ranks:
        try:
            play(engine, told, frames, written, overlay, given)
        except KeyboardInterrupt:
            stopped = True
    wall = time.perf_counter() - started
    if ranks.rank == 0 and written.frames:
        report = report_of(engine, told.preset, warmup, wall) | {"inputs": options.as_json()}
        print_report(report, out, switches_of(told, given))
        height, width = (scale * side for side in size)
        shown = f"{written.frames / fps:.3g} s of {width}x{height}"
        say_written(out, f", {shown}, {'stopped' if stopped else 'made'} after {wall:.1f} s")
        write_json(json_path, report)
    if stopped:
        raise typer.Exit(130)


def _given(**options: object) -> dict:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _check_size(size: tuple[int, int], scale: int) -> None:
    """Raises ValueError for pictures [height, width] that are too large, ``scale`` times as large, for H.264."""
    if scale * max(size) <= LONGEST_SIDE:
        return
    if scale == 1:
        raise ValueError(f"--height, --width: at most {LONGEST_SIDE} pixels fit into a video, got {size[0]}x{size[1]}")
    raise ValueError(f"--scale must leave pictures of at most {LONGEST_SIDE} pixels a side, got {scale}")


def _check_apart(options: InputOptions, out: Path, json_path: Path | None) -> None:
    """Raises ValueError where a file that is read is to be written, too."""
    for option, path in options.files:
        for name, target in (("--out", out), ("--json", json_path)):
            if target and same_file(path, target):
                raise ValueError(f"{name} must be another file than {option}, got {str(target)!r} for both")


def _check_gathered(out: Path, size: tuple[int, int], frames: int, scale: int, fps: int) -> None:
    """Raises ValueError for a GIF or WebP that would be too large."""
    from ..clip import Clip

    try:
        Clip(tuple, *size, frames, form_of("--out", out), scale, fps)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


@contextlib.contextmanager
def _played_or_gone(out: Path, written: Mp4Writer | Gathered | Unwritten) -> Iterator[None]:
    """Removes a file that has no frames, or was not finished, and cannot be played."""
    try:
        yield
    except ConnectionError:  # of ranks
        raise
    except OSError as error:
        written.frames = 0
        raise OSError(f"--out: {out} cannot be written: {error.strerror or error}") from error
    finally:
        if not isinstance(written, Unwritten) and not written.frames:
            Path(os.path.realpath(out)).unlink(missing_ok=True)
