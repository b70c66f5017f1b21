"""Storage whose frames stay where they are: what each layer finds before its input."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.vae.packed.frame_pool import FramePool


@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_pools_remember_like_a_list(data):
    """Two layers share scratch frames; each sees the last two frames of what it read, or zeros."""
    pool = FramePool(8, (1, 1), ["first", "second"], a=3)
    pool.tensor.fill_(torch.nan)
    told, count = {"first": [], "second": []}, 0
    for layer in data.draw(st.lists(st.sampled_from(["first", "second", None]), max_size=12)):
        if layer is None:
            pool.forget()
            told = {"first": [], "second": []}
            continue
        frames = data.draw(st.integers(1, 3))
        first = data.draw(st.integers(0, 3 - frames))
        for index in pool.a[first : first + frames]:
            count += 1
            pool.tensor[index] = count
            told[layer].append(count)
        tensor, indices = pool.read(layer, pool.a, first, first + frames)
        seen = [0 if i < 0 else tensor[i].flatten()[0].item() for i in indices]
        assert seen == ([0, 0, *told[layer]])[-2 - frames :]
        assert sorted(pool.a) == sorted(set(pool.a)) and min(pool.a) >= 0


def test_x_lies_still():
    pool = FramePool(16, (2, 3), ["layer"], a=2, x=3, b=2)
    pool.tensor.zero_()
    pool.fixed(2).fill_(1)
    for scratch in (pool.a, pool.b, pool.a):
        pool.read("layer", scratch, 0, 2)
        assert [pool.tensor[index].mean().item() for index in pool.x] == [1, 1, 0]
        assert not set(pool.x) & {*pool.a, *pool.b}
