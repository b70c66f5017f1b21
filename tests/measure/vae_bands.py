"""What a block's decoding takes where ranks decode bands of rows: ``python tests/measure/vae_bands.py --json FILE``.

The published VAE with random weights, in bfloat16 and int8, decodes blocks of three latents to pictures, each a CUDA
graph as in the engine: whole, and as the first band and an inner one of 2, 4 and 8. All rows take turns, so that the
card's clocks are the same for all. A row has the median milliseconds, the peak of memory beside the weights (a stream's
own, and its graphs'), TFLOP of the network as published, and whether the pictures are the whole's rows bit for bit.
Ends with status 1 if any are not. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.kernels.bench.runner import clocks_and_power
from longlive_optimized.vae.autoencoder import Autoencoder
from longlive_optimized.vae.backends import codec_for
from longlive_optimized.vae.band import Band
from longlive_optimized.vae.codec import Codec
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.stream import DecoderStream
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.video_time import BLOCK_FRAMES
from support.vaes import noise, randomised

BANDS = (None, *(Band(rank, count) for count in (2, 4, 8) for rank in sorted({0, count // 2 - 1})))


class Running(NamedTuple):
    """A stream whose graphs are captured; what one call takes; its peak of memory, in GiB; its first blocks."""

    band: Band | None
    precision: str
    decode: Callable[[], object]
    gib: float
    pictures: list[Tensor]


@torch.no_grad()
def tflop(vae: Autoencoder, size: tuple[int, int], band: Band | None) -> float:
    """Of a later block of latents of ``size``, on the modules of ``vae``, which lies on the meta device."""
    stream = DecoderStream(ModulesCodec(vae), band=band)
    latents = torch.empty(BLOCK_FRAMES, vae.config.z_dim, *size, dtype=vae.dtype, device="meta")
    stream.decode(latents)
    with FlopCounterMode(display=False) as counter:
        stream.decode(latents)
    return counter.get_total_flops() / 1e12


def started(codec: Codec, band: Band | None, blocks: list[Tensor]) -> Running:
    def new_graphs() -> GraphCache:
        return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stream = DecoderStream(codec, new_graphs, band)
    pictures = [stream.decode_uint8(block).cpu() for block in blocks]
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    return Running(band, codec.precision, lambda: stream.decode_uint8(blocks[-1]), taken / 2**30, pictures)


def times(runs: list[Running], rounds: int) -> list[list[float]]:
    """Milliseconds of each, in turn, every call on an idle device."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, into in zip(runs, found, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run.decode()
            end.record()
            torch.cuda.synchronize()
            into.append(begin.elapsed_time(end))
    return found


def is_same(run: Running, whole: Running, height: int) -> bool:
    rows = (run.band or Band(0, 1)).rows(height)
    wanted = (pictures[:, 8 * rows.start : 8 * rows.stop] for pictures in whole.pictures)
    return all(map(torch.equal, run.pictures, wanted))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    size = args.height // 8, args.width // 8
    vae, plan = randomised(VaeConfig(), torch.bfloat16, "cuda"), WanVae(device="meta").bfloat16()
    blocks = [noise(BLOCK_FRAMES, size, seed, torch.bfloat16, "cuda") for seed in range(4)]
    runs: list[Running] = []
    for precision in ("bf16", "int8"):
        codec = codec_for(vae, precision=precision)
        started(codec, None, blocks[:1])  # the codec's weights are made by its first stream
        runs += [started(codec, band, blocks) for band in BANDS]
    rows, spent = [], times(runs, args.rounds)
    wholes = {run.precision: (run, statistics.median(ms)) for run, ms in zip(runs, spent, strict=True) if not run.band}
    counts = {band: tflop(plan, size, band) for band in BANDS}
    print(f"{'':>16} {'ms':>7} {'of whole':>8} {'GiB':>6} {'TFLOP':>6}  same")
    for run, ms in zip(runs, spent, strict=True):
        whole, whole_ms = wholes[run.precision]
        median = statistics.median(ms)
        row = {
            "precision": run.precision,
            "rank": run.band.rank if run.band else 0,
            "bands": run.band.count if run.band else 1,
            "ms": median,
            "least_ms": min(ms),
            "of_whole": median / whole_ms,
            "peak_gib": run.gib,
            "tflop": counts[run.band],
            "same": is_same(run, whole, size[0]),
        }
        rows.append(row)
        name = f"{row['precision']} {row['rank']} of {row['bands']}"
        print(f"{name:>16} {median:7.2f} {row['of_whole']:8.3f} {run.gib:6.2f} {row['tflop']:6.2f}  {row['same']}")
    if args.json:
        found = {"gpu": torch.cuda.get_device_name(), "height": args.height, "width": args.width}
        args.json.write_text(json.dumps(found | {"clocks": clocks_and_power(), "rows": rows}, indent=1) + "\n")
    return not all(row["same"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
