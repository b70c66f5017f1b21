"""A user's LoRA for Wan2.1-T2V-1.3B, in the forms that trainers write.

A file names a module as the generator's checkpoint does, after prefixes such as ``diffusion_model.``, or with
underscores after ``lora_unet_``. For each there is ``lora_A`` [rank, in] and ``lora_B`` [out, rank], also called
``lora_down`` and ``lora_up``, and perhaps ``alpha``. ``(alpha / rank) B A`` is added to the weight; without alpha, B A.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor

from . import CheckpointError
from .files import check_tensors, some, tensors_in
from .lora import Adapter, LowRank

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_PREFIXES = re.compile(r"(?:(?:base_model\.model|diffusion_model|pipe\.dit|transformer|model)\.)*")
_UNDERSCORED = re.compile("lora_unet_+")  # VideoX-Fun writes two underscores, the others one
_PARTS = {
    ".lora_A.weight": "A",
    ".lora_A.default.weight": "A",  # peft's own name inside a model, which DiffSynth saves
    ".lora_down.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.default.weight": "B",
    ".lora_up.weight": "B",
    ".alpha": "alpha",
}
# A weight of 2^24 elements of this size can still be summed in float32, which is how loading looks for infinity.
_LIMIT = 1e30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UserLora:
    """A LoRA file and how strongly it acts: 1 as it was trained, 0 as if it were not there; any sign.

    Raises TypeError, ValueError and FileNotFoundError, saying which of the two is wrong.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise TypeError(f"a LoRA's path must name a file, got {type(self.path).__name__}")
        path = Path(self.path).expanduser().absolute()
        if path.suffix not in SUFFIXES:
            raise ValueError(f"a LoRA's path must end in one of {', '.join(SUFFIXES)}, got {self.path}")
        if not path.is_file():
            raise FileNotFoundError(f"a LoRA's path must name a file: there is none at {path}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, Real):
            raise TypeError(f"a LoRA's scale must be a number, got {self.scale!r}")
        if not abs(self.scale) < _LIMIT:
            raise ValueError(f"a LoRA's scale must be a finite number, got {self.scale!r}")
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "scale", float(self.scale))


def open_user_loras(loras: Iterable[UserLora], generator: Mapping[str, Sequence[int]]) -> list[Adapter]:
    """What each of ``loras`` adds to the generator with these shapes: mapped, and read once for NaN and infinity.

    Modules that the model lacks and tensors of other kinds (``.diff``, biases) are passed over, as scope does; the log
    says which, once. Raises CheckpointError, naming the file, for one that has nothing for this model, that fits
    another model's shapes, that is damaged, or that needs more than a sum; FileNotFoundError; TypeError.
    """
    matrices = {key: shape for key, shape in generator.items() if key.endswith(".weight") and len(shape) == 2}
    linears = {key.removesuffix(".weight"): shape for key, shape in matrices.items()}
    return [_open(lora, linears) for lora in loras]


def _open(lora: UserLora, linears: Mapping[str, Sequence[int]]) -> Adapter:
    if not isinstance(lora, UserLora):
        raise TypeError(f"loras must hold UserLora objects, got {type(lora).__name__}")
    tensors = tensors_in(lora.path, ("generator_lora",))
    if dora := [key for key in tensors if "dora_scale" in key or "magnitude_vector" in key]:
        raise CheckpointError(f"{lora.path} is a DoRA, which is more than a sum and not supported: {some(dora)}")
    modules, ignored = _sort(lora.path, tensors, linears)
    if not modules:
        wanted = f"modules such as {next(iter(linears))}"
        raise CheckpointError(f"{lora.path} holds no LoRA of this model's {wanted}: it holds {some(tensors)}")
    _check_shapes(lora.path, modules, linears)
    config = _peft_config(lora.path)
    adapter = {
        f"{module}.weight": LowRank(parts["A"], parts["B"], lora.scale * _strength(parts, config))
        for module, parts in modules.items()
    }
    if bad := [key for key, term in adapter.items() if not _bound(term) < _LIMIT]:
        raise CheckpointError(f"{lora.path} at scale {lora.scale:g} adds NaN, infinity or about that to {some(bad)}")
    if ignored:
        _warn_once(f"{lora.path}: {len(ignored)} tensors are for no linear of this model, and ignored: {some(ignored)}")
    return adapter


def _sort(
    path: Path, tensors: Mapping[str, Tensor], linears: Mapping[str, Sequence[int]]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """``A``, ``B`` and ``alpha`` of each module that is one of ``linears``; the names of all other tensors."""
    underscored = {module.replace(".", "_"): module for module in linears}
    modules, ignored = defaultdict(dict), []
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _PARTS if key.endswith(suffix)), "")
        name = key.removesuffix(suffix)
        prefix = _UNDERSCORED.match(name)
        module = underscored.get(name[prefix.end() :]) if prefix else _PREFIXES.sub("", name, count=1)
        if not suffix or module not in linears:
            ignored.append(key)
            continue
        part = _PARTS[suffix]
        if part in modules[module]:
            raise CheckpointError(f"{path} holds {part} of {module} twice, one of them as {key}")
        # Whole numbers and vectors of one element occur.
        modules[module][part] = tensor.float().squeeze() if part == "alpha" else tensor
    # LoHa and LoKr name their tensors otherwise: these are ignored, and an alpha without A and B is theirs.
    return {module: parts for module, parts in modules.items() if parts.keys() != {"alpha"}}, ignored


def _check_shapes(
    path: Path, modules: Mapping[str, Mapping[str, Tensor]], linears: Mapping[str, Sequence[int]]
) -> None:
    tensors, expected = {}, {}
    for module, parts in modules.items():
        rows, columns = linears[module]
        rank = max([1, *parts["A"].shape[:1]]) if "A" in parts else 1
        shapes = {"A": (rank, columns), "B": (rows, rank)} | ({"alpha": ()} if "alpha" in parts else {})
        expected |= {f"{module}.{part}": shape for part, shape in shapes.items()}
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    check_tensors(path, tensors, expected, "this model")


def _strength(parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    rank = len(parts["A"])
    if "alpha" in parts:
        return parts["alpha"].item() / rank
    if config:
        return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return 1.0


def _peft_config(path: Path) -> dict[str, Any]:
    """What peft wrote beside an ``adapter_model`` file, whose alpha is nowhere else; empty for any other file."""
    file = path.with_name("adapter_config.json")
    if path.stem != "adapter_model" or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("lora_alpha"), int | float):
        raise CheckpointError(f"{file} must hold lora_alpha, a number")
    if config.get("alpha_pattern"):
        raise CheckpointError(f"{file} has an alpha_pattern, which is not supported")
    return config


def _bound(term: LowRank) -> float:
    """No element of ``scale B A`` is larger; NaN or infinity where A or B has one."""
    a, b = (half.float().abs().max().item() for half in (term.a, term.b))
    return abs(term.scale) * len(term.a) * a * b


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)
