"""rotate_sinks: the un-rotated keys of the sink frames, rotated to where they stand now, written into the ring."""
import torch
from torch import Tensor

from .registry import op


def rotate(x: Tensor, rope_time: Tensor, rope_space: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [F, S, H, hd] by frame (the first pairs) and by token; in the tables' dtype."""
    frames, tokens = x.shape[:2]
    pairs = torch.cat(
        (rope_time[:, None].expand(-1, tokens, -1, -1), rope_space[None].expand(frames, -1, -1, -1)), dim=2
    ).unsqueeze(2)
    cos, sin = pairs.unbind(-1)
    re, im = x.to(pairs.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((re * cos - im * sin, re * sin + im * cos), dim=-1).flatten(-2)


@op(mutates=("k_ring",))
def rotate_sinks(k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_ring: Tensor) -> None:
    """k_ring[:, i] = rotate(k_sink[:, i]) for every layer and sink frame i; one rounding, at the store.

    k_sink [L, s, S, H, hd]; k_ring [L, R, S, H, hd] with R >= s; rope_time [s, Pt, 2] and rope_space [S, Ps, 2] hold
    (cos, sin), with Pt + Ps = hd / 2. Only slots 0..s-1 are written. Source: model specification 3.6.
    """
    for layer in range(k_sink.shape[0]):  # one layer at a time: the float32 copy of all of them would be large
        k_ring[layer, : k_sink.shape[1]] = rotate(k_sink[layer], rope_time, rope_space).to(k_ring.dtype)
