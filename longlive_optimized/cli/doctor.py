"""``doctor``: what is here, who computes each operator and why, and whether a model folder is complete."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .loading import console, results

if TYPE_CHECKING:
    import torch

    from ..weights.locate import ModelFiles


def doctor(
    directory: Annotated[
        str | None, typer.Argument(help="A model folder to check, ORG/NAME of the hub, or 'tiny'.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read every file of DIRECTORY and compare it with its checksums.")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="Also time a few kernels, for seconds, and estimate frames a second.")
    ] = False,
) -> None:
    """Say what is installed, what the operators run on, and whether DIRECTORY can be loaded."""
    if verify and directory is None:
        raise ValueError("--verify needs a model folder: doctor DIRECTORY --verify")
    device, dtype = _versions()
    _operators(device, dtype)
    _presets(device, dtype)
    if speed:
        _speed(device)
    if directory is not None:
        _check_model(directory, verify, device)


def _versions() -> tuple[torch.device, torch.dtype]:
    """Print what is here; give the device that an engine would take and its model's dtype."""
    import torch

    from ..engine.devices import SUPPORTED, default_dtype, foreign_gpu

    table = Table(title="installed", title_justify="left", show_header=False)
    table.add_row("python", platform.python_version())
    for name in ("longlive-optimized", "torch", "triton", "transformers", "safetensors", "av"):
        table.add_row(name, _version(name))
    lacks = _triton_lacks()
    table.add_row(
        "for Triton on a GPU", f"{' and '.join(lacks)} missing" if lacks else "a C compiler, Python's headers"
    )
    foreign = foreign_gpu()
    if torch.cuda.is_available() and not foreign:
        device = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability()
        table.add_row("GPU", f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")
        table.add_row("CUDA, cuDNN of torch", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    else:
        device = torch.device("cpu")
        table.add_row("GPU", f"{foreign}, not supported" if foreign else "none that torch can use")
    results.print(table)
    if foreign:
        console.print(f"there is {foreign}, but {SUPPORTED}", style="yellow", soft_wrap=True)
    if lacks and device.type == "cuda":
        advice = f"Triton's kernels cannot start without {' and '.join(lacks)}: install them (Debian: gcc python3-dev)"
        console.print(advice, style="yellow", soft_wrap=True)
    return device, default_dtype("auto", device)


def _triton_lacks() -> list[str]:
    """What is not here of that with which Triton compiles, once, the few lines of C that launch a kernel."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return [what for what, there in (("a C compiler", compiler), ("Python's headers", headers)) if not there]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _operators(device: torch.device, dtype: torch.dtype) -> None:
    from ..kernels.bench.paths import paths

    kind = str(dtype).removeprefix("torch.")
    title = f"operators, 480x832, {kind} on {device.type}"
    note = (
        "causal_conv, causal_conv_int8, conv_pixels and norm_silu run where the VAE is a PackedCodec, "
        "quantize_values and ring_attention_fp8 in layers whose values are in 8 bits"
    )
    table = Table("operator", "runs on", "why not faster", title=title, caption=note, title_justify="left")
    table.caption_justify = "left"
    for path in paths(device, dtype):
        table.add_row(*path)
    results.print(table)


def _presets(device: torch.device, dtype: torch.dtype) -> None:
    from ..config import HEIGHT, PIXELS_PER_TOKEN, PRESETS, WIDTH
    from ..model.config import ModelConfig
    from ..model.precision import runs_in
    from ..vae.backends import path_of

    model, tokens = ModelConfig(), (HEIGHT // PIXELS_PER_TOKEN) * (WIDTH // PIXELS_PER_TOKEN)
    table = Table("preset", "transformer", "VAE", "why not faster", title="presets, 480x832", title_justify="left")
    for name, preset in PRESETS.items():
        precision = preset["precision"]
        layers = runs_in(precision, dtype, model.num_layers, model.head_dim, tokens)
        codec, vae_precision, why = path_of(device, dtype, in_8_bits=precision != "bf16")
        table.add_row(name, layers, f"{codec}, {vae_precision}", why)
    results.print(table)


def _speed(device: torch.device) -> None:
    if device.type != "cuda":
        results.print("--speed: there is nothing to estimate on a CPU")
        return
    from ..bench.estimate import PRESETS_ESTIMATED, frames_per_second, measure_rates

    rates, vae_int8 = measure_rates(device)
    table = Table(title="measured", title_justify="left", show_header=False)
    for name, value in rates._asdict().items():
        rate = f"{value / 1e9:.0f} GB/s" if name == "copy" else f"{value / 1e12:.0f} TFLOP/s"
        table.add_row(name.replace("_", " "), rate)
    results.print(table)
    for name in PRESETS_ESTIMATED:
        fps = frames_per_second(rates, name, vae_int8)
        results.print(f"{name}: about {fps:.0f} frames a second at 480x832, by these rates", soft_wrap=True)


def _check_model(directory: str, verify: bool, device: torch.device) -> None:
    from ..weights import files as weights
    from ..weights.load import check
    from ..weights.locate import locate

    try:
        files = locate(directory)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("model_path", "directory", 1)) from None
    for part, path in dataclasses.asdict(files).items():
        results.print(f"{part}: {path or 'none'}", soft_wrap=True)
    check(files, control=files.control is not None)
    if verify:
        for path in files.paths():
            results.print(f"{path}: {weights.verify(path)}", soft_wrap=True)
    _check_kept(files, verify)
    results.print(f"{directory} is complete and its parts fit together", style="green", soft_wrap=True)
    _memory(directory, device)


def _check_kept(files: ModelFiles, verify: bool) -> None:
    """Say whether the int8 weights that are kept beside the text encoder, if any, will be used."""
    from ..weights import CheckpointError
    from ..weights.text import check_kept

    try:
        path = check_kept(files, verify)
    except (CheckpointError, OSError) as error:
        text = f"{error}; it is not used, and replaced with --keep-text-int8"
        results.print(text, style="yellow", soft_wrap=True, highlight=False)
    else:
        if path:
            checked = "all checksums are right" if verify else "fits the text encoder"
            results.print(f"{path}: {checked}", soft_wrap=True)


def _memory(directory: str, device: torch.device) -> None:
    """What each preset would take here, and part by part the one that engines begin with."""
    from ..config import PRESETS, OptimizationConfig
    from ..engine.memory_plan import memory_plan
    from ..engine.memory_shares import gib

    plans = {name: memory_plan(directory, OptimizationConfig.preset(name), device) for name in PRESETS}  # pyright: ignore[reportArgumentType]
    plan = plans["balanced"]
    have = "" if plan.available is None else f", {gib(plan.available)} are there"
    table = Table("preset", "takes", "so that it fits", title=f"memory on {device.type}{have}", title_justify="left")
    for name, each in plans.items():
        short = "" if each.fits or each.available is None else f"; {gib(each.peak - each.available)} short"
        table.add_row(name, gib(each.peak) + short, "\n".join(each.costs))
    results.print(table)
    parts = Table("part", "GiB", title="of balanced", title_justify="left")
    for name, nbytes in plan.rows():
        parts.add_row(name, f"{nbytes / 2**30:.2f}")
    for name, nbytes in plan.host.items():
        parts.add_row(f"{name}, in host memory", f"{nbytes / 2**30:.2f}")
    parts.add_row("once video is given, also", f"{plan.video_input / 2**30:.2f}")
    results.print(parts)
