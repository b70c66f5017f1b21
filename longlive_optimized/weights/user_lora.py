"""A user's LoRA for Wan2.1-T2V-1.3B, in the forms that trainers write: LoRA, DoRA, LoHa, LoKr, plain differences.

Names are the published checkpoint's or diffusers', with dots or underscores, after any usual prefix (lora_names.py).
What a tensor adds is multiplied with alpha / rank (lora_alpha.py) and with the user's scale (terms.py).
"""

from __future__ import annotations

import functools
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor

from . import CheckpointError
from .files import check_tensors, some, tensors_in
from .lora_alpha import Training, read_training
from .lora_names import UNKNOWN, WHOLE, Names, refused, spellings
from .lora_parts import as_matrices, taken_apart
from .terms import Adapter, Difference, Dora, Factor, Hadamard, Kronecker, LowRank, Term

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# A weight of 2^24 elements of this size can still be summed in float32, which is how loading looks for infinity.
_LIMIT = 1e30
_UNREADABLE = (torch.float4_e2m1fn_x2, torch.complex32, torch.complex64, torch.complex128)

_OF_A_PAIR = ("A", "B", "core", "B bias", "magnitude")

Shapes = Mapping[str, Sequence[int]]
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
        if path.is_dir():
            peft = " (PEFT's is adapter_model.safetensors)" if (path / "adapter_config.json").exists() else ""
            raise ValueError(f"a LoRA's path must name a file, and {path} is a folder: take the file in it{peft}")
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


@dataclass(frozen=True)
class _Module:
    """What a file holds for one module of the model."""

    name: str
    spelling: str  # the file's name of it
    parts: dict[str, Tensor]


def open_user_loras(loras: Iterable[UserLora], generator: Shapes) -> list[Adapter]:
    """What each of ``loras`` adds to the generator with these shapes: mapped, and read once for NaN and infinity.

    Modules that the model lacks are passed over, as scope does, and those of which A or B is missing; the log says
    which, once. Raises CheckpointError,
    naming the file, for one that has nothing for this model, that fits another model's shapes, that is damaged, or
    of a kind that is not supported, which the message names; FileNotFoundError; TypeError.
    """
    names = Names(generator)
    return [_open(lora, generator, names) for lora in loras]


def _open(lora: UserLora, shapes: Shapes, names: Names) -> Adapter:
    if not isinstance(lora, UserLora):
        raise TypeError(f"loras must hold UserLora objects, got {type(lora).__name__}")
    tensors = tensors_in(lora.path, ("generator_lora",))
    modules, ignored = sort(lora.path, tensors, names)
    modules, halves = _without_halves(modules)
    if not modules:
        wanted = "modules (blocks.0.self_attn.q, or diffusers' blocks.0.attn1.to_q)"
        found = f"lacks {some(halves)}" if halves else f"holds {some(tensors)}"
        raise CheckpointError(f"{lora.path} holds no LoRA of this model's {wanted}: it {found}")
    adapter = adapt(lora.path, modules, shapes, read_training(lora.path, tensors), lora.scale)
    check_sizes(lora, adapter)
    if ignored:
        _warn_once(f"{lora.path}: {len(ignored)} tensors are for no module of this model, and ignored: {some(ignored)}")
    if halves:
        missing = f"one half of the LoRA of {len(halves)} modules is missing, and the other ignored"
        _warn_once(f"{lora.path}: {missing}: {some(halves)}")
    return adapter


def check_sizes(lora: UserLora, adapter: Adapter) -> None:
    """Raise CheckpointError, naming the file, for a change that a float32 weight could not bear."""
    if bad := [key for key, terms in adapter.items() if not sum(abs(t.scale) + t.bound() for t in terms) < _LIMIT]:
        raise CheckpointError(f"{lora.path} at scale {lora.scale:g} adds NaN, infinity or about that to {some(bad)}")


def warn_again() -> None:
    """Say once more what the log was told of a file."""
    _warn_once.cache_clear()


def _without_halves(modules: Sequence[_Module]) -> tuple[list[_Module], list[str]]:
    """``modules`` without LoRAs of which A or B is missing, and the missing tensors' names."""
    whole, missing = [], []
    for module in modules:
        if ("A" in module.parts) == ("B" in module.parts):
            whole.append(module)
            continue
        missing.append(f"{module.name}.{'B' if 'A' in module.parts else 'A'}")
        rest = {part: tensor for part, tensor in module.parts.items() if part not in _OF_A_PAIR}
        if rest.keys() - {"alpha", "rank"}:
            whole.append(_Module(module.name, module.spelling, rest))
    return whole, missing


