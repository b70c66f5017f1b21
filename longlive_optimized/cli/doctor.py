"""``doctor``: what is here, who computes each operator and why, and whether a model folder is complete."""

from __future__ import annotations

import dataclasses
import pkgutil
import platform
from importlib import import_module, metadata
from typing import Annotated

import typer
from rich.table import Table

from .loading import results


def doctor(
    directory: Annotated[str | None, typer.Argument(help="A model folder to check, or 'tiny'.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read every file of DIRECTORY and compare it with its checksums.")
    ] = False,
) -> None:
    """Say what is installed, what the operators run on, and whether DIRECTORY can be loaded."""
    if verify and directory is None:
        raise ValueError("--verify needs a model folder: doctor DIRECTORY --verify")
    _versions()
    _operators()
    if directory is not None:
        _check_model(directory, verify)


def _versions() -> None:
    import torch

    table = Table(title="installed", title_justify="left", show_header=False)
    table.add_row("python", platform.python_version())
    for name in ("longlive-optimized", "torch", "triton", "transformers", "safetensors", "av"):
        table.add_row(name, _version(name))
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        table.add_row("GPU", f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")
        table.add_row("CUDA, cuDNN of torch", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    else:
        table.add_row("GPU", "none that torch can use")
    results.print(table)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _operators() -> None:
    from .. import kernels
    from ..kernels import native
    from ..kernels.registry import OPS

    for module in pkgutil.iter_modules(kernels.__path__):
        if not module.ispkg:
            import_module(f"{kernels.__name__}.{module.name}")
    table = Table("operator", "here", "why", title="operators", title_justify="left")
    for name, op in sorted(OPS.items()):
        table.add_row(name, *_backend(op.impls, native.load()))
    results.print(table)


def _backend(impls: dict, library: bool) -> tuple[str, str]:
    import torch

    from ..kernels.registry import ORDER

    if not torch.cuda.is_available():
        return "reference", "no CUDA device"
    hopper = torch.cuda.get_device_capability() == (9, 0)
    if "cuda" in impls and hopper and library:
        return "cuda", "Hopper, and the library is built"
    why = "" if "cuda" not in impls else "the library is for Hopper" if library else "built without nvcc"
    name = next(name for name in ORDER[1:] if name in impls)
    return name, why or ("the only implementation" if name == "reference" else "no faster implementation here")


def _check_model(directory: str, verify: bool) -> None:
    from ..weights import files as weights
    from ..weights.load import check
    from ..weights.locate import locate

    try:
        files = locate(directory)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("model_path", "directory", 1)) from None
    for part, path in dataclasses.asdict(files).items():
        results.print(f"{part}: {path or 'none'}", soft_wrap=True)
    check(files)
    if verify:
        for path in files.paths():
            results.print(f"{path}: {weights.verify(path)}", soft_wrap=True)
    results.print(f"{directory} is complete and its parts fit together", style="green", soft_wrap=True)
