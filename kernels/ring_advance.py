"""ring_advance: the ring's write slots and rotations, computed where the stream's position is, on the device."""

import torch
from torch import Tensor

from . import native
from .checks import expect
from .registry import op
from .triton_import import tl, triton


@op(mutates=("slots", "rope_time", "sink_time"))
def ring_advance(
    start: Tensor,
    freqs: Tensor,
    slots: Tensor,
    rope_time: Tensor,
    sink_time: Tensor,
    window: Tensor,
    sink: int,
    origin: int,
) -> None:
    """Point a pass at frames start, start+1, …: their slots, their rotations, and those of the sinks.

    - start [1], int64: at least ``origin``.
    - freqs [Pt], float64: angle per frame of each time pair.
    - slots [F], int64, written: frame f goes to slot f - origin if that is below ``sink``, otherwise to
      sink + (f - sink) mod (window - sink): distinct unless more than window - sink of the frames are no sinks.
    - window [1], int64: more than ``sink``, and at least F.
    - rope_time [F, Pt, 2], written: (cos, sin) of f * freqs; float32 or float64.
    - sink_time [sink or 0, Pt, 2], of the same dtype, written: (cos, sin) of (first + i) * freqs for sink frame i,
      where first = max(origin, start + F - window) is the position that the window's first slot stands for.

    ``start`` and ``window`` are read when the operator runs: a captured graph serves all. They are not checked, which
    would wait for the device.
    Source: docs/model.md 3.3, 3.6. Raises ValueError naming the argument that does not fit.
    """
    _check(start, freqs, slots, rope_time, sink_time, window, sink, origin)
    frames = slots.shape[0]
    positions = start + torch.arange(frames, device=start.device)
    in_window = sink + (positions - sink) % (window - sink)
    slots.copy_(torch.where(positions - origin < sink, positions - origin, in_window))
    rope_time.copy_(_rotation(positions, freqs))
    first = (start + frames - window).clamp(min=origin)
    sink_time.copy_(_rotation(first + torch.arange(sink_time.shape[0], device=start.device), freqs))


def _rotation(positions: Tensor, freqs: Tensor) -> Tensor:
    # Precision: the angle and its reduction are float64; only the result is rounded, by the copy.
    angles = positions.double()[:, None] * freqs
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def _check(start, freqs, slots, rope_time, sink_time, window, sink, origin) -> None:
    device = start.device
    expect("start", start, (1,), torch.int64, device)
    expect("freqs", freqs, (None,), torch.float64, device)
    expect("slots", slots, (None,), torch.int64, device)
    if rope_time.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rope_time must be float32 or float64, got {rope_time.dtype}")
    expect("rope_time", rope_time, (slots.shape[0], freqs.shape[0], 2), rope_time.dtype, device)
    expect("sink_time", sink_time, (None, freqs.shape[0], 2), rope_time.dtype, device)
    expect("window", window, (1,), torch.int64, device)
    if slots.shape[0] == 0:
        raise ValueError("slots must have at least 1 frame, got 0")
    for name, value in (("sink", sink), ("origin", origin)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if sink_time.shape[0] not in (0, sink):
        raise ValueError(f"sink_time must have {sink} frames or none, got {sink_time.shape[0]}")


def _fits_cuda(start, freqs, slots, rope_time, *rest) -> bool:
    return rope_time.dtype == torch.float32 and native.on_hopper(start)


@ring_advance.impl("cuda", when=_fits_cuda)
def _cuda(start, freqs, slots, rope_time, sink_time, window, sink, origin) -> None:
    torch.ops.longlive_C.ring_advance(start, freqs, slots, rope_time, sink_time, window, sink, origin)


if triton:
    # Not specialised: what varies from pass to pass must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["count", "origin"])
    def _kernel(
        start, freqs, slots, rope_time, sink_time, count, window, sink, origin, time_pairs, BLOCK: tl.constexpr
    ):
        """One program to each of the pass's ``count`` frames, then one to each sink frame."""
        i = tl.program_id(0)
        first = tl.load(start)
        window = tl.load(window)
        pair = tl.arange(0, BLOCK)
        live = pair < time_pairs
        position, home = first + i, rope_time + i * time_pairs * 2
        if i < count:
            in_window = sink + (position - sink) % (window - sink)
            tl.store(slots + i, tl.where(position - origin < sink, position - origin, in_window))
        else:
            position = tl.maximum(first + count - window, origin) + i - count
            home = sink_time + (i - count) * time_pairs * 2
        # Precision: the angle and its reduction are float64; only the result is rounded, by the store.
        angle = position.to(tl.float64) * tl.load(freqs + pair, mask=live, other=0.0)
        tl.store(home + pair * 2, tl.cos(angle), mask=live)
        tl.store(home + pair * 2 + 1, tl.sin(angle), mask=live)

    @ring_advance.impl("triton", when=lambda start, *rest: start.is_cuda)
    def _triton(start, freqs, slots, rope_time, sink_time, window, sink, origin) -> None:
        _check(start, freqs, slots, rope_time, sink_time, window, sink, origin)
        frames, pairs = slots.shape[0], freqs.shape[0]
        with torch.cuda.device_of(start):
            _kernel[(frames + sink_time.shape[0],)](
                start, freqs, slots, rope_time, sink_time, frames, window, sink, origin, pairs,
                BLOCK=triton.next_power_of_2(pairs),
            )  # fmt: skip