def sort(path: Path, tensors: Mapping[str, Tensor], names: Names) -> tuple[list[_Module], list[str]]:
    """The tensors of each module that the model has, and the names of all other tensors. Nothing is written to."""
    kinds: dict[str, list[str]] = defaultdict(list)
    modules: dict[str, _Module] = {}
    ignored = []
    for key, tensor in tensors.items():
        named = names.find(key)
        if kind := refused(key):
            kinds[f"is {kind}"].append(key)
        elif named is None:
            ignored.append(key)
        elif named.part in (WHOLE, UNKNOWN):
            kinds[f"holds tensors that are {named.part}"].append(key)
        elif tensor.dtype in _UNREADABLE:
            kinds[f"holds tensors of {tensor.dtype}"].append(key)
        else:
            module = modules.setdefault(named.module, _Module(named.module, named.spelling, {}))
            if named.part in module.parts:
                raise CheckpointError(f"{path} holds {named.part} of {named.module} twice, one of them as {key}")
            # Whole numbers and vectors of one element occur.
            module.parts[named.part] = tensor.float().squeeze() if named.part in ("alpha", "rank") else tensor
    if kinds:
        kind, keys = next(iter(kinds.items()))
        raise CheckpointError(f"{path} {kind}, which is not supported: {some(keys)}")
    for fused in [module for module in modules.values() if module.name in names.fused]:
        for module in _apart(path, modules.pop(fused.name), names.fused[fused.name]):
            if modules.setdefault(module.name, module) is not module:
                raise CheckpointError(f"{path} holds {module.name} twice, one of them in {fused.spelling}")
    # An alpha alone changes nothing.
    return [module for module in modules.values() if module.parts.keys() - {"alpha", "rank"}], ignored


def _apart(path: Path, fused: _Module, into: Sequence[str]) -> list[_Module]:
    try:
        parts = taken_apart(fused.parts, len(into))
    except ValueError as error:
        text = f"{path} adapts {fused.spelling}, several projections as one, which is not supported here: {error}"
        raise CheckpointError(text) from None
    return [_Module(name, fused.spelling, own) for name, own in zip(into, parts, strict=True)]


def adapt(path: Path, modules: Sequence[_Module], shapes: Shapes, training: Training, scale: float) -> Adapter:
    """What ``modules`` add at ``scale`` to the weights with these ``shapes``; CheckpointError for what does not fit."""
    found, expected = {}, {}
    modules = [_Module(m.name, m.spelling, _matrices(path, m, shapes)) for m in modules]
    for module in modules:
        found |= {f"{module.name}.{part}": tensor for part, tensor in module.parts.items()}
        expected |= {f"{module.name}.{part}": shape for part, shape in _expected(module, shapes).items()}
    check_tensors(path, found, expected, "this model")
    if training.dora and not any("magnitude" in module.parts for module in modules):
        raise CheckpointError(f"{path} was trained as a DoRA, but its magnitudes are missing")
    adapter: dict[str, list[Term]] = defaultdict(list)
    for module in modules:
        for key, term in _terms(path, module, shapes, training, scale):
            adapter[key].append(term)
    return adapter


def _terms(path: Path, module: _Module, shapes: Shapes, training: Training, scale: float) -> Iterable[tuple[str, Term]]:
    parts, weight = module.parts, _weight(module.name, shapes)
    own = parts["alpha"].item() if "alpha" in parts else None
    strength = scale * training.strength([module.spelling, *spellings(module.name)], _rank(parts), own)
    if change := _change(parts, strength):
        magnitude = parts.get("magnitude")
        yield (
            weight,
            change if magnitude is None else Dora(change, _broadcast(path, module.name, magnitude, shapes[weight])),
        )
    if "difference" in parts:
        yield weight, Difference(parts["difference"], scale)
    if "B bias" in parts:
        yield f"{module.name}.bias", Difference(parts["B bias"], strength)
    if "bias difference" in parts:
        yield f"{module.name}.bias", Difference(parts["bias difference"], scale)
    if "modulation difference" in parts:
        yield f"{module.name}.modulation", Difference(parts["modulation difference"], scale)


def _change(parts: Mapping[str, Tensor], strength: float) -> Term | None:
    if "A" in parts:
        return LowRank(parts["A"], parts["B"], strength)
    if "hada_w1_a" in parts:
        return Hadamard(_factor(parts, "hada_w1"), _factor(parts, "hada_w2"), strength)
    if _has(parts, "lokr"):
        return Kronecker(_factor(parts, "lokr_w1"), _factor(parts, "lokr_w2"), strength)
    return None


