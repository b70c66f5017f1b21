"""Shapes and bytes of ring_advance: a launch is all that it costs."""

import torch

from .case import Bench, Case


def case(frames: int, window: int, sink: int = 3, pairs: int = 22) -> Case:
    def make(device: str) -> tuple:
        freqs = 10000.0 ** -(torch.arange(pairs, dtype=torch.float64, device=device) / pairs)
        tables = (torch.zeros(n, pairs, 2, device=device) for n in (frames, sink))
        slots = torch.zeros(frames, dtype=torch.int64, device=device)
        start, size = (torch.full((1,), n, device=device) for n in (1_000_000, window))
        return start, freqs, slots, *tables, size, sink, 0

    moved = 8 * (2 + pairs + frames + (frames + sink) * pairs)
    return Case(f"{frames} frames, window {window}", torch.float32, make, moved)


BENCH = Bench(real=[case(3, 12)], small=[case(3, 12)])
