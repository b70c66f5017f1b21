"""How trainers name this model's modules, and the tensors that adapt one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Around a module's name: where it hung in the trainer's program, and what wrapped it there.
_PREFIXES = re.compile(r"(?:(?:base_model\.model|diffusion_model|pipe\.dit|transformer|model|module|dit|unet)\.)*")
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# VideoX-Fun writes two underscores, the others one.
_UNDERSCORED = re.compile(r"(?:lora|lycoris)_+(?:(?:unet|transformer|diffusion_model|dit|model)_+)*")

# diffusers' names of what the published checkpoint names otherwise. Its norm2 is the published norm3: the one norm
# of a layer's three that has weights.
_DIFFUSERS = {
    "self_attn": "attn1",
    "cross_attn": "attn2",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "modulation": "scale_shift_table",
}
_NATIVE = re.compile(rf"(?<![^.])(?:{'|'.join(map(re.escape, _DIFFUSERS))})(?![^.])")
# Projections that read one input and are trained as one, their rows one below the other, as by diffusers'
# fuse_qkv_projections.
_FUSED = {"self_attn": "qkv", "cross_attn": "kv"}
_FUSED_NAMES = "to_{}", "{}", "{}_proj"

# PEFT's adapter name, as in ".lora_A.NAME.weight"; not another tensor of the half, such as its bias or a scale of it.
_ADAPTER = r"(?:\.(?!bias$|scale|weight)[^.]+)?"
# What adapts a module, by what follows the module's name.
_PARTS = {
    "B bias": rf"(?:lora_B{_ADAPTER}|lora_up)\.bias",
    "A": rf"lora_A{_ADAPTER}(?:\.weight)?|lora_down\.weight|lora(?:_linear_layer)?\.down\.weight",
    "B": rf"lora_B{_ADAPTER}(?:\.weight)?|lora_up\.weight|lora(?:_linear_layer)?\.up\.weight",
    "core": r"lora_mid\.weight",
    "alpha": r"(?:lora_)?alpha",
    "rank": r"lora_rank",
    "magnitude": r"dora_scale|magnitude|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?",
    "difference": r"diff|w_norm",
    "bias difference": r"diff_b|b_norm",
    "modulation difference": r"diff_m",
    **{name: name for half in ("hada_w1", "hada_w2") for name in (f"{half}_a", f"{half}_b")},
    **{name: name for half in ("lokr_w1", "lokr_w2") for name in (half, f"{half}_a", f"{half}_b")},
    **{name: name for name in ("hada_t1", "hada_t2", "lokr_t2")},
}
_PART = {part: re.compile(pattern) for part, pattern in _PARTS.items()}
_PEFT_NAMED = re.compile(r"((?:hada|lokr)_[wt]\d(?:_[ab])?)\.[^.]+")

# What is recognised and refused.
_KINDS = {
    "an OFT": r"oft_|boft_",
    "a GLoRA": r"(?:a1|a2|b1|b2|bm)\.weight$",
    "an (IA)³": r"on_input$|ia3_l",
    "a VeRA": r"vera_lambda",
    "an AdaLoRA": r"lora_E|ranknum",
    "a T-LoRA": r"lambda_layer$|[pq]_layer\.weight$",
    "a LoRA of an embedding": r"lora_embedding_",
    "a patch that sets weights": r"(?:set|reshape)_weight$",
    "stored as integers or 8-bit floats with scales beside them": (
        r"(?:scale_weight|weight_scale|scale_input|input_scale|absmax|quant_map|SCB)$|quant_state"
    ),
}
_KIND = {kind: re.compile(rf"\.(?:{pattern})") for kind, pattern in _KINDS.items()}
WHOLE, UNKNOWN = "not changes of weights but whole ones", "of an unknown kind"


class Named(NamedTuple):
    """What a tensor of a LoRA file is: ``part`` of ``module``, which the file calls ``spelling``.

    module: may be one of ``Names.fused``.
    """

    module: str
    part: str
    spelling: str


class Names:
    """The modules of a generator with the checkpoint's ``keys``, in every spelling.

    fused: the modules that one of several projections stands for, in the order of their rows, by a name of its own.
    """

    def __init__(self, keys: Iterable[str]):
        keys = set(keys)
        owners = {key.rpartition(".")[0] for key in keys} | {key for key in keys if key.endswith("modulation")}
        self._rooms = {owner for owner in owners if owner not in keys and f"{owner}.weight" not in keys}
        self._modules = {spelling: module for module in sorted(owners) for spelling in spellings(module)}
        self.fused: dict[str, tuple[str, ...]] = {}
        for room in (owner.removesuffix(".q") for owner in owners if owner.endswith("_attn.q")):
            self._add_fused(room, _FUSED[room.rpartition(".")[2]])
        self._underscored = {spelling.replace(".", "_"): module for spelling, module in self._modules.items()}

    def find(self, key: str) -> Named | None:
        """What the tensor ``key`` of a file is; None if it is for no module of this generator."""
        bare = _WRAPPERS.sub("", key)
        prefix = _UNDERSCORED.match(bare)
        modules = self._underscored if prefix else self._modules
        name = bare[prefix.end() :] if prefix else _PREFIXES.sub("", bare, count=1)
        ends = [match.start() for match in re.finditer(r"\.|$", name)]
        for end in reversed(ends):
            spelling, part = name[:end], name[end + 1 :]
            if spelling in modules:
                named = Named(modules[spelling], _part(part), spelling)
                # A layer has nothing to adapt but its modulation; what else is in it may be another model's.
                return named if named.module not in self._rooms or named.part == "modulation difference" else None
        return None

    def _add_fused(self, room: str, letters: str) -> None:
        module = f"{room}.{letters}"
        self.fused[module] = tuple(f"{room}.{letter}" for letter in letters)
        for spelling in spellings(room):
            self._modules |= {f"{spelling}.{name.format(letters)}": module for name in _FUSED_NAMES}


def spellings(module: str) -> list[str]:
    """A module's names in files, without what trainers write before it: the checkpoint's and diffusers'."""
    diffusers = _NATIVE.sub(lambda match: _DIFFUSERS[match[0]], module)
    return list(dict.fromkeys((module, diffusers, diffusers.removesuffix(".0") if "to_out" in diffusers else module)))


def refused(key: str) -> str | None:
    """The kind of adapter that a file's tensor belongs to, if it is one that cannot be merged."""
    return next((kind for kind, pattern in _KIND.items() if pattern.search(key)), None)


def _part(text: str) -> str:
    bare = _PEFT_NAMED.sub(r"\1", text)
    if part := next((part for part, pattern in _PART.items() if pattern.fullmatch(bare)), None):
        return part
    return WHOLE if text in ("weight", "bias", "") or "modules_to_save" in text else UNKNOWN