def _factor(parts: Mapping[str, Tensor], name: str) -> Factor:
    return parts[name] if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])


def _has(parts: Mapping[str, Tensor], kind: str) -> bool:
    return any(part.startswith(kind) for part in parts)


def _rank(parts: Mapping[str, Tensor]) -> int | None:
    """None for a LoKr of two whole matrices."""
    return next((len(parts[name]) for name in ("A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts), None)


def _weight(module: str, shapes: Shapes) -> str:
    """The key of a module's weight; a modulation is one by itself."""
    return module if module in shapes else f"{module}.weight"


def _matrices(path: Path, module: _Module, shapes: Shapes) -> dict[str, Tensor]:
    try:
        return as_matrices(module.parts, shapes.get(_weight(module.name, shapes), ()))
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this model: {module.name}: {error}") from None


def _expected(module: _Module, shapes: Shapes) -> dict[str, Sequence[int]]:
    """The shape that each part of a module must have; what is not named here must not be there."""
    parts, weight = module.parts, shapes.get(_weight(module.name, shapes), ())
    expected: dict[str, Sequence[int]] = {part: () for part in ("alpha", "rank") if part in parts}
    if len(weight) > 1 and not module.name.endswith("modulation"):
        expected |= _factors(parts, weight[0], _product(weight[1:]))
        if "magnitude" in parts:
            expected["magnitude"] = parts["magnitude"].shape  # looked at later: it may lie in either direction
    for part, key in (
        ("difference", _weight(module.name, shapes)),
        ("bias difference", f"{module.name}.bias"),
        ("B bias", f"{module.name}.bias"),
        ("modulation difference", f"{module.name}.modulation"),
    ):
        if part in parts and key in shapes:
            expected[part] = shapes[key]
    return expected


def _factors(parts: Mapping[str, Tensor], rows: int, columns: int) -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {}
    if _has(parts, "hada"):
        for half in ("hada_w1", "hada_w2"):
            rank = _size(parts, f"{half}_b", 0)
            shapes |= {f"{half}_a": (rows, rank), f"{half}_b": (rank, columns)}
    elif _has(parts, "lokr"):
        outer = [_size(parts, "lokr_w1", 0, "lokr_w1_a"), _size(parts, "lokr_w1", 1, "lokr_w1_b")]
        # A factor that does not divide the weight's side is told apart by what the other would have to be.
        sides = {"lokr_w1": tuple(outer), "lokr_w2": (rows // outer[0], columns // outer[1])}
        if rows % outer[0] or columns % outer[1]:
            sides["lokr_w1"] = (rows, columns)
        for half, (high, wide) in sides.items():
            if half in parts:
                shapes[half] = (high, wide)
            else:
                rank = _size(parts, f"{half}_b", 0)
                shapes |= {f"{half}_a": (high, rank), f"{half}_b": (rank, wide)}
    elif parts.keys() & {"A", "B", "B bias", "magnitude"}:
        rank = _size(parts, "A", 0)
        shapes |= {"A": (rank, columns), "B": (rows, rank)}
    return shapes


def _size(parts: Mapping[str, Tensor], part: str, dim: int, otherwise: str = "") -> int:
    tensor = parts.get(part, parts.get(otherwise))
    return 1 if tensor is None or tensor.ndim <= dim else max(1, tensor.shape[dim])


def _product(sizes: Sequence[int]) -> int:
    return functools.reduce(lambda product, size: product * size, sizes, 1)


def _broadcast(path: Path, module: str, magnitude: Tensor, weight: Sequence[int]) -> Tensor:
    """A DoRA's norms, of rows (PEFT, LyCORIS) or of columns (LyCORIS without wd_on_output, OneTrainer)."""
    rest = (1,) * (len(weight) - 2)
    rows, columns = (weight[0], 1, *rest), (1, weight[1], *rest)
    # PEFT writes a convolution's with the rows in the second place.
    if tuple(magnitude.shape) in ((weight[0],), rows) or (rest and tuple(magnitude.shape) == (1, weight[0], *rest)):
        return magnitude.reshape(rows)
    if tuple(magnitude.shape) == columns:
        return magnitude
    text = f"{module}.magnitude is {list(magnitude.shape)}, expected [{weight[0]}] or {list(columns)}"
    raise CheckpointError(f"{path} does not fit this model: {text}")


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)
