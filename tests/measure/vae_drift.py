"""Whether decoding drifts over a long video: latents that repeat must give pictures that repeat, bit for bit.

python tests/measure/vae_drift.py --blocks 5000

A VAE of full width with random weights decodes four blocks of noise again and again, in its dtype and in int8. Once the
first blocks have left the layers' history, every round is compared with the first whole one: its pictures, and the PSNR
of int8 against the VAE's dtype. Ends with status 1 where one differs. Needs a GPU: at 100 ms for both, 5000 blocks take
about nine minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.vae.backends import codec_for
from longlive_optimized.vae.codec import Codec, NewGraphs
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.stream import DecoderStream
from longlive_optimized.video_time import BLOCK_FRAMES
from support.vaes import noise, randomised

PERIOD = 4  # blocks, after which latents repeat
SETTLED = 16  # blocks: by then no layer's history reaches back to the video's beginning, which is 13


class Drift(NamedTuple):
    """PSNR of int8 in the first whole round and in the last; how many blocks' pictures were not those of the first."""

    first: list[float]
    last: list[float]
    changed: int


@torch.no_grad()
def drift(plain: Codec, int8: Codec, size: tuple[int, int], blocks: int, new_graphs: NewGraphs = None) -> Drift:
    """``blocks`` of latents of ``size`` through both codecs; they are rounded up to whole rounds."""
    latents = [noise(BLOCK_FRAMES, size, seed, plain.dtype, plain.device) for seed in range(PERIOD)]
    streams = [DecoderStream(codec, new_graphs) for codec in (plain, int8)]
    first: list[list[Tensor]] = []
    errors: list[Tensor] = []
    changed = torch.zeros((), dtype=torch.int64, device=plain.device)
    for index in range(max(SETTLED + 2 * PERIOD, blocks + -blocks % PERIOD)):
        pictures = [stream.decode_uint8(latents[index % PERIOD]) for stream in streams]
        if index < SETTLED:
            continue
        if len(first) < PERIOD:
            first.append(pictures)
        kept = first[index % PERIOD]
        changed += sum((got != want).any().long() for got, want in zip(pictures, kept, strict=True))
        errors.append((pictures[0].float() - pictures[1].float()).square().mean())
    found = [10 * math.log10(255**2 / max(error, 1e-9)) for error in torch.stack(errors).tolist()]
    return Drift(found[:PERIOD], found[-PERIOD:], int(changed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5000)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    args = parser.parse_args()
    vae = randomised(VaeConfig(), torch.bfloat16, "cuda")
    codecs = (codec_for(vae, precision=precision) for precision in ("bf16", "int8"))

    def new_graphs() -> GraphCache:
        return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))

    found = drift(*codecs, (args.height // 8, args.width // 8), args.blocks, new_graphs)
    for name, values in (("first round", found.first), ("last round", found.last)):
        print(f"{name}: int8 to bf16 {', '.join(f'{value:.3f}' for value in values)} dB")
    print(f"blocks whose pictures are not those of the first round: {found.changed}")
    return found.changed > 0


if __name__ == "__main__":
    sys.exit(main())
