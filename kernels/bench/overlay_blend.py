"""Shapes and bytes of overlay_blend: the panel that the overlay draws at 480x832."""

import torch

from .case import Bench, Case

HEIGHT, WIDTH = 261, 175


def case(frames: int, dtype: torch.dtype, height: int = 480, width: int = 832) -> Case:
    def make(device: str) -> tuple:
        picture = torch.randint(0, 256, (frames, height, width, 3), device=device)
        picture = picture.to(dtype) if dtype == torch.uint8 else (picture / 255).to(dtype)
        panel = torch.randint(0, 256, (HEIGHT, WIDTH, 4), dtype=torch.uint8, device=device)
        return picture, panel, 12, width - WIDTH - 12

    touched = frames * HEIGHT * WIDTH * 3 * dtype.itemsize
    return Case(f"{frames}x{height}x{width}", dtype, make, 2 * touched + HEIGHT * WIDTH * 4)


BENCH = Bench(
    real=[case(12, torch.uint8), case(1, torch.uint8), case(12, torch.bfloat16)],
    small=[case(2, torch.uint8, 320, 576)],
)
