"""A small umT5 of widths that int8 blocks take, its checkpoint, and what stands in for a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from longlive_optimized.kernels.int8_block_linear import quantize_blocks
from longlive_optimized.text.encoder import Dimensions, checkpoint_shapes, is_linear, may_be_narrow
from longlive_optimized.text.linear import Blocks


class Ids:
    """Stands in for a tokenizer where a test brings its own ids."""

    text_len, vocabulary = 40, 96

    def __call__(self, prompt: str) -> list[int]:
        return [ord(letter) % self.vocabulary for letter in prompt] + [1]


def weights(layers: int = 3, width: int = 64, inner: int = 96, ffn: int = 160) -> dict[str, torch.Tensor]:
    """Random float32 tensors of bfloat16's numbers, such that scores, which nothing scales, have about unit size."""
    dimensions = Dimensions(vocab_size=96, d_model=width, d_kv=inner // 4, d_ff=ffn, num_heads=4, num_layers=layers)
    generator = torch.Generator().manual_seed(layers)
    made = {}
    for key, shape in checkpoint_shapes(dimensions).items():
        noise = torch.randn(shape, generator=generator)
        scaled = 1 + 0.1 * noise if "norm" in key else noise / shape[-1] ** 0.5 if is_linear(key) else noise
        scaled *= (inner / 4) ** -0.25 if ".attn.q." in key or ".attn.k." in key else 1
        made[key] = scaled.bfloat16().float()
    return made


def narrowed(tensors: dict[str, torch.Tensor], precision: str, dtype: torch.dtype) -> dict[str, torch.Tensor | Blocks]:
    """What an encoder of ``precision`` that computes in ``dtype`` holds of ``tensors``."""
    made: dict[str, torch.Tensor | Blocks] = {}
    for key, t in tensors.items():
        if precision == "int8" and may_be_narrow(key):
            made[key] = Blocks(*quantize_blocks(t))
        elif precision == "fp8" and is_linear(key):
            made[key] = t.to(torch.float8_e4m3fn)
        else:
            made[key] = t.to(torch.bfloat16 if precision == "bf16" and may_be_narrow(key) else dtype)
    return made


def widened(stored: dict[str, torch.Tensor | Blocks], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The numbers that ``stored`` stands for, each rounded once to ``dtype``, worked out one by one."""

    def numbers(one: torch.Tensor | Blocks) -> torch.Tensor:
        if not isinstance(one, Blocks):
            return one.to(dtype)
        return (one.values.double() * one.scale.T.double().repeat_interleave(32, dim=1)).to(dtype)

    return {key: numbers(one) for key, one in stored.items()}


def write_fp8(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As scope has it: the linears in float8, the rest in bfloat16."""
    types = {True: torch.float8_e4m3fn, False: torch.bfloat16}
    save_file({key: t.to(types[is_linear(key)]) for key, t in tensors.items()}, path)
