"""The engine inside a program that has turned on modes of torch for itself: the pictures are the same."""

import contextlib

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine import sampler

A, B = "a red circle moves left over a green field", "a white cross rests on a black night"


@contextlib.contextmanager
def default(setter, value, usual):
    """A default, met by what is computed once and kept, too."""
    setter(value)
    sampler.schedule_table.cache_clear()
    try:
        yield
    finally:
        setter(usual)
        sampler.schedule_table.cache_clear()


def default_dtype(dtype):
    return default(torch.set_default_dtype, dtype, torch.float32)


def default_device(device):
    return default(torch.set_default_device, device, None)


MODES = {
    "gradients": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "another device by default": lambda: default_device("cuda" if torch.cuda.is_available() else "meta"),
}


def video(make=contextlib.nullcontext, use=contextlib.nullcontext) -> list[torch.Tensor]:
    """Blocks with a recache, a larger window and a reset, of an engine made in a mode and used in another and none."""
    with make():
        engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48, denoising_steps=(1000, 500)))
        frames = [engine.generate_block(BlockRequest(A))]
    with use():
        frames.append(engine.generate_block(BlockRequest(A)))
        frames.append(engine.generate_block(BlockRequest(B)))
    engine.configure(local_attn_size=15)
    frames.append(engine.generate_block(BlockRequest(A)))
    with use():
        engine.reset()
    frames.append(engine.generate_block(BlockRequest(B)))
    return [frame.clone().cpu() for frame in frames]


@pytest.fixture(scope="module")
def plain():
    return video()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_change_nothing(plain, mode):
    for made, used in ((MODES[mode], contextlib.nullcontext), (contextlib.nullcontext, MODES[mode])):
        assert all(map(torch.equal, plain, video(made, used)))
