"""What the kernel should take, layer by layer: waves of items, cycles of an item, and what moves meanwhile.

python tests/native/conv/predict.py [latent height] [latent width]
"""

import sys
from dataclasses import dataclass
from math import ceil

from longlive_optimized.kernels.bench.causal_conv import decoder
from longlive_optimized.kernels.causal_conv import Kind

PROCESSORS = 132
# Sustained by bfloat16 products of large matrices on the card this is for; the clock follows from it.
CEILING = 650e12
CLOCK = CEILING / (PROCESSORS * 4096)
EPILOGUE = 4600  # cycles of a warpgroup, from the SASS of 192 and of 96 channels: about one an instruction


@dataclass
class Config:
    kind: Kind
    n: int
    tiles: int

    def __post_init__(self):
        side = {Kind.CAUSAL: 3, Kind.UP: 2}.get(self.kind, 1)
        self.taps, self.rows = side * side, 8 * self.tiles
        self.patch = 4 * (self.rows + side - 1) * (16 + side - 1) * 16
        per_stage = self.taps if self.n == 16 else 1
        self.stage, self.stages_per_patch = per_stage * 64 * self.n, self.taps // per_stage
        space, patch = 232448 - 4096, -(-self.patch // 128) * 128
        self.patches = (
            space // (patch + self.stage) if self.stages_per_patch == 1 else 4 if self.stages_per_patch < 9 else 3
        )
        self.stages = (space - self.patches * patch) // self.stage
        self.late = min(self.stages // 2, (self.patches - 1) * self.stages_per_patch)
        self.shared = self.patches * patch + self.stages * self.stage
        # Tensor cores: N / 2 cycles a product; shared memory: 16 for the patch, N / 4 for the weights.
        self.product = max(self.n / 2, 16 + self.n / 4)
        self.shared_load = (16 + self.n / 4) / self.product


def predict(layer):
    (h, w), (ci, co) = layer.size, layer.channels
    n = 96 if co == 96 else 192

    def items(c):
        parts = co // n * {Kind.UP: 4, Kind.TIME: 2}.get(layer.kind, 1)
        return parts * layer.frames * ceil(h / c.rows) * ceil(w / 16)

    c = Config(layer.kind, n, 4 if n == 96 else 2)
    low = Config(layer.kind, n, 1)
    if layer.kind == Kind.CAUSAL and n == 192 and 10 * ceil(items(low) / PROCESSORS) < 18 * ceil(items(c) / PROCESSORS):
        c = low
    chunks = ceil(ci / 32) * {Kind.CAUSAL: 3, Kind.TIME: 3}.get(layer.kind, 1)
    residual = ceil(layer.residual / 32)
    stages = chunks * c.taps + residual
    product_cycles = stages * 2 * 2 * c.tiles * c.product
    hidden = c.late * 2 * c.tiles * c.product
    epilogue = EPILOGUE * c.tiles * n / 384 * (0.5 if not layer.act else 1)
    cycles = product_cycles + max(0, epilogue - hidden)
    waves = ceil(items(c) / PROCESSORS)
    us = waves * cycles / CLOCK * 1e6
    patches = chunks + residual
    l2 = (stages * c.stage + patches * c.patch) / cycles
    dram_us = layer.bytes / 4.3e12 * 1e6
    shares = {
        "waves": items(c) / PROCESSORS / waves,
        "tensor": product_cycles / cycles,
        "shared": c.shared_load,
        "L2": l2 / 45,
    }
    return c, items(c), waves, us, l2, dram_us, shares


def main(h=60, w=104):
    total = 0
    print(f"ceiling {CEILING / 1e12:.0f} TFLOP/s, clock {CLOCK / 1e9:.2f} GHz")
    print(
        "| layer | calls | in | GFLOP | N x tiles | smem KB (patches, stages) | items / waves | B/cycle/SM from L2 | µs | DRAM µs | TFLOP/s | limit |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for layer in decoder(h, w):
        c, items, waves, us, l2, dram, shares = predict(layer)
        us_total = us * layer.times
        total += us_total
        limit = "last wave" if shares["waves"] < 0.9 else "L2" if l2 > 45 else "tensor cores"
        print(
            f"| {layer.name} | {layer.times} | {layer.frames}x{layer.size[0]}x{layer.size[1]} | {layer.flops / 1e9:.0f} | {c.n} x {c.tiles} "
            f"| {c.shared // 1024} ({c.patches}, {c.stages}) | {items} / {waves} | {l2:.0f} | {us:.0f} | {dram:.0f} | {layer.flops / us / 1e6:.0f} | {limit} |"
        )
    # The picture's convolution: the patch is read for each tap, 16 cycles for 64 pixels, and 4 for the weights.
    head = Config(Kind.CAUSAL, 16, 4)
    frames, height, width = 12, 8 * h, 8 * w
    items = frames * ceil(height / 32) * ceil(width / 16)
    us = ceil(items / PROCESSORS) * (81 * 2 * 8 * head.product) / CLOCK * 1e6
    print(
        f"| conv_pixels | 1 | {frames}x{height}x{width} | {2 * 27 * 96 * 3 * frames * height * width / 1e9:.0f} | 16 x 4 | {head.shared // 1024} ({head.patches}, {head.stages}) | {items} / {ceil(items / PROCESSORS)} | | {us:.0f} | | | shared memory |"
    )
    print(f"sum {(total + us) / 1e3:.1f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
