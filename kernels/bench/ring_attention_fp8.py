"""Shapes and counts of ring_attention_fp8; beside it ring_attention, and the library's, both of bfloat16."""

import torch
from torch import Tensor

from ..quantize_keys import KEY_RUN
from ..quantize_values import VALUE_GROUP
from .case import Bench, Case
from .ring_attention_int8 import integers, peers


def case(rows: int, tokens: int, heads: int) -> Case:
    """All queries see the whole ring."""
    places = -(-tokens // VALUE_GROUP) * VALUE_GROUP

    def make(device: str) -> tuple[Tensor, ...]:
        k_ring, scales = integers(tokens, heads, device)
        # As a ring's first block leaves them: 28 is the largest of them.
        v_ring = (7 * torch.randn(heads, 128, places, device=device)).clamp(-28, 28).to(torch.float8_e4m3fn)
        v_scale, v_offset = torch.full((heads, 128), 1 / 7, device=device), torch.randn(heads, 128, device=device)
        valid = torch.tensor([tokens], dtype=torch.int32, device=device)
        k_scale = scales[:, ::KEY_RUN].contiguous()
        return *integers(rows, heads, device), k_ring[None], k_scale, v_ring, v_scale, v_offset, valid

    size, out = heads * 128, torch.bfloat16.itemsize
    moved = rows * size * (1 + out) + tokens * size + places * size
    moved += 4 * (heads * (rows + tokens // KEY_RUN) + 2 * size + 1)
    return Case(f"{rows}x{tokens}, {heads} heads", torch.bfloat16, make, moved, flops=4 * rows * tokens * size)


BENCH = Bench(
    real=[case(4680, 18720, 12), case(2160, 8640, 12)],
    small=[case(180, 728, 2)],
    peers=peers,
    time_reference=False,
)
