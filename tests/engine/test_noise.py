"""The order of random draws (docs/model.md 4.4)."""

from itertools import islice

import pytest
import torch

from longlive_optimized.engine.noise import BlockNoise, VideoNoise

LIKE = torch.empty(16, 4, 6)


def draws(source, start, n):
    return list(islice(source.block(start, 3), n))


def test_blocks_have_their_own_generators_in_scopes_order():
    generator = torch.Generator().manual_seed(42 + 6)
    latent = torch.randn(1, 3, 16, 4, 6, generator=generator)
    renoise = torch.randn(3, 16, 4, 6, generator=generator)
    got = draws(BlockNoise(42, LIKE), 6, 2)
    assert torch.equal(got[0], latent[0]) and torch.equal(got[1], renoise)


def test_a_block_may_be_drawn_again():
    noise = BlockNoise(0, LIKE)
    first, _, again = draws(noise, 3, 4), draws(noise, 6, 4), draws(noise, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_whole_video_noise_comes_first_and_renoising_follows():
    torch.manual_seed(7)
    latent = torch.randn(1, 6, 16, 4, 6)
    renoise = [torch.randn(3, 16, 4, 6) for _ in range(4)]
    noise = VideoNoise(7, LIKE, 6)
    got = draws(noise, 0, 3) + draws(noise, 3, 3)
    want = [latent[0, :3], *renoise[:2], latent[0, 3:], *renoise[2:]]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_video_ends_where_it_was_said_to():
    with pytest.raises(ValueError, match="opened for 6 latent frames"):
        draws(VideoNoise(7, LIKE, 6), 6, 1)
