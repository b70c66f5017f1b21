"""Rotations to draw, and keys and queries in int8 against what they stand for."""

import math

import torch


def turns(*shape: int, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Random rotations [*shape, 2], as the operators want them beside ``dtype``."""
    angle = 2 * math.pi * torch.rand(*shape, dtype=torch.float64)
    return torch.stack((angle.cos(), angle.sin()), -1).to(device, torch.promote_types(dtype, torch.float32))


def traced_heads(device: torch.device | str) -> int:
    """Channels of a head for an operator that is traced: as many as the CUDA kernel takes, or a few on a CPU, where
    tracing all steps of mixing 128 takes seconds."""
    return 128 if torch.device(device).type == "cuda" else 8


def mixed(x: torch.Tensor) -> torch.Tensor:
    """By a Hadamard matrix, element by element of it, of as many channels as a power of two divides a head's."""
    size = x.shape[-1] & -x.shape[-1]
    bits = [[(i & j).bit_count() % 2 for j in range(size)] for i in range(size)]
    matrix = (1.0 - 2.0 * torch.tensor(bits, dtype=x.dtype, device=x.device)) / size**0.5
    return (x.unflatten(-1, (-1, size)) @ matrix).flatten(-2)


def check_integers(values: torch.Tensor, scale: torch.Tensor, want: torch.Tensor) -> None:
    """values and want [.., n], scale [..]: half a unit at most, but for float32's own error."""
    torch.testing.assert_close(scale.double(), want.abs().amax(-1) / 127, rtol=1e-5, atol=0)
    assert ((values * scale.double()[..., None] - want).abs() <= 0.5001 * scale[..., None]).all()


def runs_of(keys: torch.Tensor) -> torch.Tensor:
    """Keys [.., S, H, hd] as [.., S / 8, H, 8 * hd]: what has one scale."""
    return keys.unflatten(-3, (-1, 8)).transpose(-3, -2).flatten(-2)


SPARE = 3  # scales of no key, at a head's end


def scales_of(k_scale: torch.Tensor, k_ring: torch.Tensor) -> torch.Tensor:
    """k_scale [.., H, R * S / 8 + SPARE] of k_ring [.., R, S, H, hd] as [.., R, S / 8, H]; the others must be NaN."""
    runs = k_scale.shape[-1] - SPARE
    assert runs == k_ring.shape[-4] * k_ring.shape[-3] // 8 and k_scale[..., runs:].isnan().all()
    return k_scale[..., :runs].unflatten(-1, (k_ring.shape[-4], -1)).movedim(-3, -1)


# Of qk_norm_rope_store and its int8 form: which sinks the slots of a pass are, and where in the ring they lie.
SLOTS = {
    "one-frame": {"slots": (7,)},
    "no-sinks-kept": {"sinks": 0, "slots": (0, 1, 2)},
    "all-sinks": {"slots": (0, 1, 2)},
    "some-sinks": {"slots": (2, 7, 0)},
    "wrap-around": {"slots": (11, 3, 4)},
    "two-groups": {"slots": (11, 3, 4, 5, 6, 7)},
    "whole-ring": {"ring": 3, "slots": (2, 0, 1)},
}
