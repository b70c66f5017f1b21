"""The pseudo-random inputs and parameters of the conformance vectors (docs/model.md 10)."""

import zlib

import torch


def h(p: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """2u - 1 with u(p, i) = frac(43758.5453 sin(12.9898 (i+1) + 78.233 (p+1))), row-major over ``shape``."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    u = torch.sin(12.9898 * (i + 1) + 78.233 * (p + 1)) * 43758.5453
    return (2 * (u - u.floor()) - 1).reshape(shape).to(dtype)


def parameter(key: str, shape: torch.Size, scale: float, ones: bool) -> torch.Tensor:
    """The value of the parameter called ``key``: ``scale * h``, plus one where it is a gain."""
    value = scale * h(zlib.crc32(key.encode("ascii")) % 1000, *shape, dtype=torch.float64)
    return 1 + value if ones else value


def check(out: torch.Tensor, mean: float, rms: float, first: list[float], last: float | None = None) -> None:
    """Compare with a printed row: mean, root mean square, first elements, last element; tolerance 5e-5."""
    flat = out.double().flatten()
    got = [flat.mean(), flat.square().mean().sqrt(), *flat[: len(first)]] + ([] if last is None else [flat[-1]])
    want = [mean, rms, *first] + ([] if last is None else [last])
    torch.testing.assert_close(torch.stack(got), torch.tensor(want, dtype=torch.float64), rtol=0, atol=5e-5)
