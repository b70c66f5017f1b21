"""What an encoder takes, told by its shapes, is what it then takes."""

import pytest
import torch

from longlive_optimized.text.encoder import Dimensions, TextEncoder, checkpoint_shapes
from longlive_optimized.text.footprint import footprint
from longlive_optimized.text.linear import Blocks
from support.umt5 import Ids, narrowed, weights

XXL = checkpoint_shapes(Dimensions(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24))
GIB = 2**30


def held(stored) -> int:
    return sum(t.nbytes for one in stored.values() for t in (one if isinstance(one, Blocks) else (one,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_is_what_is_held(precision, dtype):
    tensors = weights()
    stored = narrowed(tensors, precision, dtype)
    shapes = {key: t.shape for key, t in tensors.items()}
    for residence in ("gpu", "parked", "cpu"):
        found = footprint(shapes, precision, residence, dtype)
        assert (found.gpu, found.host) == ((held(stored), 0) if residence == "gpu" else (0, held(stored)))
    table = stored["token_embedding.weight"]
    parked = footprint(shapes, precision, "parked", dtype)
    assert parked.pinned == held(stored) - held({"table": table})
    buffers = TextEncoder(stored, Ids(), dtype, torch.device("cpu"), link=_NoLink())._parked.buffer_bytes
    resident = footprint(shapes, precision, "gpu", dtype).gpu_encoding
    assert parked.gpu_encoding - resident == 2 * buffers


class _NoLink:
    """Never asked for anything."""


def test_of_umt5_xxl():
    gib = {
        (precision, residence): tuple(round(n / GIB, 1) for n in footprint(XXL, precision, residence))
        for precision in ("bf16", "int8", "fp8")
        for residence in ("gpu", "parked", "cpu")
    }
    assert gib["bf16", "gpu"][0] == 10.6 and gib["int8", "gpu"][0] == 5.6 and gib["fp8", "gpu"][0] == 6.3
    assert gib["int8", "parked"] == (0.0, 0.7, 5.6, 4.6) and gib["int8", "cpu"] == (0.0, 0.0, 5.6, 0.0)
    assert gib["bf16", "parked"][1] == 1.1 and gib["bf16", "gpu"][1] == 0.3


def test_bad_arguments():
    with pytest.raises(ValueError, match="precision must be one of bf16"):
        footprint(XXL, "int4", "gpu")
    with pytest.raises(ValueError, match="residence must be gpu"):
        footprint(XXL, "int8", "auto")
    with pytest.raises(ValueError, match=r"a matrix called token_embedding\.weight"):
        footprint({}, "int8", "gpu")
