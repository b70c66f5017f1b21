"""How strongly a LoRA was trained to act, from wherever its trainer wrote that.

In this order: a module's own ``alpha``; PEFT's ``adapter_config.json`` beside an ``adapter_model`` file; PEFT's fields
in the header of a safetensors file (diffusers' ``lora_adapter_metadata``, or as plain keys); kohya's
``ss_network_alpha`` there, unless the file has PEFT's names, for converters fold it into the weights and keep the
header. Without any the strength is 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..json_file import json_object, read_bounded
from . import CheckpointError

_COMPONENTS = ("transformer", "", "diffusion_model", "dit", "unet", "model")  # whose fields a header's are, best first
_ALPHAS, _RANKS = ("lora_alpha", "alpha", "network_alpha"), ("r", "rank", "lora_rank", "network_dim")
_FIELDS = {*_ALPHAS, *_RANKS, "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "peft_type"}
_FIELDS |= {"init_lora_weights"}
_MERGEABLE = ("LORA", "LOHA", "LOKR")
# These initialisations take the adapter's first state out of the base weights, which are then not the model's.
_MOVES_THE_BASE = re.compile("pissa|olora|loftq|corda|lora_ga")
_UNSAID = (None, "None", "null", "")
_LARGEST = 1 << 22  # bytes of an adapter_config.json


@dataclass(frozen=True)
class Training:
    """What a file or a file beside it says of all its modules."""

    alpha: float | None = None
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # of single modules, by their names or these names' ends
    ranks: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    lycoris_stabilised: bool = False
    dora: bool = False

    def strength(self, spellings: Collection[str], rank: int | None, own: float | None) -> float:
        """What a module's change is multiplied with: alpha / rank, or alpha / sqrt(rank).

        rank: None for a LoKr of two whole matrices, of which LyCORIS writes an alpha that it does not use.
        own: the module's own alpha.
        """
        if own is not None:
            if rank is not None:
                return own / rank
            # LyCORIS sets alpha to the rank, and with rs_lora writes rank * sqrt(rank) and multiplies with sqrt(rank).
            return math.cbrt(own) if self.lycoris_stabilised else 1.0
        alpha = _of(self.alphas, spellings, self.alpha)
        divisor = _of(self.ranks, spellings, self.rank) if rank is None else rank
        if alpha is None or divisor is None:
            return 1.0
        return alpha / (math.sqrt(divisor) if self.rank_stabilised else divisor)


def read_training(path: Path, keys: Iterable[str]) -> Training:
    """What is known of the training of the file with the tensors ``keys``.

    Raises CheckpointError, naming file and field, for what is no number, and for adapters that need more than their
    tensors.
    """
    config = path.with_name("adapter_config.json")
    if path.stem == "adapter_model" and config.is_file():
        try:
            raw = json_object(read_bounded(config, _LARGEST), config)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        if not any(name in raw for name in _ALPHAS):
            raise CheckpointError(f"{config} must hold lora_alpha, a number")
        return _training(raw, str(config))
    header = _header(path) if path.suffix == ".safetensors" else {}
    where = f"the header of {path}"
    fields = {**header, **_json(header.get("lora_adapter_metadata", "{}"), f"{where}: lora_adapter_metadata")}
    components: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        component, _, name = key.rpartition(".")
        if name in _FIELDS:
            components.setdefault(component, {})[name] = value
    found = next((components[name] for name in _COMPONENTS if name in components), None)
    if found:
        return _training(found, where)
    return _kohya(header, where, folded=any(".lora_A" in key for key in keys))


def _training(raw: Mapping[str, Any], where: str) -> Training:
    """From the fields of a PEFT config; in a header some are texts."""
    kind, start = raw.get("peft_type"), raw.get("init_lora_weights")
    if kind is not None and kind not in _MERGEABLE:
        raise CheckpointError(
            f"{where} says peft_type {kind!r:.40}, which is not supported: it must be LORA, LOHA or LOKR"
        )
    if isinstance(start, str) and _MOVES_THE_BASE.search(start.lower()):
        raise CheckpointError(
            f"{where} says init_lora_weights {start!r:.40}, which changes the base weights as well: save it as a plain "
            "LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )
    rank, ranks = _first(raw, _RANKS, where), _pattern(raw, "rank_pattern", where)
    if any(number < 0 for number in (rank or 0, *ranks.values())):
        raise CheckpointError(f"{where} says a negative rank")
    return Training(
        _first(raw, _ALPHAS, where),
        rank,
        _pattern(raw, "alpha_pattern", where),
        ranks,
        rank_stabilised=_flag(raw, "use_rslora"),
        dora=_flag(raw, "use_dora"),
    )


def _kohya(header: Mapping[str, str], where: str, folded: bool) -> Training:
    alpha = _first(header, ("ss_network_alpha",), where)
    # Only LyCORIS' module for kohya's trainer takes rs_lora.
    arguments = header.get("ss_network_args", "") if header.get("ss_network_module") == "lycoris.kohya" else ""
    stabilised = re.search(r'"rs_lora":\s*"?true', arguments, re.IGNORECASE) is not None
    return Training(None if folded else alpha, lycoris_stabilised=stabilised)


def _first(raw: Mapping[str, Any], names: Iterable[str], where: str) -> float | None:
    name = next((name for name in names if raw.get(name) not in _UNSAID), None)
    return None if name is None else _number(raw[name], f"{where}: {name}")


def _pattern(raw: Mapping[str, Any], name: str, where: str) -> dict[str, float]:
    value = raw.get(name) or {}
    pattern = _json(value, f"{where}: {name}") if isinstance(value, str) else value
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{where}: {name} must be an object, got {value!r:.40}")
    numbers = {key.removeprefix("^").removesuffix("$"): _number(n, f"{where}: {name}") for key, n in pattern.items()}
    if expressions := [key for key in numbers if re.search(r"[^\w.-]", key)]:
        raise CheckpointError(
            f"{where}: {name} names modules by an expression, which is not supported: {expressions[0]!r:.80}"
        )
    return numbers


def _of(pattern: Mapping[str, float], spellings: Collection[str], default: float | None) -> float | None:
    """The first number whose key is a spelling or, as PEFT has it, the last components of one."""
    matching = (n for key, n in pattern.items() for name in spellings if f".{name}".endswith(f".{key}"))
    return next(matching, default)


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise CheckpointError(f"{where} must be a number other than 0, got {value!r:.40}")
    return number


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    return str(raw.get(name)).lower() == "true"


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        return json_object(text, where)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
