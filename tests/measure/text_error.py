"""What narrow weights cost an embedding: relative L2 and cosine against float32, as a Markdown table.

python tests/measure/text_error.py                                  # a moderate umT5, on the CPU, in seconds
python tests/measure/text_error.py --full --device cuda             # umT5-XXL, drawn on the GPU: 20 GB there, no file

Weights are random, of the distributions that make-checkpoint draws: the table ranks precisions, it does not say what a
trained encoder loses. Each row is the mean of three prompts of random ids; ``ms`` is the time of the longest, the best
of three.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import UMT5Config

from longlive_optimized.kernels.int8_block_linear import quantize_blocks
from longlive_optimized.text.encoder import TextEncoder, checkpoint_shapes, is_linear, may_be_narrow
from longlive_optimized.text.linear import Blocks
from longlive_optimized.weights.random_checkpoint import _text_rule

Stored = dict[str, Tensor | Blocks]
_PIECE = 1 << 24  # numbers that are drawn at a time: bounds what is in float32


class _Ids:
    """No prompt is tokenized here."""

    text_len = 512


def drawn(config: UMT5Config, device: torch.device) -> dict[str, Tensor]:
    """A checkpoint's tensors in bfloat16; each key has a stream of its own."""
    made = {}
    for key, shape in checkpoint_shapes(config).items():
        rule, source = _text_rule(key, shape), torch.Generator(device).manual_seed(zlib.crc32(key.encode()))
        made[key] = torch.empty(shape, dtype=torch.bfloat16, device=device)
        for part in made[key].view(-1).split(_PIECE):
            numbers = torch.randn(part.shape, generator=source, device=device)
            part.copy_(numbers.mul_(rule.std).add_(rule.mean))
    return made


def narrowed(tensors: dict[str, Tensor], may: Callable[[str], bool], narrow: Callable, dtype: torch.dtype) -> Stored:
    return {key: narrow(t) if may(key) else t if may_be_narrow(key) else t.to(dtype) for key, t in tensors.items()}


def in_blocks(t: Tensor) -> Blocks:
    """A matrix in int8, a part of its rows at a time."""
    parts = [quantize_blocks(part) for part in t.split(max(1, _PIECE // t.shape[1]))]
    return Blocks(torch.cat([values for values, _ in parts]), torch.cat([scale for _, scale in parts], 1))


def measure(stored: Stored, dtype: torch.dtype, prompts: list[Tensor]) -> tuple[list[Tensor], float]:
    """Embeddings, and milliseconds of the last prompt."""
    encoder = TextEncoder(stored, _Ids(), dtype)  # pyright: ignore[reportArgumentType]
    made, times = [encoder.encode_ids(ids) for ids in prompts], []
    for _ in range(3):
        started = time.perf_counter()
        encoder.encode_ids(prompts[-1]).sum().item()
        times.append(1e3 * (time.perf_counter() - started))
    return made, min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="umT5-XXL")
    options = parser.parse_args()
    device = torch.device(options.device)
    size = {"vocab_size": 4096, "d_model": 1024, "d_kv": 64, "d_ff": 2560, "num_heads": 16, "num_layers": 12}
    if options.full:
        size = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}
    tensors = drawn(UMT5Config(**size), device)
    source = torch.Generator().manual_seed(0)
    prompts = [torch.randint(size["vocab_size"], (n,), generator=source) for n in (12, 40, 128)]
    f32, bf16 = torch.float32, torch.bfloat16

    def plain(dtype: torch.dtype) -> Stored:
        return narrowed(tensors, lambda _: False, lambda t: t, dtype)

    def fp8(t: Tensor) -> Tensor:
        return t.to(torch.float8_e4m3fn)

    truth, _ = measure(plain(f32), f32, prompts)
    rows: dict[str, tuple[Callable[[], Stored], torch.dtype]] = {
        "bf16": (lambda: plain(bf16), bf16),
        "int8": (lambda: narrowed(tensors, may_be_narrow, in_blocks, bf16), bf16),
        "int8, table in bf16": (lambda: narrowed(tensors, is_linear, in_blocks, bf16), bf16),
        "fp8, table in bf16": (lambda: narrowed(tensors, is_linear, fp8, bf16), bf16),
        "int8, computed in float32": (lambda: narrowed(tensors, may_be_narrow, in_blocks, f32), f32),
        "fp8, computed in float32": (lambda: narrowed(tensors, is_linear, fp8, f32), f32),
    }
    print("| weights | relative L2 | cosine | ms |\n|---|---|---|---|")
    for name, (make, dtype) in rows.items():
        made, ms = measure(make(), dtype, prompts)
        pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(made, truth, strict=True)]
        error = sum(((a - b).norm() / b.norm()).item() for a, b in pairs) / len(pairs)
        cosine = sum(torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs) / len(pairs)
        print(f"| {name} | {error:.4f} | {cosine:.5f} | {ms:.0f} |", flush=True)


if __name__ == "__main__":
    main()
